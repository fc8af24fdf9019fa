"""The end of a run in numbers: metrics.json and ranks.npz."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from spectran_jax import data, evaluation
from spectran_jax.config import Config
from spectran_jax.digest import params_digest
from spectran_jax.machine import made_with
from spectran_jax.recommend import recommend
from spectran_jax.training import catalogue, engine, loop
from spectran_jax.training.setup import Setup

TOP_K = 10


def protocol(setup: Setup) -> str:
    """Fingerprint of all that decides whether two runs' numbers may stand in one table."""
    config = setup.config
    temporal = config.data.split == "temporal"
    held = {}
    if config.data.holdout_items:  # drawn from those in training sequences, which are as long as max_length
        held = {"held_out": [config.data.holdout_items, config.data.holdout_seed, config.data.max_length]}
    return evaluation.protocol_fingerprint(
        data=setup.dataset.digest,
        split=config.data.split,
        cuts=[config.data.valid_time, config.data.test_time] if temporal else None,
        filter_seen=config.training.filter_seen,
        **held,
    )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What the final evaluation found for each target of the set that was evaluated last."""

    targets: data.Targets
    ranks: Int[np.ndarray, "U"]
    """int32, 0-based."""
    scores: Float[np.ndarray, "U k"]
    """float32, of the top items."""
    ids: Int[np.ndarray, "U k"]
    """int32 dense ids of the top items, best first."""
    item_singular_values: list[float]
    """Of the centred item vectors, descending."""


def final_metrics(setup: Setup, trained: loop.Trained) -> tuple[dict[str, Any], Ranked, dict[str, np.ndarray]]:
    """What metrics.json holds, the ranks behind it, and what ranks.npz holds.

    Figures, sizes and fingerprints, and the code, versions and machine that made them, with slices by popularity,
    coverage and counts beside it; and, for each set that was read, `rank_arrays`.
    """
    config, split = setup.config, setup.split
    metrics: dict[str, Any] = {
        "config": config.to_dict(),
        "dataset": dataset_summary(setup),
        "train": {
            "steps": trained.steps,
            "epochs": trained.epochs,
            "best_step": trained.best_step,
            "examples_per_second": trained.examples_per_second,
            "seconds": trained.seconds,
        },
        "parameters": parameter_counts(trained.params, setup.model.item_encoder.item_params, setup.dataset.num_items),
        "digest": params_digest(trained.params),
        "protocol": protocol(setup),
        "inputs": setup.inputs_digest,
        "made_with": made_with(),
    }
    sets = {"valid": split.valid, "test": split.test}
    table = trained.programs.table(trained.params, trained.frozen)
    filter_seen, k = config.training.filter_seen, min(TOP_K, setup.dataset.num_items)
    arrays: dict[str, np.ndarray] = {"item_counts": np.asarray(split.item_counts, np.int32)}
    for name in evaluated(config):
        targets = sets[name]
        ranks = trained.programs.rank(trained.params, table, setup.eval_batches(targets))
        metrics[name] = evaluation.metrics_from_ranks(ranks)
        metrics[f"{name}_slices"] = evaluation.metrics_by_popularity(ranks, targets.target, split.item_counts)
        arrays |= rank_arrays(name, targets, ranks)
    # Of the set that was read last, the test set where there is one, also what is recommended.
    scores, ids = recommend(setup, trained.params, targets.history, k, filter_seen=filter_seen, table=table)
    metrics[name] |= evaluation.recommendation_metrics(ids, split.item_counts, ks=(k,))
    ranked = Ranked(targets, ranks, scores, ids, engine.singular_values(trained.programs, table, trained.frozen))
    return metrics, ranked, arrays


def evaluated(config: Config) -> tuple[str, ...]:
    """The sets that are read at the end, in the order in which they are."""
    return ("valid", "test") if config.training.evaluate == "both" else (config.training.evaluate,)


def rank_arrays(name: str, targets: data.Targets, ranks: Int[np.ndarray, "U"]) -> dict[str, Int[np.ndarray, "U"]]:
    """int32 `NAME_user`, `NAME_item`, `NAME_rank` (0-based) and `NAME_history` (its length).

    Users and items are dense ids, the same for every run on the same data.
    """
    columns = {"user": targets.user, "item": targets.target, "rank": ranks, "history": targets.history.lengths}
    return {f"{name}_{column}": np.asarray(values, np.int32) for column, values in columns.items()}


def dataset_summary(setup: Setup) -> dict[str, Any]:
    """Counts of what was read, what was left out, and what is odd."""
    dataset, split = setup.dataset, setup.split
    summary: dict[str, Any] = {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": dataset.num_interactions,
        "timestamps": setup.timed,
        "cold_items": int((split.item_counts == 0).sum()),
        "tied_targets": dict(split.tied_targets),
        "dropped": dict(dataset.dropped),
    }
    if setup.embeddings is not None:
        summary["text"] = setup.embeddings.name
        summary["items_without_text"] = setup.embeddings.without_text
    if setup.spectrum is not None:
        summary["spectral_rank"] = len(setup.spectrum.sigma)
    return summary


def parameter_counts(params: Mapping[str, Any], item_params: Collection[str], num_items: int) -> dict[str, int]:
    """Elements in all, of the item encoder and of the backbone; of item tables, without the rows that are no item."""
    counts: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params)):
        rows = (num_items,) if catalogue.has_item_rows(path, item_params) else leaf.shape[:1]
        counts[str(path[0].key)] += int(np.prod((*rows, *leaf.shape[1:])))
    return {"total": sum(counts.values()), **{name: counts.get(name, 0) for name in ("item_encoder", "backbone")}}


def parameter_rows(params: Any) -> list[tuple[str, tuple[int, ...], str, int, str]]:
    """Name, shape, dtype, size and sharding of each parameter, for the tables."""
    return [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            tuple(leaf.shape),
            str(leaf.dtype),
            int(np.prod(leaf.shape)),
            str(getattr(leaf.sharding, "spec", "")),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
