"""What it buys and costs to show cold items more often: a run's model, evaluated at several `cold_scale`s.

An encoder that fills its lists with cold items hits many of them, whatever it knows of them. So how often it hits is to
be compared where lists hold as many, or where the other targets fare as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from spectran_jax.layout import EvalBatch
from spectran_jax.progress import print_line, stderr_console, task
from spectran_jax.ranks import Ranks
from spectran_jax.recommender import ItemTable
from spectran_jax.studies.kept import kept, model_of

if TYPE_CHECKING:  # it imports every module of a model
    from spectran_jax.training.setup import Setup

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
    from spectran_jax import evaluation
    from spectran_jax.recommend import not_finite
    from spectran_jax.training.programs import build_table
    from spectran_jax.training.summary import rank_arrays

    factors = ", ".join(f"{scale:g}" for scale in SCALES)
    print_line(stderr_console(), f"{folder}: evaluating with the scores of cold items times {factors}.")
    setup, params = model_of(folder, digest)
    table, counts = build_table(setup)(params, setup.place()), np.asarray(setup.split.item_counts)
    cold = jax.device_put(np.pad(counts == 0, (0, len(table.lengths) - len(counts))), table.lengths.sharding)
    arrays = {"scales": np.asarray(SCALES), "item_counts": counts.astype(np.int32)}
    for split, targets in (("valid", setup.split.valid), ("test", setup.split.test)):
        batches, step = setup.eval_batches(targets), _step_of(setup, lists=split == "test")
        with task(f"Ranking the targets of {split}", len(batches)) as progress:
            _, (ranks, *lists) = evaluation.per_user(
                functools.partial(step, params, table, cold), batches, setup.mesh, progress
            )
        if (ranks < 0).any():
            raise not_finite()
        arrays |= rank_arrays(split, targets, ranks.T)  # a row of ranks a factor
        if lists:
            shown, places = lists
            arrays["shares"] = shown.sum(axis=0) / places.sum(axis=0)
    return arrays


def _step_of(setup: Setup, lists: bool) -> Callable[..., Any]:
    """`step(params, table, cold, batch)`, a tuple of `[B, factors]`: ranks, and with `lists` of the places of each
    user's list those that cold items have, and all. States are the same at every factor: the backbone runs once."""
    from spectran_jax.training.item_table import make_last_states
    from spectran_jax.training.partitioning import replicated

    access, last_states = setup.access, make_last_states(setup.model, setup.access)
    length = min(PLACES, setup.dataset.num_items)
    factors = np.asarray(SCALES, np.float32) / setup.config.objective.cold_scale

    def step(params: Any, table: ItemTable, cold: Bool[jax.Array, "N"], batch: EvalBatch) -> Any:
        states = last_states(params, table, batch)

        def at(factor: jax.Array) -> Any:
            scaled = table.with_scores_times(jnp.where(cold, factor, 1.0))
            ranks = access.ranks(scaled, states, batch.targets, batch.left_out)
            if not lists:
                return (ranks,)
            _, ids = access.top_k(scaled, states, length, batch.left_out, None)
            listed = ids >= 0
            return ranks, (listed & cold[ids]).sum(axis=1), listed.sum(axis=1)

        return jax.tree.map(jnp.transpose, jax.lax.map(at, jnp.asarray(factors)))

    return jax.jit(step, out_shardings=replicated(setup.mesh))
