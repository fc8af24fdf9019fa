"""InfoNCE and the sampled softmax against NumPy float64 written from their formulas, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import COUNT, DIMENSION, ITEMS, TOKENS, call_infonce, call_softmax, gradients

from spectran_jax import negatives as samplers
from spectran_jax import objectives
from spectran_jax.errors import InputError


def infonce_reference(states, positives, negatives, positive_ids, negative_ids, weight, temperature):
    """Position by position, from the formula."""
    losses = []
    for state, positive, own in zip(states, positives, positive_ids, strict=True):
        top = np.exp(state @ positive / temperature)
        others = sum(np.exp(state @ n / temperature) for n, i in zip(negatives, negative_ids, strict=True) if i != own)
        losses.append(-np.log(top / (top + others)))
    return np.sum(weight * np.array(losses)) / np.sum(weight)


def reference(case, temperature=0.5):
    table = case["table"]
    arrays = case["states"], table[case["positive_ids"]], table[case["negative_ids"]]
    return infonce_reference(*arrays, case["positive_ids"], case["negative_ids"], case["weight"], temperature)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_infonce_is_its_formula(case, temperature):
    loss, _ = call_infonce(case, temperature=temperature)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference(case, temperature), rtol=2e-6)


def test_infonce_of_equal_scores_is_log_of_one_plus_n(case):
    positive_ids = case["positive_ids"] % (ITEMS - 1)  # no false negatives
    negative_ids = np.full(COUNT, ITEMS - 1)
    loss, _ = call_infonce(
        case, table=np.ones((ITEMS, DIMENSION)), positive_ids=positive_ids, negative_ids=negative_ids
    )
    np.testing.assert_allclose(loss, np.log(1 + COUNT), rtol=1e-6)


def test_a_false_negative_counts_for_the_other_positions_only(case):
    states, table = case["states"], case["table"]
    loss, aux = call_infonce(case, positive_ids=np.arange(TOKENS), negative_ids=np.array([0]), weight=np.eye(TOKENS)[0])
    assert loss == 0  # the only negative is the position's own positive
    assert aux["masked_negatives"] == 1
    loss, aux = call_infonce(case, positive_ids=np.arange(TOKENS), negative_ids=np.array([0]), weight=np.eye(TOKENS)[1])
    np.testing.assert_allclose(loss, np.log1p(np.exp((states[1] @ table[0] - states[1] @ table[1]) / 0.5)), rtol=1e-5)
    assert aux["masked_negatives"] == 0


@pytest.mark.parametrize("name", ["infonce", "sampled_softmax"])
def test_where_every_negative_is_masked_the_gradient_is_zero(case, name):
    value, (states, table) = gradients(name, case, positive_ids=np.full(TOKENS, 3), negative_ids=np.full(COUNT, 3))
    assert value == 0
    np.testing.assert_array_equal(states, 0)
    np.testing.assert_array_equal(table, 0)


def test_infonce_with_every_item_as_negative_is_the_softmax(case):
    full = call_infonce(case, negative_ids=np.arange(ITEMS))[0]
    np.testing.assert_allclose(full, call_softmax(case)[0], rtol=1e-6)


def sampled_reference(states, table, positive_ids, drawn, log_q, excluded, mass, temperature):
    """Mean over the positions, one by one, from the formula, in float64."""
    losses = []
    for t, state in enumerate(states):
        counted = [j for j in range(len(drawn)) if not excluded[t, j] and log_q[j] > -np.inf]
        top = np.exp(state @ table[positive_ids[t]] / temperature)
        others = sum(
            np.exp(state @ table[drawn[j]] / temperature) * (1 - mass[t]) / (len(counted) * np.exp(log_q[j]))
            for j in counted
        )
        losses.append(-np.log(top / (top + others)))
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_sampled_softmax_is_its_formula(case, temperature):
    rng = np.random.default_rng(2)
    drawn, log_q = case["negative_ids"], np.log(rng.dirichlet(np.ones(COUNT)))
    log_q[4] = -np.inf  # what its sampler can't draw counts nowhere
    excluded = (case["positive_ids"][:, None] == drawn) | (rng.random((TOKENS, COUNT)) < 0.3)
    excluded[2] = True  # nothing counts: no loss
    mass = rng.random(TOKENS)
    states, table = (np.asarray(case[name], np.float32) for name in ("states", "table"))
    loss, aux = objectives.sampled_softmax(
        states,
        table[case["positive_ids"]],
        table[drawn],
        log_q.astype(np.float32),
        excluded,
        mass.astype(np.float32),
        np.ones(TOKENS, np.float32),
        temperature=temperature,
    )
    expected = sampled_reference(
        case["states"], case["table"], case["positive_ids"], drawn, log_q, excluded, mass, temperature
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["masked_negatives"], np.mean(excluded | np.isneginf(log_q)), rtol=1e-6)


def test_all_mass_excluded_leaves_the_loss_finite(case):
    vectors = np.ones((TOKENS, DIMENSION), np.float32), np.ones((COUNT, DIMENSION), np.float32)
    loss, _ = objectives.sampled_softmax(
        vectors[0],
        *vectors,
        np.full(COUNT, -1.0, np.float32),
        np.zeros((TOKENS, COUNT), bool),
        np.ones(TOKENS, np.float32),
        np.ones(TOKENS, np.float32),
        temperature=1.0,
    )
    assert np.isfinite(loss)


CATALOGUE = np.array([0, 13, 30, 11, 22, 0, 90, 15, 60, 12, 19, 44])


@jax.jit
def full_reference(states, table, positive_ids, counts):
    """Plain cross-entropy over the items with a history mask [T, N]: True where an item is in no denominator."""
    scores = states @ table.T / 0.5
    positive = jnp.take_along_axis(scores, positive_ids[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(jnp.where(counts, -jnp.inf, scores), axis=1) - positive)


@pytest.mark.parametrize("masking", ["positive", "history"])
@pytest.mark.parametrize("sampling", ["uniform", "popularity", "in_batch"])
def test_sampled_softmax_converges_to_the_full_softmax(sampling, masking):
    """Value and gradients, as negatives are added; without the correction neither does."""
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(len(CATALOGUE), DIMENSION)), jnp.float32)
    states = jnp.asarray(rng.normal(size=(6, DIMENSION)), jnp.float32)
    positive_ids = jnp.asarray([2, 6, 4, 8, 11, 6], jnp.int32)
    others = np.zeros((6, len(CATALOGUE)), bool)
    if masking == "history":
        others[:3, [1, 4, 6]] = True
        others[3:, 10] = True
    others[np.arange(6), np.asarray(positive_ids)] = False
    own = others.copy()
    own[np.arange(6), np.asarray(positive_ids)] = True
    missing = jnp.asarray(others | (CATALOGUE == 0))
    count = 200_000
    sampler = {
        "uniform": samplers.Uniform(count),
        "popularity": samplers.Popularity(count, 0.75),
        # Consistent where the batch's targets are distributed as the training set's: here they are all of those.
        "in_batch": samplers.InBatch(count),
    }[sampling]
    arrays = sampler.arrays(CATALOGUE)
    targets = jnp.asarray(np.repeat(np.arange(len(CATALOGUE)), CATALOGUE), jnp.int32)
    ids = sampler.draw(jax.random.PRNGKey(1), arrays, targets=targets, weight=jnp.ones(len(targets)))
    every = jnp.exp(sampler.log_q(arrays, jnp.arange(len(CATALOGUE))))

    @functools.partial(jax.jit, static_argnames=("name",))
    def sampled(states, table, ids, log_q, name="sampled_softmax"):
        objective = {"sampled_softmax": objectives.SampledSoftmax, "infonce": objectives.InfoNCE}[name]
        negatives = objectives.Negatives(ids, log_q, jnp.asarray(own)[:, ids], jnp.asarray(own) @ every)
        return objective(0.5, sampler, masking).loss(
            states,
            table,
            positive_ids=positive_ids,
            weight=jnp.ones(6),
            negatives=negatives,
            candidates=jnp.asarray(CATALOGUE > 0),
        )[0]

    full, exact = jax.value_and_grad(full_reference, argnums=(0, 1))(states, table, positive_ids, missing)

    def errors(ids, log_q, name="sampled_softmax"):
        value, found = jax.value_and_grad(sampled, argnums=(0, 1))(states, table, ids, log_q, name)
        return [float(abs(value - full)), *(float(abs(a - b).max()) for a, b in zip(found, exact, strict=True))]

    log_q = sampler.log_q(arrays, ids)
    near = errors(ids, log_q)
    assert max(near) < 0.02
    assert near[0] < errors(ids[:100], log_q[:100])[0]
    uncorrected = errors(ids, log_q, "infonce")[1]
    assert uncorrected > max(0.05, 10 * near[1]), "more negatives alone do not come nearer"
    if sampling != "uniform":
        flat = jnp.full(count, -np.log(np.count_nonzero(CATALOGUE)), jnp.float32)
        assert max(errors(ids, flat)) > 0.1, "nor does a correction for another sampler"


@pytest.mark.parametrize("name", ["positives", "negatives", "log_q", "excluded", "excluded_mass", "weight"])
def test_wrong_shapes_are_named(name):
    arrays = {
        "positives": np.ones((4, 3)),
        "negatives": np.ones((6, 3)),
        "log_q": np.ones(6),
        "excluded": np.ones((4, 6), bool),
        "excluded_mass": np.ones(4),
        "weight": np.ones(4),
    }
    arrays[name] = np.ones((*arrays[name].shape, 2), arrays[name].dtype)
    plain = {key: value for key, value in arrays.items() if key not in ("log_q", "excluded_mass")}
    calls = [lambda states: objectives.sampled_softmax(states, **arrays, temperature=1.0)]
    if name in plain:
        calls.append(lambda states: objectives.infonce(states, **plain, temperature=1.0))
    for call in calls:
        with pytest.raises(InputError, match=f"^{name} must have the shape"):
            call(np.ones((4, 3)))
        with pytest.raises(InputError, match=r"states must be a matrix, got the shape \(4,\)"):
            call(np.ones(4))
