"""Groups of targets and each user's gain, against the metrics of whole runs."""

import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.metrics import metrics_by_popularity, metrics_from_ranks
from spectran_jax.studies.popularity import gains, read_ranks, target_groups

RNG = np.random.default_rng(0)
COUNTS = np.concatenate([RNG.integers(1, 90, 40), [0] * 5])
TARGETS = RNG.integers(0, 45, 300)
RANKS = RNG.integers(0, 45, 300).astype(np.int32)


def test_groups_share_out_the_users():
    groups = target_groups(TARGETS, COUNTS)
    parts = np.stack([groups[name] for name in ("head", "middle", "tail", "cold")])
    assert (parts.sum(axis=0) == 1).all()
    assert groups["cold"].tolist() == (COUNTS[TARGETS] == 0).tolist()
    assert (groups["warm"] ^ groups["cold"]).all() and groups["all"].all()
    assert COUNTS[TARGETS[groups["head"]]].min() >= COUNTS[TARGETS[groups["middle"]]].max()


def test_mean_gains_are_the_metrics():
    slices = metrics_by_popularity(RANKS, TARGETS, COUNTS)
    each = gains(RANKS)
    for group, mask in target_groups(TARGETS, COUNTS).items():
        expected = slices[group] if group in slices else metrics_from_ranks(RANKS[mask])
        for name, values in each.items():
            assert values[mask].mean() == pytest.approx(expected[name])


def test_ranks_come_back_as_they_were(tmp_path):
    np.savez(tmp_path / "ranks.npz", user=np.arange(300), target=TARGETS, rank=RANKS)
    found = read_ranks(tmp_path)
    assert np.array_equal(found.target, TARGETS) and np.array_equal(found.rank, RANKS)
    (tmp_path / "ranks.npz").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"ranks\.npz: ranks can't be read"):
        read_ranks(tmp_path)
    with pytest.raises(InputError, match="train the run again"):
        read_ranks(tmp_path / "nothing")
