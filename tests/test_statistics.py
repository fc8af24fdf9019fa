"""Tests, corrections and intervals against SciPy and by hand."""

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from spectran_jax import statistics
from spectran_jax.errors import InputError
from spectran_jax.metrics import gains, metrics_from_ranks
from spectran_jax.ranks import Ranks, read_ranks


def ranks(values, users=None):
    n = len(values)
    users = np.arange(n) if users is None else np.asarray(users)
    return Ranks(users, np.zeros(n, int), np.asarray(values), np.full(n, 3), np.ones(5, int))


def test_ndcg_by_user_averages_to_the_metric():
    values = np.random.default_rng(0).integers(0, 40, 100)
    for k in (10, 20):
        assert gains(f"ndcg@{k}", values).mean() == pytest.approx(metrics_from_ranks(values)[f"ndcg@{k}"])
    assert gains("ndcg@10", np.array([0, 1, 9, 10])).tolist() == pytest.approx(
        [1, 1 / math.log2(3), 1 / math.log2(11), 0]
    )


def test_mean_over_seeds_pairs_users():
    mean = statistics.mean_over_seeds([ranks([0, 99, 9]), ranks([99, 10, 9])])
    assert mean.tolist() == pytest.approx([0.5, 0, 1 / math.log2(11)])
    assert statistics.mean_over_seeds([ranks([2])]).tolist() == [0.5]
    with pytest.raises(InputError, match="other users or targets"):
        statistics.mean_over_seeds([ranks([0, 1]), ranks([0, 1], users=[0, 2])])


@pytest.mark.parametrize("n", [2, 5, 12])
def test_few_differences_are_tested_exactly(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=2**n).pvalue
    assert statistics.sign_flip_test(values) == pytest.approx(expected)


def test_the_smallest_exact_value_has_a_closed_form():
    assert statistics.sign_flip_test(np.ones(6)) == pytest.approx(2 / 2**6)
    assert statistics.sign_flip_test(np.array([1.0, -1.0])) == 1
    assert statistics.sign_flip_test(np.zeros(9)) == 1
    with pytest.raises(InputError, match="1 of 2 differences are not finite"):
        statistics.sign_flip_test(np.array([np.nan, 1.0]))


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
def test_many_differences_are_tested_as_scipy_does(shift):
    values = np.random.default_rng(3).normal(shift, 1, 200)
    ours = statistics.sign_flip_test(values, permutations=4999)
    theirs = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=4999, rng=np.random.default_rng(1)
    ).pvalue
    assert ours == pytest.approx(theirs, abs=5 * math.sqrt(0.25 / 4999))
    assert ours == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.03)
    assert ours == statistics.sign_flip_test(np.concatenate([values, np.zeros(500)]), permutations=4999)
    assert ours == statistics.sign_flip_test(-values, permutations=4999)


def test_sums_that_tie_with_the_observed_one_count():
    """Differences of one size: the sum is a binomial's, and 14 of 20 ties with many flips."""
    values = np.where(np.arange(20) < 14, 1, -1) / math.log2(3)
    expected = 2 * stats.binom.sf(13, 20, 0.5)
    assert statistics.sign_flip_test(values, permutations=20_000) == pytest.approx(expected, abs=0.012)


def test_draws_are_as_many_in_chunks(monkeypatch):
    """A share of flips is that of all of them, and an interval that of as many draws as were asked for."""
    values = np.random.default_rng(3).normal(0, 1, 200)
    whole = statistics.sign_flip_test(values, permutations=5000)
    monkeypatch.setattr(statistics, "_CHUNK", 200 * 4000)  # a second chunk of 1,000
    assert statistics.sign_flip_test(values, permutations=5000) == pytest.approx(whole, abs=0.04)
    monkeypatch.setattr(statistics, "_CHUNK", 200 * 300)
    assert statistics._means_of_draws(values[:, None], 1000, 0).shape == (1000, 1)


def test_a_clear_difference_reaches_the_floor(monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK", 1000)  # several chunks
    assert statistics.sign_flip_test(np.ones(100), permutations=199) == 1 / 200


def test_holm_by_hand():
    """The example of Holm's paper in the form of every textbook: 0.01, 0.04, 0.03, 0.005."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_keeps_the_family_wise_error():
    p = np.random.default_rng(0).random((2000, 5))
    wrong = np.mean([min(statistics.holm(row)) <= 0.1 for row in p])
    assert wrong == pytest.approx(1 - (1 - 0.1 / 5) ** 5, abs=0.02)


def test_t_interval_is_scipys():
    values = np.random.default_rng(0).normal(1, 2, 8)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert statistics.t_interval(values, 0.9)[1:] == pytest.approx((expected.low, expected.high))
    assert statistics.t_interval([1.0, 3.0]) == pytest.approx((2, 2 - 12.7062, 2 + 12.7062), abs=1e-4)
    with pytest.raises(InputError, match="needs at least 2, got 1"):
        statistics.t_interval([1.0])


def test_bootstrap_interval_is_scipys():
    values = np.random.default_rng(0).choice([0.0, 0.0, 0.0, 1.0, -0.5], 300)
    ours = statistics.bootstrap_interval(values, draws=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    low, high = theirs.confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert statistics.bootstrap_interval(np.full(7, 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_gain_interval_is_scipys_and_covers_large_gains():
    """Both means are drawn: with a gain of 200 % the rival's own spread is what makes most of the interval."""
    rng = np.random.default_rng(0)
    theirs = (rng.random(400) < 0.1).astype(float)
    ours = np.maximum(theirs, rng.random(400) < 0.2)
    found = statistics.gain_interval(ours, theirs, draws=4000)
    gain = lambda a, b: a.mean(-1) / b.mean(-1) - 1  # noqa: E731
    expected = stats.bootstrap(
        (ours, theirs), gain, paired=True, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(gain(ours, theirs))
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1 * width)
    held = statistics.bootstrap_interval(ours - theirs)
    assert width > 1.2 * (held.high - held.low) / theirs.mean()


@pytest.mark.parametrize("served", [1, 2, 3])
def test_a_rival_that_serves_hardly_anybody_has_no_upper_end(served):
    theirs = (np.arange(60) < served).astype(float)
    found = statistics.gain_interval(np.full(60, 0.5), theirs)
    assert found.mean == pytest.approx(30 / served - 1)
    assert found.low < found.mean
    assert not math.isfinite(found.high)


def test_two_methods_that_serve_nobody_have_no_gain():
    assert np.isnan(statistics.gain_interval(np.zeros(9), np.zeros(9))).all()
    with pytest.raises(InputError, match="no user to draw"):
        statistics.gain_interval(np.zeros(0), np.zeros(0))


def test_mean_ranks_share_ties_and_leave_out_gaps():
    scores = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.2], [np.nan, 1.0, 2.0]])
    assert statistics.mean_ranks(scores).tolist() == [2.0, 1.75, 2.25]
    assert np.isnan(statistics.mean_ranks(scores[2:])).all()


def test_too_few_seeds_says_how_many():
    assert "1 seed is too few for a test; give at least 3 --seeds, better 5" in statistics.too_few_seeds(1)
    assert statistics.too_few_seeds(3) == ""


def test_there_are_no_ranks():
    with pytest.raises(InputError, match="no such file"):
        read_ranks(Path("nowhere/ranks.npz"))


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes():
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def with_another_byte(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


COLUMNS = {f"test_{name}": np.arange(500, dtype=np.int32) for name in ("user", "item", "rank", "history")}
RANKS = npz_bytes(**COLUMNS, item_counts=np.arange(500))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"no archive", npy_bytes(), RANKS[:-30], *(with_another_byte(RANKS, at) for at in range(0, 1500, 60))],
)
def test_ranks_of_a_damaged_file(tmp_path, content):
    """Whatever is wrong, it is told as damage; a byte that nothing reads, such as a time, may be any."""
    path = tmp_path / "ranks.npz"
    path.write_bytes(content)
    told = None
    with contextlib.suppress(InputError):
        told = read_ranks(path).rank
    if told is None:
        with pytest.raises(InputError, match="is no file of ranks"):
            read_ranks(path)
    else:
        assert np.array_equal(told, COLUMNS["test_rank"])


def test_ranks_that_miss_a_column_say_which(tmp_path):
    path = tmp_path / "ranks.npz"
    path.write_bytes(npz_bytes(**COLUMNS))
    with pytest.raises(InputError, match="is no file of ranks: it has no item_counts"):
        read_ranks(path)
    with pytest.raises(InputError, match="holds no ranks of the valid set"):
        read_ranks(path, "valid")
