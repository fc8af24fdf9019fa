"""How well targets are ranked by how often training saw them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.metrics import popularity_classes

class Ranks(NamedTuple):
    """What ranks.npz holds: one entry a test user."""

    user: Int[np.ndarray, "U"]
    target: Int[np.ndarray, "U"]
    rank: Int[np.ndarray, "U"]
    """0-based."""


def read_ranks(folder: Path) -> Ranks:
    """The ranks of a run.

    Raises:
      InputError: where the folder has none.
    """
    path = folder / "ranks.npz"
    try:
        with np.load(path) as stored:
            return Ranks(stored["user"], stored["target"], stored["rank"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: ranks can't be read ({error}); train the run again.") from None


def training_counts(config: Config) -> Int[np.ndarray, "N"]:
    """Times that each item stands in a training sequence of a run of this configuration; 0 is cold."""
    return data.split(data.load(config), config.data).item_counts


def target_groups(targets: Int[np.ndarray, "U"], counts: Int[np.ndarray, "N"]) -> dict[str, Bool[np.ndarray, "U"]]:
    """Who belongs to which group, by the popularity of the target: head, middle, tail and cold, which share out the
    users between them; `warm`, all but cold; and `all`."""
    targets = np.asarray(targets)
    groups = {name: mask[targets] for name, mask in popularity_classes(counts).items()}
    return {**groups, "warm": ~groups["cold"], "all": np.ones(len(targets), bool)}


def gains(ranks: Int[np.ndarray, "U"], k: int = 10) -> dict[str, Float[np.ndarray, "U"]]:
    """Each user's HR@k, NDCG@k and reciprocal rank, whose means are the metrics."""
    ranks = np.asarray(ranks, np.int64)
    hit = ranks < k
    return {
        f"hr@{k}": hit.astype(np.float64),
        f"ndcg@{k}": np.where(hit, 1 / np.log2(ranks + 2.0), 0.0),
        "mrr": 1 / (ranks + 1.0),
    }
