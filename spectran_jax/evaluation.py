"""Full ranking of many users: batches in, one result a user out; and what makes two numbers comparable.

The device does the ranking (`ranking.py`), the host the averages (`metrics.py`). No users x items matrix exists
anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int

from spectran_jax.digest import json_digest
from spectran_jax.errors import InputError, RunError
from spectran_jax.layout import EvalBatch
from spectran_jax.metrics import KS, metrics_by_popularity, metrics_from_ranks, recommendation_metrics
from spectran_jax.training.partitioning import put_batch

if TYPE_CHECKING:
    from spectran_jax.data import EvalBatches

__all__ = [
    "RULES",
    "evaluate",
    "metrics_by_popularity",
    "metrics_from_ranks",
    "per_user",
    "protocol_fingerprint",
    "recommendation_metrics",
]

FETCH_EVERY = 16
"""Batches whose results are fetched together, while at least as many more are under way."""

RULES: dict[str, Any] = {"candidates": "whole catalogue", "ties": "pessimistic", "target_filtered": False, "ks": KS}
"""The rules that hold in every evaluation of this package; part of every protocol fingerprint."""


def evaluate(
    rank_step: Callable[[EvalBatch], Int[jax.Array, "B"]],
    batches: EvalBatches,
    mesh: jax.sharding.Mesh,
    progress: Callable[[int], None] | None = None,
) -> Int[np.ndarray, "U"]:
    """Ranks of all targets, int32, in the order of the batches' rows; rows of user -1 are dropped.

    Args:
      rank_step: a jitted function from a batch on the device to 0-based ranks, -1 where a score is not finite (see
        `ranking.rank_targets`).
      batches: NumPy batches, of which this process has its rows.
      mesh: where they go.
      progress: called with the number of batches done, now and then.

    Raises:
      RunError: where the scores of a user are not finite.
      InputError: where the batches hold no user.
    """
    numbers, ranks = per_user(rank_step, batches, mesh, progress)
    broken = numbers[ranks < 0]
    if len(broken):
        raise RunError(
            f"The scores of {len(broken)} of {len(numbers)} users are not finite, the first of them user number "
            f"{broken[0]} of the data set; there is no rank to give. Train with a lower --learning_rate, or look for "
            "NaN and inf in the item vectors."
        )
    return ranks


def per_user(
    step: Callable[[EvalBatch], Any],
    batches: EvalBatches,
    mesh: jax.sharding.Mesh,
    progress: Callable[[int], None] | None = None,
    *,
    fetch_every: int = FETCH_EVERY,
) -> tuple[Int[np.ndarray, "U"], Any]:
    """Runs `step` on every batch; returns the users and, for each of them, what `step` gave, as NumPy.

    The results of `fetch_every` batches are fetched together, when as many more have been handed to the device: it
    never waits for the host.

    Args:
      step: a jitted function from a batch on the device to an array, or a pytree of arrays, of B rows.
      batches: NumPy batches, of which this process has its rows.
      mesh: where they go.
      progress: called with the number of batches done, now and then.
      fetch_every: batches fetched together; few where a batch takes long.

    Returns:
      int32 users, and the same pytree as `step` gives with one row a user; both in the order of the batches' rows,
      without those of user -1.

    Raises:
      InputError: where the batches hold no user.
    """
    found: list[np.ndarray] = []
    results: list[Any] = []
    pending: list[tuple[np.ndarray, Any]] = []
    done = 0

    def fetch() -> None:
        nonlocal done
        oldest = pending[:fetch_every]
        del pending[:fetch_every]
        for (real, _), result in zip(oldest, jax.device_get([result for _, result in oldest]), strict=True):
            results.append(jax.tree.map(lambda rows, real=real: rows[real], result))
        done += len(oldest)
        if progress is not None:
            progress(done)

    for batch, users in zip(batches, batches.users(), strict=True):
        real = users >= 0
        found.append(users[real])
        pending.append((real, step(put_batch(mesh, batch))))
        if len(pending) == 2 * fetch_every:
            fetch()
    while pending:
        fetch()
    if not sum(map(len, found)):
        raise InputError("There is no user to evaluate; the batches are empty.")
    return np.concatenate(found), jax.tree.map(lambda *rows: np.concatenate(rows), *results)


def protocol_fingerprint(**fields: Any) -> str:
    """SHA-256 of everything that decides whether two numbers may stand in one table, 64 hex digits.

    Args:
      **fields: what this evaluation chose: data digest, split with its cuts, filters, seen-item rule,
        items held out. `RULES` are added, and may be overruled by name. The order does not matter.

    Raises:
      InputError: for a value that JSON can't hold.
    """
    return json_digest({**RULES, **fields})
