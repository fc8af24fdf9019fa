"""Groups of targets, against the slices of a run's metrics."""

import numpy as np

from spectran_jax.metrics import metrics_by_popularity
from spectran_jax.ranks import Ranks
from spectran_jax.studies.popularity import groups_of, target_groups

RNG = np.random.default_rng(0)
COUNTS = np.concatenate([RNG.integers(1, 90, 40), [0] * 5])
TARGETS = RNG.integers(0, 45, 300)


def test_groups_share_out_the_users():
    groups = target_groups(TARGETS, COUNTS)
    parts = np.stack([groups[name] for name in ("head", "middle", "tail", "cold")])
    assert (parts.sum(axis=0) == 1).all()
    assert groups["cold"].tolist() == (COUNTS[TARGETS] == 0).tolist()
    assert (groups["warm"] ^ groups["cold"]).all()
    assert groups["all"].all()
    assert COUNTS[TARGETS[groups["head"]]].min() >= COUNTS[TARGETS[groups["middle"]]].max()


def test_groups_are_the_slices_of_metrics():
    ranks = RNG.integers(0, 45, 300).astype(np.int32)
    slices = metrics_by_popularity(ranks, TARGETS, COUNTS)
    groups = groups_of(Ranks(np.arange(300), TARGETS, ranks, np.ones(300), COUNTS))
    for name, values in slices.items():
        assert groups[name].sum() == values["users"]
        assert (ranks[groups[name]] < 10).mean() == values["hr@10"]
