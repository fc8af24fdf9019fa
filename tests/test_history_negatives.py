"""The items that a user has seen, as negatives: which they are, and what each loss makes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spectran_jax import negatives, objectives
from spectran_jax.data.interactions import Histories
from spectran_jax.layout import SequenceLayout, TrainBatch
from spectran_jax.recommender import Recommender
from spectran_jax.training.notices import notices
from spectran_jax.training.setup import prepare
from spectran_jax.training.step import step_history

IDS = np.array([[3, 4, 3, 5, 7, 8, 0], [1, 2, 2, 2, 1, 9, 0]], np.int32)
TARGETS = np.array([[4, 3, 5, 6, 8, 9, 0], [2, 2, 2, 1, 9, 4, 0]], np.int32)
SEGMENT = np.array([[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0]], np.int32)


def expected(hidden=None):
    rows, length = IDS.shape
    out = np.zeros((rows, length, length), bool)
    for b in range(rows):
        for t in range(length):
            met = set()
            for k in range(length if hidden is not None else t + 1):
                shown = SEGMENT[b, k] == SEGMENT[b, t] > 0 and (hidden is None or not hidden[b, k])
                if shown and IDS[b, k] not in met and IDS[b, k] != TARGETS[b, t]:
                    out[b, t, k] = True
                if shown:
                    met.add(IDS[b, k])
    return out


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_a_position_has_seen(bidirectional):
    hidden = np.array([[0, 1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0]], bool) if bidirectional else None
    layout = SequenceLayout(mask=SEGMENT > 0, segment=SEGMENT, position=IDS * 0, hidden=hidden)
    seen = np.asarray(negatives.seen_items(jnp.asarray(IDS), jnp.asarray(TARGETS), layout))
    real = SEGMENT > 0
    np.testing.assert_array_equal(seen[real], expected(hidden)[real])


def test_states_on_padding_reach_no_gradient():
    """A backbone may leave anything there."""
    layout = SequenceLayout(mask=SEGMENT > 0, segment=SEGMENT, position=IDS * 0)
    batch = TrainBatch(jnp.asarray(IDS), jnp.asarray(TARGETS), layout, np.arange(14, dtype=np.int32)[None])
    module = Recommender(item_encoder=nn.Dense(1), backbone=nn.Dense(1))
    inputs = np.random.default_rng(0).normal(size=(*IDS.shape, 4)).astype(np.float32)
    states = np.where(SEGMENT[..., None] > 0, inputs[::-1], np.nan)

    def total(inputs):
        scores, counts = step_history(module, batch, jnp.asarray(states), inputs)
        return jnp.where(counts, scores, 0).sum()

    gradient = jax.grad(total)(inputs)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    return {
        "states": rng.normal(size=(5, 4)),
        "positives": rng.normal(size=(5, 4)),
        "negatives": rng.normal(size=(7, 4)),
        "excluded": rng.random((5, 7)) < 0.2,
        "weight": np.array([1.0, 1, 0, 1, 1]),
        "scores": rng.normal(size=(5, 3)),
        "counts": rng.random((5, 3)) < 0.6,
    }


def loss(case, name, history):
    arrays = [jnp.asarray(case[n], jnp.float32) for n in ("states", "positives", "negatives")]
    history = (
        objectives.History(jnp.asarray(case["scores"], jnp.float32), jnp.asarray(case["counts"])) if history else None
    )
    tail = jnp.asarray(case["excluded"]), jnp.asarray(case["weight"], jnp.float32)
    return float(getattr(objectives, name)(*arrays, *tail, temperature=0.5, history=history)[0])


@pytest.mark.parametrize("name", ["infonce", "binary_cross_entropy"])
def test_losses_add_the_history_to_the_negatives(case, name):
    logits = case["states"] @ case["negatives"].T / 0.5
    top = np.sum(case["states"] * case["positives"], 1) / 0.5
    each = []
    for t in np.flatnonzero(case["weight"]):
        drawn, seen = logits[t][~case["excluded"][t]], case["scores"][t][case["counts"][t]] / 0.5
        if name == "infonce":
            each.append(-np.log(np.exp(top[t]) / (np.exp(top[t]) + np.exp(drawn).sum() + np.exp(seen).sum())))
        else:
            others = np.log1p(np.exp(drawn)).mean() * 7 + np.log1p(np.exp(seen)).sum()
            each.append((np.log1p(np.exp(-top[t])) + others) / 8)
    np.testing.assert_allclose(loss(case, name, history=True), np.mean(each), rtol=1e-5)
    assert loss(case, name, history=True) > loss(case, name, history=False)


def test_a_person_is_told_of_rows_that_stand_twice(tiny_config):
    setup = prepare(tiny_config)
    assert not any("say again" in line for line in notices(setup))
    times = np.array([1, 1, 2, 2, 2, 7, 7, 7])
    items = np.array([3, 3, 3, 4, 4, 4, 4, 5], np.int32)
    twice = Histories(np.array([0, 3, 3, 5, 6, 8]), items, times)
    assert twice.doubled == 2  # in the first row and the third
    assert dataclasses.replace(twice, placed=np.arange(8) == 1).doubled == 1
    assert dataclasses.replace(twice, timestamps=None).doubled == 0
    assert Histories.from_lists([[], []]).doubled == 0
    two_users = Histories(np.array([0, 0, 1, 1, 1, 2, 2]), np.array([5, 5], np.int32), np.array([1, 1]))
    assert two_users.doubled == 0
    setup = dataclasses.replace(setup, dataset=dataclasses.replace(setup.dataset, histories=twice))
    assert any(line.startswith("2 interactions say again") and "--duplicates=drop" in line for line in notices(setup))


@pytest.mark.parametrize(("wanted", "told"), [(True, True), (False, False)])
def test_a_person_is_told_of_repeats(tiny_config, wanted, told):
    """Of the tiny data, in which some walks come back to an item, and only where it matters."""
    setup = prepare(tiny_config.replace(history_negatives=wanted))
    rows = [setup.split.train[user].tolist() for user in range(len(setup.split.train))]
    setup = dataclasses.replace(
        setup, split=dataclasses.replace(setup.split, train=Histories.from_lists([row + row[:1] for row in rows]))
    )
    repeats = sum(len(row) + 1 - len(set(row)) for row in rows if row)
    assert any(line.startswith(f"{repeats:,} of ") for line in notices(setup)) == told
