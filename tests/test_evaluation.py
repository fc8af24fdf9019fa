"""Metrics against sums written out, evaluation over batches, and the digests."""

import hashlib
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from spectran_jax import evaluation
from spectran_jax.data import EvalBatches, Histories, Targets
from spectran_jax.digest import json_digest, params_digest
from spectran_jax.errors import InputError, RunError
from spectran_jax.metrics import (
    metrics_by_popularity,
    metrics_from_ranks,
    popularity_classes,
    recommendation_metrics,
)
from spectran_jax.ranking import rank_targets, top_k

# Metrics.


def test_metrics_of_known_ranks():
    metrics = metrics_from_ranks(np.array([0, 4, 5, 100], np.int32))
    assert metrics == pytest.approx(
        {
            "hr@5": 2 / 4,
            "ndcg@5": (1 + 1 / math.log2(6)) / 4,
            "hr@10": 3 / 4,
            "ndcg@10": (1 + 1 / math.log2(6) + 1 / math.log2(7)) / 4,
            "hr@20": 3 / 4,
            "ndcg@20": (1 + 1 / math.log2(6) + 1 / math.log2(7)) / 4,
            "hr@50": 3 / 4,
            "ndcg@50": (1 + 1 / math.log2(6) + 1 / math.log2(7)) / 4,
            "mrr": (1 + 1 / 5 + 1 / 6 + 1 / 101) / 4,
        },
        rel=1e-12,
    )
    assert json.loads(json.dumps(metrics)) == metrics


@given(st.lists(st.integers(0, 200), min_size=1, max_size=50), st.integers(1, 60))
def test_metrics_are_bounded_and_grow_with_k(ranks, k):
    metrics = metrics_from_ranks(np.array(ranks), ks=(k, k + 1))
    assert 0 <= metrics[f"ndcg@{k}"] <= metrics[f"hr@{k}"] <= metrics[f"hr@{k + 1}"] <= 1
    assert metrics[f"ndcg@{k}"] <= metrics[f"ndcg@{k + 1}"]
    assert 0 < metrics["mrr"] <= 1
    by_hand = sum(1 / math.log2(r + 2) for r in ranks if r < k) / len(ranks)
    assert metrics[f"ndcg@{k}"] == pytest.approx(by_hand, rel=1e-12)
    assert metrics[f"hr@{k}"] == pytest.approx(sum(r < k for r in ranks) / len(ranks), rel=1e-12)


def test_perfect_ranks():
    assert set(metrics_from_ranks(np.zeros(3, np.int32)).values()) == {1.0}


@pytest.mark.parametrize(
    ("ranks", "ks", "message"),
    [
        ([], (5,), "at least one rank"),
        ([[1]], (5,), r"got the shape \(1, 1\)"),
        ([3, -1], (5,), "count from 0, got -1 at place 1"),
        ([3], (0,), "Cut-offs must be at least 1, got 0"),
    ],
)
def test_ranks_that_are_none(ranks, ks, message):
    with pytest.raises(InputError, match=message):
        metrics_from_ranks(np.array(ranks), ks)


def test_popularity_classes_of_ten_trained_items():
    counts = np.array([5, 0, 9, 1, 1, 7, 2, 2, 0, 3, 1, 1])  # ten trained: two head, three middle, five tail
    classes = {name: np.flatnonzero(mask).tolist() for name, mask in popularity_classes(counts).items()}
    # Items 6 and 7 were bought equally often; the lower id goes before.
    assert classes == {"head": [2, 5], "middle": [0, 6, 9], "tail": [3, 4, 7, 10, 11], "cold": [1, 8]}


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60))
def test_popularity_classes_part_the_catalogue(counts):
    counts = np.array(counts)
    classes = popularity_classes(counts)
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in classes.values()), 1)
    np.testing.assert_array_equal(classes["cold"], counts == 0)
    for more, less in (("head", "middle"), ("middle", "tail"), ("head", "tail")):
        if classes[more].any() and classes[less].any():
            assert counts[classes[more]].min() >= counts[classes[less]].max()
    assert classes["head"].any() == (counts > 0).any()


def test_slices_are_the_metrics_of_their_users():
    counts = np.array([5, 0, 9, 1, 1, 7, 2, 2, 0, 3, 1, 1])
    targets = np.array([2, 5, 2, 1, 0, 9])
    ranks = np.array([0, 30, 3, 7, 12, 2], np.int32)
    slices = metrics_by_popularity(ranks, targets, counts)
    assert {name: values["users"] for name, values in slices.items()} == {"head": 3, "middle": 2, "tail": 0, "cold": 1}
    assert slices["head"] == {"users": 3, **metrics_from_ranks(ranks[:3])}
    assert slices["middle"] == {"users": 2, **metrics_from_ranks(ranks[4:])}
    assert slices["cold"] == {"users": 1, **metrics_from_ranks(ranks[3:4])}
    assert slices["tail"] == {"users": 0}
    json.dumps(slices, allow_nan=False)
    with pytest.raises(InputError, match=r"Each rank needs its target, got the shapes \(6,\) and \(5,\)"):
        metrics_by_popularity(ranks, targets[:5], counts)


def test_recommendations_are_counted():
    ids = np.array([[0, 1, 2], [0, 3, -1]])
    counts = np.array([10, 4, 1, 2, 0, 0, 0, 0])
    metrics = recommendation_metrics(ids, counts, ks=(1, 3))
    assert metrics == {
        "coverage@1": 1 / 8,
        "popularity@1": 10.0,
        "coverage@3": 4 / 8,
        "popularity@3": pytest.approx((10 + 4 + 1 + 10 + 2) / 5),
    }
    with pytest.raises(InputError, match="Lists of 3 items have no first 4"):
        recommendation_metrics(ids, counts, ks=(4,))
    with pytest.raises(InputError, match="No list holds any item"):
        recommendation_metrics(np.full((2, 3), -1), counts, ks=(2,))


# Evaluation over batches.

USERS, ITEMS, LENGTH, DIMENSION, BATCH = 45, 31, 3, 8, 2


class Model(NamedTuple):
    states: np.ndarray
    table: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    return Model(
        states=rng.normal(size=(USERS, DIMENSION)).astype(np.float32),
        table=rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32),
        targets=rng.integers(ITEMS, size=USERS).astype(np.int32),
        numbers=(10 + 3 * np.arange(USERS)).astype(np.int32),
    )


@pytest.fixture
def mesh():
    return Mesh(np.asarray(jax.devices()[:1]), ("data",))


def batches(model, size=BATCH):
    """The history of a user is one item, the number of the row of their state."""
    histories = Histories.from_lists([[row] for row in range(len(model.numbers))])
    return EvalBatches(Targets(histories, model.targets, model.numbers), max_length=LENGTH, batch_size=size)


def states_of(states, batch):
    return states[batch.item_ids[:, 0]]


def rank_step(model):
    states, table = jax.device_put((model.states, model.table))
    return jax.jit(lambda batch: rank_targets(states_of(states, batch), table, batch.targets))


@pytest.mark.parametrize("size", [2, 7, 45, 64])
def test_every_user_gets_the_rank_that_brute_force_gives(model, mesh, size):
    scores = model.states.astype(np.float64) @ model.table.T
    expected = (scores >= scores[np.arange(USERS), model.targets][:, None]).sum(axis=1) - 1
    done = []
    step = rank_step(model)
    with jax.transfer_guard("disallow"):
        ranks = evaluation.evaluate(step, batches(model, size), mesh, done.append)
    assert type(ranks) is np.ndarray
    assert ranks.dtype == np.int32
    np.testing.assert_array_equal(ranks, expected)
    assert done[-1] == -(-USERS // size)
    assert done == sorted(set(done))


def test_results_are_fetched_many_batches_at_a_time(model, mesh, monkeypatch):
    """Results wait on the device: no batch waits for the one before it."""
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(tree)) or get(tree))
    evaluation.evaluate(rank_step(model), batches(model), mesh)
    assert fetched == [16, 7]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_batches_are_under_way_while_results_are_fetched(model, mesh, monkeypatch, every):
    started, fetched, done = [], [], []
    get = jax.device_get

    def fetch(tree):
        fetched.append((len(started), len(tree)))
        return get(tree)

    monkeypatch.setattr(jax, "device_get", fetch)
    step = rank_step(model)
    users, _ = evaluation.per_user(
        lambda batch: started.append(0) or step(batch),
        batches(model, 5),  # nine
        mesh,
        done.append,
        fetch_every=every,
    )
    np.testing.assert_array_equal(users, model.numbers)
    expected = {1: [(n, 1) for n in (*range(2, 10), 9)], 3: [(6, 3), (9, 3), (9, 3)], 100: [(9, 9)]}
    assert fetched == expected[every]
    assert done == np.cumsum([count for _, count in fetched]).tolist()


def test_nan_scores_are_an_error_that_names_the_user(model, mesh):
    model.states[[4, 9]] = np.nan
    with pytest.raises(RunError, match=r"The scores of 2 of 45 users are not finite, the first of them user number 22"):
        evaluation.evaluate(rank_step(model), batches(model), mesh)


def test_nan_on_a_row_that_fills_up_is_no_error(model, mesh):
    step = jax.jit(lambda batch: jnp.where(batch.user < 0, -1, 3))
    np.testing.assert_array_equal(evaluation.evaluate(step, batches(model), mesh), 3)


def test_no_users(model, mesh):
    nobody = batches(model._replace(targets=model.targets[:0], numbers=model.numbers[:0]))
    with pytest.raises(InputError, match="no user to evaluate"):
        evaluation.evaluate(lambda batch: batch.user, nobody, mesh)


def test_any_result_can_be_gathered(model, mesh):
    states, table = jax.device_put((model.states, model.table))
    step = jax.jit(lambda batch: {"top": top_k(states_of(states, batch), table, 4), "user": batch.user})
    users, result = evaluation.per_user(step, batches(model, 7), mesh)
    np.testing.assert_array_equal(users, model.numbers)
    np.testing.assert_array_equal(result["user"], model.numbers)
    expected = np.argsort(-(model.states.astype(np.float64) @ model.table.T), axis=1)[:, :4]
    np.testing.assert_array_equal(result["top"][1], expected)
    assert type(result["top"][0]) is np.ndarray


# Digests.


def test_protocols_differ_by_any_field():
    fields = {"data": "ab12", "split": "leave_one_out", "k_core": 5, "filter_seen": False}
    one = evaluation.protocol_fingerprint(**fields)
    assert len(one) == 64
    assert int(one, 16) >= 0
    assert one == evaluation.protocol_fingerprint(**dict(reversed(fields.items())))
    others = [
        evaluation.protocol_fingerprint(**{**fields, name: value})
        for name, value in {
            "data": "ab13",
            "split": "temporal",
            "k_core": 6,
            "filter_seen": True,
            "ties": "optimistic",
            "new": None,
        }.items()
    ]
    assert len({one, *others}) == 7


def test_canonical_json():
    assert json_digest({"b": (1, 2), "a": "é"}) == hashlib.sha256('{"a":"é","b":[1,2]}'.encode()).hexdigest()
    assert json_digest({"n": np.int32(3)}) == json_digest({"n": 3})
    for bad in (math.nan, {1, 2}, object()):
        with pytest.raises(InputError, match="A fingerprint holds numbers, text, lists and objects"):
            json_digest({"x": bad})


def test_the_digest_is_what_its_docstring_says():
    params = {"b": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a-c": np.int32(7), "a": {"c": np.ones(1)}}
    expected = hashlib.sha256()
    expected.update(b"a-c\nint32\n\n" + np.int32(7).tobytes())
    expected.update(b"a/c\nfloat64\n1\n" + np.ones(1).tobytes())
    expected.update(b"b/w\nfloat32\n2,3\n" + np.arange(6, dtype="<f4").tobytes())
    assert params_digest(params) == expected.hexdigest()


class Pair(NamedTuple):
    left: object
    right: object


def test_the_digest_sees_every_change_and_nothing_else():
    rng = np.random.default_rng(0)
    tree = {"x": Pair(rng.normal(size=(3, 2)).astype(np.float32), [np.zeros(4, np.int32)]), "none": None}
    digest = params_digest(tree)
    assert digest == params_digest(jax.device_put(tree))
    assert digest == params_digest({"none": None, "x": Pair(np.asfortranarray(tree["x"].left), tree["x"].right)})
    with jax.transfer_guard("disallow"):
        params_digest(jax.device_put(tree))
    left = tree["x"].left
    flipped = left.copy()
    flipped.view(np.uint8)[1, 3] ^= 1
    for changed in (flipped, left.reshape(2, 3), left.view(np.int32), jnp.asarray(left, jnp.bfloat16)):
        assert params_digest({"x": Pair(changed, tree["x"].right)}) != digest
    assert params_digest({"y": tree["x"]}) != digest


def test_the_digest_takes_typed_keys_and_refuses_objects():
    assert params_digest({"key": jax.random.key(1)}) == params_digest({"key": jax.random.PRNGKey(1)})
    with pytest.raises(InputError, match="A digest is of arrays of numbers"):
        params_digest({"x": np.array(["a", None], dtype=object)})


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text("abc/", min_size=1, max_size=3), st.integers(-5, 5), min_size=2, max_size=5))
def test_the_digest_does_not_follow_the_order_of_insertion(values):
    tree = {name: np.int32(value) for name, value in values.items()}
    assert params_digest(tree) == params_digest(dict(reversed(tree.items())))
