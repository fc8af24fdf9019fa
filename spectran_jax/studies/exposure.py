"""What it buys and costs to show cold items more often: a run's model, evaluated at several `cold_scale`s.

An encoder that fills its lists with cold items hits many of them, whatever it knows of them. So how often it hits is to
be compared where lists hold as many, or where the other targets fare as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from spectran_jax.progress import print_line, stderr_console
from spectran_jax.ranks import Ranks
from spectran_jax.recommender import ItemTable
from spectran_jax.studies.kept import kept, model_of

FILE = "exposure.npz"
SCALES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)
"""Factors of the scores of cold items."""
PLACES = 10
"""Of a list."""


class Exposure(NamedTuple):
    """A model at one factor."""

    scale: float
    share: float
    """Of the places in test users' lists of ten, those that cold items have."""
    valid: Ranks
    test: Ranks


def exposures(folder: Path, digest: str) -> list[Exposure]:
    """The model of a finished run at each of `SCALES`, made from its best checkpoint the first time, and kept.

    Args:
      folder: of the run.
      digest: of its best parameters, from metrics.json; what was kept of others, before the run went on, or for other
        factors, is made again.

    Raises:
      InputError: as `model_of`.
    """
    found = kept(folder / FILE, f"{digest} {SCALES} {PLACES}", "test_rank", lambda: _of_best(folder, digest))

    def ranks(split: str, at: int) -> Ranks:
        user, item, each, history = (found[f"{split}_{name}"] for name in ("user", "item", "rank", "history"))
        return Ranks(user, item, each[at], history, found["item_counts"])

    return [
        Exposure(float(scale), float(share), ranks("valid", at), ranks("test", at))
        for at, (scale, share) in enumerate(zip(found["scales"], found["shares"], strict=True))
    ]


def _of_best(folder: Path, digest: str) -> dict[str, np.ndarray]:
    from spectran_jax.recommend import recommend
    from spectran_jax.training.programs import build_programs
    from spectran_jax.training.summary import rank_arrays

    factors = ", ".join(f"{scale:g}" for scale in SCALES)
    print_line(stderr_console(), f"{folder}: evaluating with the scores of cold items times {factors}.")
    setup, params = model_of(folder, digest)
    programs, counts = build_programs(setup, total_steps=1), np.asarray(setup.split.item_counts)
    table = programs.table(params, setup.place())
    cold = np.pad(counts == 0, (0, len(table.lengths) - len(counts)))
    places = min(PLACES, setup.dataset.num_items)
    sets = {"valid": setup.split.valid, "test": setup.split.test}
    ranks: dict[str, list[np.ndarray]] = {split: [] for split in sets}
    shares = []

    @jax.jit
    def at(table: ItemTable, cold: Bool[jax.Array, "N"], factor: float) -> ItemTable:
        return table.with_scores_times(jnp.where(cold, factor, 1.0))

    for scale in SCALES:
        scaled = at(table, cold, scale / setup.config.objective.cold_scale)
        for split, targets in sets.items():
            ranks[split].append(programs.rank(params, scaled, setup.eval_batches(targets)))
        filter_seen = setup.config.training.filter_seen
        _, ids = recommend(setup, params, sets["test"].history, places, filter_seen=filter_seen, table=scaled)
        shares.append((counts[ids[ids >= 0]] == 0).mean())
    arrays = {"scales": np.asarray(SCALES), "shares": np.asarray(shares), "item_counts": counts.astype(np.int32)}
    for split, targets in sets.items():
        arrays |= rank_arrays(split, targets, np.stack(ranks[split]))  # a row of ranks a factor
    return arrays
