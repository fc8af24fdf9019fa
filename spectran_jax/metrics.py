"""Metrics of full ranking, from ranks and recommended items: NumPy, float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from spectran_jax.errors import InputError

KS = (5, 10, 20, 50)
"""Cut-offs of HR and NDCG."""

SELECTION_METRIC = "ndcg@20"
"""What is read on validation to choose: the step to keep, when to stop, a search's values, the rival to beat."""

HEAD_SHARE = 0.2
"""Share of the trained items that are the head, the most popular."""

TAIL_SHARE = 0.5
"""Share of the trained items that are the tail, the least popular. What lies between is the middle."""


def gains(metric: str, ranks: Int[np.ndarray, "U"]) -> Float[np.ndarray, "U"]:
    """What each user adds to the mean that a metric is, float64: `hr@K`, `ndcg@K` or `mrr` of one relevant item.

    Args:
      metric: its name.
      ranks: 0-based ranks.

    Raises:
      InputError: for another metric.
    """
    ranks = np.asarray(ranks).astype(np.float64)
    kind, _, k = metric.partition("@")
    if metric == "mrr":
        return 1 / (ranks + 1)
    if kind not in ("hr", "ndcg") or not k.isdecimal() or int(k) < 1:
        raise InputError(f"Metrics are hr@K, ndcg@K and mrr, got {metric!r}.")
    return np.where(ranks < int(k), 1 / np.log2(ranks + 2) if kind == "ndcg" else 1.0, 0.0)


def metrics_from_ranks(ranks: Int[np.ndarray, "U"], ks: Sequence[int] = KS) -> dict[str, float]:
    """HR@K, NDCG@K and MRR of one relevant item a user.

    HR@K is the share of ranks below K, NDCG@K the mean of `1 / log2(rank + 2)` where the rank is below K and 0
    elsewhere, MRR the mean of `1 / (rank + 1)` over all ranks. The target of a user is the only relevant item, so
    that the ideal DCG is 1.

    Args:
      ranks: 0-based ranks.
      ks: cut-offs.

    Returns:
      `{"hr@5": ..., "ndcg@5": ..., ..., "mrr": ...}`, Python floats.

    Raises:
      InputError: for no ranks, a negative rank, or a cut-off below one.

    References:
      Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not len(ranks):
        raise InputError(f"Metrics need a list of at least one rank, got the shape {ranks.shape}.")
    if ranks.min() < 0:
        raise InputError(f"Ranks count from 0, got {ranks.min()} at place {ranks.argmin()}.")
    names = [f"{kind}@{k}" for k in _cutoffs(ks) for kind in ("hr", "ndcg")]
    return {name: float(np.mean(gains(name, ranks))) for name in (*names, "mrr")}


def popularity_classes(counts: Int[np.ndarray, "N"]) -> dict[str, np.ndarray]:
    """Items by popularity in training: bool `[N]` masks `head`, `middle`, `tail` and `cold`, each item in one.

    Trained items in the order of their count, equal counts by id: the first 20 % are the head (the usual Pareto
    cut; at least one item), the last 50 % the tail. Items of count zero are cold.

    Args:
      counts: training interactions of each item.
    """
    counts = np.asarray(counts)
    order = np.argsort(-counts.astype(np.int64), kind="stable")
    trained = int(np.count_nonzero(counts > 0))
    head = min(max(round(HEAD_SHARE * trained), 1), trained)
    tail = max(trained - round(TAIL_SHARE * trained), head)
    bounds = {"head": (0, head), "middle": (head, tail), "tail": (tail, trained), "cold": (trained, len(counts))}
    place = np.empty(len(counts), np.int64)
    place[order] = np.arange(len(counts))
    return {name: (place >= low) & (place < high) for name, (low, high) in bounds.items()}


def metrics_by_popularity(
    ranks: Int[np.ndarray, "U"],
    targets: Int[np.ndarray, "U"],
    counts: Int[np.ndarray, "N"],
    ks: Sequence[int] = KS,
) -> dict[str, dict[str, float]]:
    """Metrics of the users whose target is a head, middle, tail or cold item (see `popularity_classes`).

    Args:
      ranks: 0-based ranks.
      targets: dense item id of each rank's target.
      counts: training interactions of each item.
      ks: cut-offs.

    Returns:
      For each class its metrics and `users`, their number; a class without users has `{"users": 0}` alone.

    Raises:
      InputError: where ranks and targets differ in number, or as `metrics_from_ranks`.
    """
    ranks, targets = np.asarray(ranks), np.asarray(targets)
    if ranks.shape != targets.shape:
        raise InputError(f"Each rank needs its target, got the shapes {ranks.shape} and {targets.shape}.")
    slices: dict[str, dict[str, float]] = {}
    for name, mask in popularity_classes(counts).items():
        chosen = ranks[mask[targets]]
        slices[name] = {"users": len(chosen), **(metrics_from_ranks(chosen, ks) if len(chosen) else {})}
    return slices


def recommendation_metrics(
    ids: Int[np.ndarray, "U K"], counts: Int[np.ndarray, "N"], ks: Sequence[int] = (10,)
) -> dict[str, float]:
    """What is recommended, whoever likes it: catalogue coverage and mean popularity of the first k of each list.

    `coverage@k` is the share of the catalogue that stands in at least one list, `popularity@k` the mean number of
    training interactions of what stands there.

    Args:
      ids: dense item ids, best first; -1 where a list is shorter.
      counts: training interactions of each item.
      ks: lengths of the lists, at most K.

    Raises:
      InputError: for a cut-off below one or above K, or lists that hold nothing.
    """
    ids, counts = np.asarray(ids), np.asarray(counts)
    metrics = {}
    for k in _cutoffs(ks):
        if k > ids.shape[1]:
            raise InputError(f"Lists of {ids.shape[1]} items have no first {k}; recommend more, or cut off earlier.")
        shown = ids[:, :k]
        shown = shown[shown >= 0]
        if not len(shown):
            raise InputError("No list holds any item; leave fewer items out of the ranking.")
        times = np.bincount(shown, minlength=len(counts))
        metrics[f"coverage@{k}"] = float(np.count_nonzero(times) / len(counts))
        metrics[f"popularity@{k}"] = float((times @ counts.astype(np.float64)) / len(shown))
    return metrics


def _cutoffs(ks: Sequence[int]) -> Sequence[int]:
    for k in ks:
        if k < 1:
            raise InputError(f"Cut-offs must be at least 1, got {k}.")
    return ks
