"""How well targets are ranked by how often training saw them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int

from spectran_jax.metrics import gains, popularity_classes
from spectran_jax.ranks import Ranks
from spectran_jax.studies.tables import Spread, spread

CLASSES = ("head", "middle", "tail", "cold")
"""See `metrics.popularity_classes`."""


def target_groups(targets: Int[np.ndarray, "U"], counts: Int[np.ndarray, "N"]) -> dict[str, Bool[np.ndarray, "U"]]:
    """Who belongs to which group, by the popularity of the target: head, middle, tail and cold, which share out the
    users between them; `warm`, all but cold; and `all`."""
    targets = np.asarray(targets)
    groups = {name: mask[targets] for name, mask in popularity_classes(counts).items()}
    return {**groups, "warm": ~groups["cold"], "all": np.ones(len(targets), bool)}


def groups_of(ranks: Ranks) -> dict[str, Bool[np.ndarray, "U"]]:
    """`target_groups` of a run's targets."""
    return target_groups(ranks.item, ranks.item_counts)


def group_metric(runs: Iterable[Ranks], group: str, metric: str) -> Spread | None:
    """A metric (`metrics.gains`) of one group over runs, one a seed; None where nobody is in it."""
    values = []
    for ranks in runs:
        chosen = ranks.rank[groups_of(ranks)[group]]
        if len(chosen):
            values.append(float(np.mean(gains(metric, chosen))))
    return spread(values)
