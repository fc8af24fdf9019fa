"""Samplers against the distribution they claim, exclusions against sets, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import AS_USERS_DO
from scipy import stats

from spectran_jax import negatives
from spectran_jax.config import Config, ObjectiveConfig
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.layout import SequenceLayout
from spectran_jax.negatives.alias import UNIT

COUNTS = np.array([0, 40, 1, 7, 0, 1, 300, 12, 5, 0])
DRAWS = 60_000
TARGETS = np.repeat(np.arange(len(COUNTS)), COUNTS).astype(np.int32)


def sampler_of(name, count=DRAWS, power=0.75, counts=COUNTS):
    if name == "uniform":  # which `build` allows no more draws than items
        return (sampler := negatives.Uniform(count)), sampler.arrays(counts)
    config = ObjectiveConfig(sampling=name, negatives=count, popularity_power=power)
    return (sampler := negatives.build(config, counts)), sampler.arrays(counts)


def expected(name, power=0.75):
    shares = {"uniform": COUNTS > 0, "popularity": np.where(COUNTS > 0, COUNTS.astype(float) ** power, 0)}
    share = shares.get(name, COUNTS).astype(float)
    return share / share.sum()


def drawn(sampler, arrays, seed=0, weight=None):
    weight = np.ones(len(TARGETS), np.float32) if weight is None else weight
    draw = jax.jit(lambda key, arrays, targets, weight: sampler.draw(key, arrays, targets=targets, weight=weight))
    return np.asarray(draw(jax.random.PRNGKey(seed), arrays, TARGETS, weight))


@pytest.mark.parametrize("name", negatives.SAMPLERS)
def test_draws_follow_the_distribution(name):
    sampler, arrays = sampler_of(name)
    ids = drawn(sampler, arrays)
    assert ids.dtype == np.int32
    assert ids.shape == (DRAWS,)
    share = expected(name)
    counts = np.bincount(ids, minlength=len(COUNTS))
    assert counts[share == 0].sum() == 0, "an item that never occurs in training is no negative"
    assert stats.chisquare(counts[share > 0], DRAWS * share[share > 0]).pvalue > 1e-3
    np.testing.assert_array_equal(ids, drawn(sampler, arrays))
    assert (ids != drawn(sampler, arrays, seed=1)).any()


@pytest.mark.parametrize("name", negatives.SAMPLERS)
def test_log_q_is_the_logarithm_of_the_distribution(name):
    sampler, arrays = sampler_of(name)
    with np.errstate(divide="ignore"):
        log = np.log(expected(name))
    ids = np.arange(len(COUNTS)).reshape(2, 5)
    values = jax.jit(sampler.log_q)(arrays, ids)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, log.reshape(2, 5), rtol=1e-6)
    assert np.isneginf(jax.jit(sampler.log_q)(arrays, jnp.asarray([-1, len(COUNTS), 0]))).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_power_of_popularity(power):
    sampler, arrays = sampler_of("popularity", power=power)
    trained = np.flatnonzero(COUNTS)
    np.testing.assert_allclose(
        np.exp(sampler.log_q(arrays, trained)), expected("popularity", power)[trained], rtol=1e-5
    )


def test_draws_of_the_batch_are_targets_of_its_supervised_positions():
    sampler, arrays = sampler_of("in_batch")
    weight = np.zeros(len(TARGETS), np.float32)
    weight[[3, 41, 47]] = 1  # items 1, 3, 3
    counts = np.bincount(drawn(sampler, arrays, weight=weight), minlength=len(COUNTS))
    assert set(np.flatnonzero(counts)) == {1, 3}
    assert stats.chisquare(counts[[1, 3]], [DRAWS / 3, 2 * DRAWS / 3]).pvalue > 1e-3
    nothing = drawn(sampler, arrays, weight=0 * weight)
    assert set(nothing) <= set(TARGETS)


def weights_in(table):
    """What the cells of an alias table hold of each item, from the table alone."""
    held = table.threshold.astype(np.int64)
    np.add.at(held, table.alias, UNIT - table.threshold.astype(np.int64))
    return held


@pytest.mark.parametrize("case", ["zipf", "equal", "large", "one", "cold", "extreme", "single", "halves"])
def test_an_alias_table_holds_exactly_its_weights(case):
    rng = np.random.default_rng(0)
    weights = {
        "zipf": 1 / np.arange(1, 5001) ** 1.1,
        "equal": np.ones(777),
        "large": rng.zipf(1.3, 10**6).astype(float),
        "one": np.eye(50)[20],
        "cold": np.where(rng.random(3000) < 0.5, 0, rng.pareto(1.0, 3000)),
        "extreme": np.r_[1e-30, 1.0, 1e-12, np.zeros(5), 1e30],
        "single": np.ones(1),
        "halves": np.r_[np.full(8, 0.5), np.full(8, 1.5), np.zeros(4)],
    }[case]
    probabilities = weights / weights.sum()
    table = negatives.alias_table(probabilities)
    np.testing.assert_array_equal(weights_in(table), table.weight)
    assert table.weight.sum() == len(weights) * UNIT
    assert ((table.weight > 0) == (weights > 0)).all()
    np.testing.assert_allclose(table.weight / (len(weights) * UNIT), probabilities, rtol=1e-9, atol=1.0 / UNIT)


def test_the_arrays_of_popularity():
    arrays = negatives.Popularity(8, 0.75).arrays(np.random.default_rng(0).zipf(1.3, 10**6))
    assert {name: (a.shape, str(a.dtype)) for name, a in arrays.items()} == {
        "threshold": ((10**6,), "uint32"),
        "alias": ((10**6,), "int32"),
        "log_q": ((10**6,), "float32"),
        "items": ((), "int32"),
    }


@pytest.mark.parametrize("name", negatives.SAMPLERS)
def test_rows_behind_the_last_item_change_nothing(name):
    sampler, arrays = sampler_of(name, count=200)
    longer = {k: np.append(a, [0] * 6).astype(a.dtype) if k in sampler.item_arrays else a for k, a in arrays.items()}
    np.testing.assert_array_equal(drawn(sampler, longer), drawn(sampler, arrays))
    ids = np.arange(-3, 20)
    np.testing.assert_array_equal(sampler.log_q(longer, ids), sampler.log_q(arrays, ids))


def test_draws_are_pinned():
    """Integers alone decide, so that every backend draws these."""
    sampler, arrays = sampler_of("popularity", count=8)
    by_hand = negatives.alias_table(expected("popularity"))
    cell_key, level_key = jax.random.split(jax.random.PRNGKey(5))
    cells = np.asarray(jax.random.randint(cell_key, (8,), 0, len(COUNTS), jnp.int32))
    levels = np.asarray(jax.random.bits(level_key, (8,), jnp.uint32))
    chosen = [c if level < by_hand.threshold[c] else by_hand.alias[c] for c, level in zip(cells, levels, strict=True)]
    np.testing.assert_array_equal(drawn(sampler, arrays, seed=5), chosen)


def packed(rng, rows=3, length=40, catalogue=30):
    """Rows of several histories, the last of each row followed by padding; segments up to 38 cross a word of bits."""
    item_ids = rng.integers(catalogue, size=(rows, length)).astype(np.int32)
    targets = rng.integers(catalogue, size=(rows, length)).astype(np.int32)
    segment = np.stack([np.arange(1, length + 1), 1 + np.arange(length) // 7, 1 + np.arange(length) // 20])
    mask = np.ones((rows, length), bool)
    mask[:, -2:] = False
    segment[~mask] = 0
    layout = SequenceLayout(mask=mask, segment=segment.astype(np.int32), position=np.zeros_like(item_ids))
    return item_ids, targets, layout


def history(item_ids, targets, layout, row, place):
    if not layout.mask[row, place]:
        return set()
    same = (layout.segment[row] == layout.segment[row, place]) & layout.mask[row]
    return set(item_ids[row, same]) | set(targets[row, same])


def test_a_history_is_excluded_as_a_set_says():
    rng = np.random.default_rng(0)
    item_ids, targets, layout = packed(rng)
    ids = np.r_[rng.integers(30, size=50), 29, 29].astype(np.int32)
    excluded = np.asarray(jax.jit(negatives.exclude_history)(item_ids, targets, layout, ids))
    assert excluded.dtype == bool
    log_q = np.log(rng.dirichlet(np.ones(30))).astype(np.float32)
    log_q[7] = -np.inf
    mass = np.asarray(jax.jit(negatives.history_mass)(item_ids, targets, layout, log_q[item_ids], log_q[targets]))
    for row, place in np.ndindex(item_ids.shape):
        own = history(item_ids, targets, layout, row, place)
        np.testing.assert_array_equal(excluded[row, place], np.isin(ids, list(own)))
        np.testing.assert_allclose(mass[row, place], sum(np.exp(log_q[list(own)])), rtol=1e-5)
    assert excluded.any()
    assert not excluded.all()
    assert not mass[~layout.mask].any()


def test_all_that_there_is_has_mass_one():
    item_ids = np.arange(20, dtype=np.int32)[None]
    ones = np.ones_like(item_ids)
    log_q = np.full((1, 20), -np.log(20), np.float32)
    layout = SequenceLayout(mask=ones > 0, segment=ones, position=0 * ones)
    mass = negatives.history_mass(item_ids, item_ids[:, ::-1], layout, log_q, log_q)
    assert (np.asarray(mass) <= 1).all()
    np.testing.assert_allclose(mass, 1, rtol=1e-6)


def test_a_positive_is_excluded_for_its_own_position():
    excluded = jax.jit(negatives.exclude_positive)(jnp.asarray([3, 4]), jnp.asarray([4, 3, 3]))
    np.testing.assert_array_equal(excluded, [[False, True, True], [True, False, False]])


def test_excluding_holds_no_more_than_the_result():
    """By the compiler's account."""
    ids = jax.ShapeDtypeStruct((32, 100), jnp.int32)
    layout = SequenceLayout(jax.ShapeDtypeStruct((32, 100), bool), ids, ids)
    lowered = jax.jit(negatives.exclude_history).lower(ids, ids, layout, jax.ShapeDtypeStruct((512,), jnp.int32))
    assert lowered.compile(AS_USERS_DO).memory_analysis().temp_size_in_bytes <= 32 * 100 * 512


@pytest.mark.parametrize("name", negatives.SAMPLERS)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros(4, int), "None of the 4 items occurs in training"),
        (np.zeros(0, int), "None of the 0 items occurs in training"),
        (np.array([3, -1, 2]), r"Counts must be finite and at least 0, item 1 has -1"),
        (np.array([3, 1, np.nan]), r"item 2 has nan"),
        (np.array([np.inf, 1]), r"item 0 has inf"),
        (np.ones((2, 2), int), r"one number an item, got the shape \(2, 2\)"),
    ],
)
def test_counts_that_nothing_can_be_drawn_by(name, counts, message):
    config = ObjectiveConfig(sampling=name, negatives=2)
    for call in (lambda: negatives.build(config, counts), lambda: sampler_of(name, 2)[0].arrays(counts)):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "unifrom"}, r"Unknown sampling 'unifrom'.*in_batch, popularity, uniform.*Did you mean 'uniform'"),
        ({"negatives": 8}, "--negatives must lie between 1 and the number of items in training, 7, got 8"),
    ],
)
def test_bad_configuration(changes, message):
    with pytest.raises(InputError, match=message):
        negatives.build(ObjectiveConfig(**{"negatives": 5, **changes}), COUNTS)


@pytest.mark.parametrize("flag", ["popularity_power=2.5", "sampling=batch", "mask_negatives=all"])
def test_flags_are_checked(flag):
    name, value = flag.split("=")
    with pytest.raises(InputError, match=f"--{name} must be"):
        check(Config().replace(**{name: float(value) if name == "popularity_power" else value}))
    assert {"popularity", "in_batch"} <= set(negatives.SAMPLERS)
