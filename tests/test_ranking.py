"""Ranks and top items against brute force, with ties, NaN, filters and chunks that do not divide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import AS_USERS_DO
from hypothesis import given, settings
from hypothesis import strategies as st

from spectran_jax.errors import InputError
from spectran_jax.metrics import metrics_from_ranks
from spectran_jax.ranking import (
    CHUNK_BYTES,
    TOP_CHUNK_BYTES,
    Shard,
    chunk_items,
    rank_targets,
    tie_tolerance,
    top_k,
)

USERS, ITEMS, DIMENSION, SEEN = 9, 53, 4, 6


@functools.partial(jax.jit, static_argnames="chunk")
def ranks_of(states, table, targets, seen=None, chunk=None):
    return rank_targets(states, table, targets, seen, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def top_of(states, table, k, seen=None, chunk=None):
    return top_k(states, table, k, seen, chunk=chunk)


def brute_ranks(states, table, targets, seen=None):
    """User by user, in exact integer arithmetic where the inputs are small integers."""
    result = []
    for user, target in enumerate(targets):
        scores = table.astype(np.float64) @ states[user].astype(np.float64)
        rivals = set(range(len(table))) - {target}
        if seen is not None:
            rivals -= set(seen[user].tolist())
        result.append(sum(scores[j] >= scores[target] for j in rivals))
    return np.array(result)


def brute_top(states, table, k, seen=None):
    scores = states.astype(np.float64) @ table.astype(np.float64).T
    if seen is not None:
        for user, row in enumerate(seen):
            scores[user, row[row >= 0]] = -np.inf
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, ids, axis=1)
    return values, np.where(values == -np.inf, -1, ids)


def integers(seed):
    """Small integers: scores are exact in float32, and ties abound."""
    rng = np.random.default_rng(seed)
    states = rng.integers(-2, 3, size=(USERS, DIMENSION)).astype(np.float32)
    table = rng.integers(-2, 3, size=(ITEMS, DIMENSION)).astype(np.float32)
    targets = rng.integers(ITEMS, size=USERS).astype(np.int32)
    seen = rng.integers(-1, ITEMS, size=(USERS, SEEN)).astype(np.int32)
    seen[:, 0] = seen[:, 1]  # bought twice
    seen[::2, 2] = targets[::2]  # bought before
    return states, table, targets, seen


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(None, False), (7, False), (7, True), (53, True)]))
def test_ranks_with_many_ties(seed, how):
    chunk, filtered = how
    states, table, targets, seen = integers(seed)
    seen = seen if filtered else None
    ranks = ranks_of(states, table, targets, seen, chunk=chunk)
    assert ranks.dtype == jnp.int32
    np.testing.assert_array_equal(ranks, brute_ranks(states, table, targets, seen))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(None, 5, False), (7, 10, True), (1, ITEMS, True)]))
def test_top_k_with_many_ties(seed, how):
    chunk, k, filtered = how
    states, table, _, seen = integers(seed)
    seen = seen if filtered else None
    scores, ids = top_of(states, table, k, seen, chunk=chunk)
    expected_scores, expected_ids = brute_top(states, table, k, seen)
    assert (scores.dtype, ids.dtype) == (jnp.float32, jnp.int32)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("order", ["random", "rising", "falling"])
@pytest.mark.parametrize(("k", "chunk"), [(3, 1024), (40, 1024), (40, 512), (300, 256), (3, 1000)])
def test_what_is_passed_over_does_not_matter(order, k, chunk):
    """However many blocks of a chunk beat the k-th best, and with ties between blocks and chunks."""
    rng = np.random.default_rng(k)
    states = rng.integers(-3, 4, size=(USERS, DIMENSION)).astype(np.float32)
    states[:, 0] = 1 + np.abs(states[:, 0])
    table = rng.integers(-9, 10, size=(4099, DIMENSION)).astype(np.float32)
    if order != "random":  # the first component decides
        table[:, 0] = np.sort(rng.integers(-500, 500, size=4099))[:: 1 if order == "rising" else -1]
    seen = rng.integers(-1, 4099, size=(USERS, 900)).astype(np.int32)
    for filtered in (None, seen):
        scores, ids = top_of(states, table, k, filtered, chunk=chunk)
        expected_scores, expected_ids = brute_top(states, table, k, filtered)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("better", [1, 7, 8, 9, 31, 32, 33, 64])
def test_each_block_that_holds_something_better_is_looked_at(better):
    """As many blocks of the second chunk as `better` hold one better item each, for one user of two."""
    rng = np.random.default_rng(better)
    table = np.zeros((2048, 2), np.float32)
    table[:1024, 0] = 1
    table[1024 + 16 * rng.permutation(64)[:better] + rng.integers(16, size=better), 0] = 2 + np.arange(better)
    states = np.eye(2, dtype=np.float32)
    scores, ids = top_of(states, table, 70, chunk=1024)
    expected_scores, expected_ids = brute_top(states, table, 70)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(ids, expected_ids)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_ranks_of_random_vectors_in_any_chunks():
    rng = np.random.default_rng(1)
    states, table = unit(rng.normal(size=(33, 48))), unit(rng.normal(size=(1009, 48)))
    targets = rng.integers(1009, size=33).astype(np.int32)
    expected = brute_ranks(states, table, targets)
    for chunk in (None, 100, 1008):
        np.testing.assert_array_equal(ranks_of(states, table, targets, chunk=chunk), expected)


@pytest.mark.parametrize(
    ("items", "dimension", "chunk"), [(2, 3, None), (17, 64, None), (997, 64, None), (997, 257, 129)]
)
def test_a_model_that_scores_all_items_alike_gets_nothing(items, dimension, chunk):
    rng = np.random.default_rng(dimension)
    vector = unit(rng.normal(size=(1, dimension)))
    states = unit(np.concatenate([vector, vector + rng.normal(size=(12, dimension))]))
    targets = rng.integers(items, size=13).astype(np.int32)
    ranks = np.asarray(ranks_of(states, np.repeat(vector, items, axis=0), targets, chunk=chunk))
    np.testing.assert_array_equal(ranks, items - 1)
    metrics = metrics_from_ranks(ranks, ks=[1])
    assert metrics["hr@1"] == metrics["ndcg@1"] == 0


@pytest.mark.parametrize("chunk", [None, 33])
def test_the_same_vector_ties_wherever_it_stands(chunk):
    rng = np.random.default_rng(2)
    distinct = unit(rng.normal(size=(50, 64)))
    of = rng.integers(50, size=501)
    of[:50] = np.arange(50)
    # A table is itself a product: the copies may differ in their last bit, as they do here.
    table = distinct[of] * (1 + rng.integers(-1, 2, size=(501, 1)) * np.finfo(np.float32).eps).astype(np.float32)
    states = unit(rng.normal(size=(40, 64)))
    targets = rng.integers(501, size=40).astype(np.int32)
    scores = states.astype(np.float64) @ distinct.astype(np.float64).T
    expected = (scores[:, of] >= scores[np.arange(40), of[targets]][:, None]).sum(axis=1) - 1
    np.testing.assert_array_equal(ranks_of(states, table, targets, chunk=chunk), expected)


def test_the_tolerance_is_rounding_and_no_more():
    states, vectors = jnp.full((1, 64), 2.0), jnp.full((1, 64), 0.5)
    assert 1e-7 < float(tie_tolerance(states, vectors)[0]) / (16.0 * 4.0) < 2e-6
    # The next representable scores far above it are told apart.
    table = jnp.asarray([[1.0], [1.0 - 1e-5], [1.0 + 1e-5]])
    np.testing.assert_array_equal(ranks_of(jnp.ones((3, 1)), table, jnp.arange(3)), [1, 2, 0])


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("where", ["state", "item", "overflow"])
def test_nan_is_told_not_ranked(chunk, where):
    states, table, targets, _ = integers(0)
    states, table = np.abs(states) + 1, np.abs(table) + 1
    broken = np.zeros(USERS, bool)
    if where == "state":
        states[3] = np.nan
        broken[3] = True
    elif where == "item":
        table[20, 1] = np.nan
        broken[:] = True
    else:
        states[5, :2] = [np.inf, -np.inf]
        broken[5] = True
    ranks = np.asarray(ranks_of(states, table, targets, chunk=chunk))
    np.testing.assert_array_equal(ranks == -1, broken)
    scores, ids = map(np.asarray, top_of(states, table, 5, chunk=chunk))
    np.testing.assert_array_equal(np.isnan(scores), np.repeat(broken[:, None], 5, axis=1))
    np.testing.assert_array_equal(ids == -1, np.repeat(broken[:, None], 5, axis=1))


def test_all_scores_of_a_large_chunk_are_nan():
    """As many NaN as a chunk can hold do not run over."""
    table = np.full((70_000, 1), np.nan, np.float32)
    states, targets = np.ones((2, 1), np.float32), np.array([0, 69_999], np.int32)
    np.testing.assert_array_equal(ranks_of(states, table, targets, chunk=10**6), -1)
    np.testing.assert_array_equal(ranks_of(states, np.ones_like(table), targets, chunk=10**6), 69_999)
    np.testing.assert_array_equal(ranks_of(states, table * 0 + np.inf, targets), -1)


def test_a_target_whose_score_is_infinite_has_no_rank():
    table = np.array([[1e30], [1.0], [2e30]], np.float32)
    np.testing.assert_array_equal(
        ranks_of(np.full((3, 1), 1e30, np.float32), table, np.arange(3, dtype=np.int32)), [-1, 2, -1]
    )


def test_a_target_whose_rounding_is_not_finite_has_no_rank():
    """A zero vector scores 0 with a state whose length overflows, and what rounding may change in that is NaN."""
    states, table = np.full((2, 2), 1e25, np.float32), np.array([[0, 0], [1, 1]], np.float32)
    np.testing.assert_array_equal(ranks_of(states, table, np.arange(2, dtype=np.int32)), [-1, -1])


def test_a_target_is_never_filtered():
    states, table, targets, _ = integers(4)
    everything = np.tile(np.arange(ITEMS, dtype=np.int32), (USERS, 1))
    np.testing.assert_array_equal(ranks_of(states, table, targets, everything), 0)
    np.testing.assert_array_equal(
        ranks_of(states, table, targets, targets[:, None]), brute_ranks(states, table, targets)
    )


def test_where_all_items_are_seen_nothing_is_recommended():
    states, table, _, _ = integers(4)
    all_but_two = np.tile(np.arange(ITEMS - 2, dtype=np.int32), (USERS, 1))
    scores, ids = map(np.asarray, top_of(states, table, 5, all_but_two, chunk=16))
    assert (np.sort(ids[:, :2], axis=1) == [ITEMS - 2, ITEMS - 1]).all()
    assert (ids[:, 2:] == -1).all()
    assert (scores[:, 2:] == -np.inf).all()


@pytest.mark.parametrize("recall", [None, 0.9])
def test_rows_beyond_the_catalogue_are_no_items(recall):
    """A zero row would score more than any item whose score is negative."""
    table = jnp.concatenate([-1.0 - jnp.arange(20.0)[:, None], jnp.zeros((4, 1))])
    scores, ids = top_k(jnp.ones((2, 1)), table, 5, recall=recall, chunk=7, shard=Shard((), 20))
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert scores.tolist() == [[-1, -2, -3, -4, -5]] * 2


def test_the_rank_is_the_place_in_the_list():
    """What is recommended and what is evaluated are the same order."""
    rng = np.random.default_rng(5)
    states, table = unit(rng.normal(size=(20, 16))), unit(rng.normal(size=(300, 16)))
    targets = rng.integers(300, size=20).astype(np.int32)
    _, ids = top_of(states, table, 300, chunk=177)
    np.testing.assert_array_equal(
        np.argmax(np.asarray(ids) == targets[:, None], axis=1), ranks_of(states, table, targets)
    )


def test_scores_are_held_a_chunk_at_a_time():
    """The compiler's own account: temporaries follow the chunk, and the table is not copied."""
    batch, items, dimension = 256, 100_003, 32
    arguments = (
        jax.ShapeDtypeStruct((batch, dimension), jnp.float32),
        jax.ShapeDtypeStruct((items, dimension), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    compiled = jax.jit(rank_targets).lower(*arguments).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    chunk_bytes = 4 * chunk_items(batch, CHUNK_BYTES) * batch
    assert 4 * chunk_bytes < 4 * batch * items
    assert used < 4 * chunk_bytes


def test_the_best_of_millions_take_no_more_memory():
    """Temporaries of top_k do not follow the number of items."""

    def used(items, k):
        states, table = (jax.ShapeDtypeStruct((n, 64), "float32") for n in (256, items))
        compiled = jax.jit(lambda s, t: top_k(s, t, k)).lower(states, table).compile(AS_USERS_DO)
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = used(200_000, 100), used(2_000_000, 100)
    assert large <= 1.01 * small < 4 * TOP_CHUNK_BYTES, (small, large)


def test_approximate_search_is_exact_on_cpu():
    """XLA sorts there. On all hardware the list is sorted, without repetitions, and its scores are those of its ids."""
    states, table, _, seen = integers(9)
    exact, _ = top_of(states, table, 8, seen)
    scores, ids = jax.jit(lambda s, t, e: top_k(s, t, 8, e, chunk=20, recall=0.9))(states, table, seen)
    np.testing.assert_array_equal(scores, exact)
    np.testing.assert_array_equal(scores, np.einsum("bd,bkd->bk", states, table[ids]))
    assert all(len(set(row)) == 8 for row in np.asarray(ids).tolist())


@pytest.mark.parametrize("recall", [0.0, -0.5, 1.01, float("nan")])
def test_recall_outside_its_range(recall):
    with pytest.raises(InputError, match=f"recall must lie above 0 and be at most 1, got {recall}"):
        top_k(np.ones((2, 3)), np.ones((5, 3)), 2, recall=recall)


def test_chunks_follow_the_batch():
    assert chunk_items(256, CHUNK_BYTES) % 128 == 0
    assert chunk_items(512, CHUNK_BYTES) == chunk_items(256, CHUNK_BYTES) // 2
    assert chunk_items(10**9, CHUNK_BYTES) == 128


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_catalogue(k):
    with pytest.raises(InputError, match=f"k must lie between 1 and the number of items, 5, got {k}"):
        top_k(np.ones((2, 3)), np.ones((5, 3)), k)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": np.ones((5, 2))}, r"must share d, with N at least 1; got \(2, 3\) and \(5, 2\)"),
        ({"table": np.ones((0, 3))}, "N at least 1"),
        ({"targets": np.zeros(3, np.int32)}, r"targets must have the shape \(2,\) of the states, got \(3,\)"),
        ({"seen": np.zeros((3, 1), np.int32)}, r"one row for each of the 2 states, got \(3, 1\)"),
        ({"chunk": 0}, "chunk must be at least 1 item, got 0"),
    ],
)
def test_wrong_shapes(changes, message):
    arguments = {"states": np.ones((2, 3)), "table": np.ones((5, 3)), "targets": np.zeros(2, np.int32)}
    with pytest.raises(InputError, match=message):
        rank_targets(**{**arguments, **changes})
