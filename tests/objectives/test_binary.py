"""Binary cross-entropy and its generalisation: the formula in float64, and the probabilities that are best under it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import COUNT, ITEMS, call_infonce, gradients, jitted_binary

from spectran_jax import objectives
from spectran_jax.config import ObjectiveConfig
from spectran_jax.errors import InputError


def reference(case, beta, temperature):
    """Position by position, through probabilities and their power."""
    losses = []
    for state, own in zip(case["states"], case["positive_ids"], strict=True):
        probability = 1 / (1 + np.exp(-(case["table"] @ state) / temperature))
        counted = [i for i in case["negative_ids"] if i != own]
        others = [-np.log(1 - probability[i]) for i in counted]
        losses.append((-np.log(probability[own] ** beta) + COUNT * np.mean(others)) / (COUNT + 1))
    return np.sum(case["weight"] * np.array(losses)) / np.sum(case["weight"])


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_is_its_formula(case, calibration, temperature):
    alpha = COUNT / (ITEMS - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    loss, _ = call_infonce(case, temperature=temperature, call=jitted_binary(calibration))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference(case, beta, temperature), rtol=1e-5)


def test_one_negative_of_equal_score_is_log_2(case):
    ones = {"table": np.ones_like(case["table"]), "states": np.zeros_like(case["states"])}
    np.testing.assert_allclose(call_infonce(case | ones, call=jitted_binary(0.0))[0], np.log(2), rtol=1e-6)


def test_without_a_negative_that_counts_the_target_remains(case):
    """With the gradient of its own term, whatever is drawn."""
    only = {"positive_ids": np.full(7, 3), "negative_ids": np.full(COUNT, 3), "states": np.ones((7, 5))}
    value, (_, table) = gradients("bce", case, **only)
    score = case["table"][3].sum() / 0.5
    np.testing.assert_allclose(value, np.log1p(np.exp(-score)) / (COUNT + 1), rtol=1e-5)
    np.testing.assert_allclose(table[3], -1 / (1 + np.exp(score)) / 0.5 / (COUNT + 1), rtol=1e-5)
    np.testing.assert_array_equal(np.delete(table, 3, axis=0), 0)


@pytest.mark.parametrize("calibration", [0.0, 0.5, 1.0])
def test_the_best_probabilities(calibration):
    """Of one context with the next items distributed as p, over all draws: beta p / (beta p + alpha (1 - p))."""
    p = np.array([0.6, 0.25, 0.1, 0.04, 0.01])
    count = len(p)
    beta, alpha = objectives.gbce_beta(1, count, calibration), 1 / (count - 1)
    best = beta * p / (beta * p + alpha * (1 - p))

    def expected(scores):
        total = 0.0
        for drawn in range(count):  # a negative is drawn evenly from the items other than the target
            weight = jnp.asarray(np.where(np.arange(count) == drawn, 0, p) / (count - 1), jnp.float32)
            vectors = jnp.ones((count, 1)), scores[:, None], scores[drawn, None, None]
            excluded = jnp.arange(count)[:, None] == drawn
            mean, _ = objectives.binary_cross_entropy(*vectors, excluded, weight, temperature=1.0, beta=beta)
            total += mean * weight.sum()
        return total

    def gradient(probability):
        return jax.grad(expected)(jnp.asarray(np.log(probability / (1 - probability)), jnp.float32))

    np.testing.assert_allclose(gradient(best), 0, atol=2e-7)
    assert np.abs(gradient(0.9 * best)).max() > 1e-3
    if calibration == 1:
        np.testing.assert_allclose(best, p)
    else:
        assert (best > p).all()


def test_beta_is_the_papers():
    for count, items, t in ((256, 12_102, 0.75), (1, 1_000_001, 1.0), (5, 6, 0.3)):
        alpha = count / (items - 1)
        assert objectives.gbce_beta(count, items, t) == pytest.approx(alpha * (t * (1 - 1 / alpha) + 1 / alpha))
    assert objectives.gbce_beta(7, 7, 1.0) == 1  # as many draws as items: never above


def test_probabilities_next_to_0_and_1_keep_their_gradient():
    """What a float32 sigmoid rounds to 0 or 1."""
    beta = objectives.gbce_beta(1, 10_001, 1.0)

    def loss(positive, negative):
        vectors = jnp.ones((1, 1)), jnp.full((1, 1), positive), jnp.full((1, 1), negative)
        return objectives.binary_cross_entropy(
            *vectors, jnp.zeros((1, 1), bool), jnp.ones(1), temperature=1.0, beta=beta
        )[0]

    value, (up, down) = jax.value_and_grad(loss, (0, 1))(30.0, -30.0)
    np.testing.assert_allclose(value, (beta + 1) * np.exp(-30) / 2, rtol=1e-5)
    np.testing.assert_allclose([up, down], [-beta * np.exp(-30) / 2, np.exp(-30) / 2], rtol=1e-5)
    value, (up, down) = jax.value_and_grad(loss, (0, 1))(-200.0, 200.0)
    np.testing.assert_allclose([value, up, down], [(beta + 1) * 100, -beta / 2, 0.5], rtol=1e-6)


def test_without_calibration_gbce_is_bce():
    counts = np.arange(ITEMS)  # one of them never in training: alpha is over the other 12
    bce, gbce, plain = (
        objectives.build(ObjectiveConfig(loss=loss, negatives=3, gbce_t=t), counts)
        for loss, t in (("bce", 0.75), ("gbce", 0.75), ("gbce", 0.0))
    )
    assert plain == bce
    assert gbce == dataclasses.replace(bce, beta=objectives.gbce_beta(3, 12, 0.75))
    with pytest.raises(InputError, match=r"must lie in \(0, 1\], got 0"):
        dataclasses.replace(bce, beta=0.0)
