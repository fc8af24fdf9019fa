"""What holds for every loss, and objectives by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import CALLS, COUNT, ITEMS, TOKENS, gradients

from spectran_jax import negatives as samplers
from spectran_jax import objectives
from spectran_jax.config import ObjectiveConfig
from spectran_jax.errors import InputError


@pytest.mark.parametrize("name", CALLS)
def test_padding_changes_nothing_and_no_supervision_is_zero(case, name):
    call = CALLS[name]
    loss, aux = call(case)
    garbage = case["states"].copy()
    garbage[-2:] = np.nan
    other, other_aux = call(case, states=garbage)
    assert loss == other
    assert aux == other_aux
    for ours, clean in zip(gradients(name, case, states=garbage)[1], gradients(name, case)[1], strict=True):
        np.testing.assert_array_equal(ours, clean)
    empty, aux = call(case, weight=np.zeros(TOKENS))
    assert empty == 0
    assert all(value == 0 for value in aux.values())
    doubled, _ = call(case, weight=2 * case["weight"])
    np.testing.assert_allclose(doubled, loss, rtol=1e-6)


@pytest.mark.parametrize("loss", [objectives.infonce, objectives.binary_cross_entropy])
def test_nan_on_padding_reaches_no_gradient_through_the_history(case, loss):
    """Scores of the history are made of the states, too."""
    states, weight = case["states"].copy(), jnp.float32(case["weight"])
    states[-2:] = np.nan
    positives, negatives = (jnp.float32(case["table"][case[name]]) for name in ("positive_ids", "negative_ids"))
    excluded = case["positive_ids"][:, None] == case["negative_ids"]
    seen = jnp.float32(case["table"][:3])

    def value(states):
        history = objectives.History(states @ seen.T, jnp.ones((len(states), 3), bool))
        return loss(states, positives, negatives, excluded, weight, temperature=0.5, history=history)[0]

    found, gradient = jax.jit(jax.value_and_grad(value))(jnp.float32(states))
    clean, wanted = jax.jit(jax.value_and_grad(value))(jnp.float32(case["states"]))
    assert found == clean
    np.testing.assert_array_equal(gradient, wanted)
    assert not np.asarray(wanted[-2:]).any()


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_finite_differences(case, name):
    value, (states, table) = gradients(name, case)
    np.testing.assert_allclose(value, CALLS[name](case)[0], rtol=1e-6)
    rng = np.random.default_rng(1)
    for field, gradient in (("states", states), ("table", table)):
        for _ in range(5):
            direction = rng.normal(size=case[field].shape)
            direction /= np.linalg.norm(direction)
            ahead, behind = (CALLS[name](case, **{field: case[field] + t * direction})[0] for t in (1e-2, -1e-2))
            # float32 rounding over the step is 1e-5, the rule's own error of second order about 1e-4.
            np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / 2e-2, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", CALLS)
def test_losses_are_stable_for_large_scores(case, name):
    value, grads = gradients(name, case, table=case["table"] * 1e4, temperature=0.01)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", CALLS)
def test_bfloat16_inputs_accumulate_in_float32(case, name):
    call = CALLS[name]
    rounded = {k: case[k].astype(jnp.bfloat16).astype(np.float32) for k in ("states", "table")}
    low, aux = call(case, dtype=jnp.bfloat16)
    high, _ = call(case | rounded)
    assert low.dtype == jnp.float32
    assert all(value.dtype == jnp.float32 for value in aux.values())
    np.testing.assert_allclose(low, high, rtol=1e-5)  # the inputs are rounded, nothing after them
    np.testing.assert_allclose(low, call(case)[0], rtol=5e-2)


@pytest.mark.parametrize("loss", CALLS)
def test_an_objective_is_its_loss(case, loss):
    counts = np.arange(1, ITEMS + 1)
    config = ObjectiveConfig(loss=loss, negatives=COUNT, temperature=0.5, sampling="popularity", popularity_power=1.0)
    objective = objectives.build(config, counts)
    table = jnp.asarray(case["table"], jnp.float32)
    given = dict(
        positive_ids=jnp.asarray(case["positive_ids"], jnp.int32),
        weight=jnp.asarray(case["weight"], jnp.float32),
        candidates=jnp.ones(ITEMS, bool),
    )
    assert objective.sampled == (objective.sampler is not None) == (loss != "softmax")
    assert objective.mask_negatives == "positive"
    negatives = None
    if objective.sampler is not None:
        ids = jnp.asarray(case["negative_ids"], jnp.int32)
        arrays = objective.sampler.arrays(counts)
        log_q = objective.sampler.log_q(arrays, ids)
        mass = jnp.exp(objective.sampler.log_q(arrays, given["positive_ids"]))
        excluded = samplers.exclude_positive(given["positive_ids"], ids)
        negatives = objectives.Negatives(ids, log_q, excluded, mass)
        assert objective.sampler.draw(jax.random.PRNGKey(0), arrays, targets=ids, weight=ids > 0).shape == (COUNT,)
        with pytest.raises(InputError, match="needs negatives, got None"):
            objective.loss(jnp.asarray(case["states"], jnp.float32), table, negatives=None, **given)
    value, aux = objective.loss(jnp.asarray(case["states"], jnp.float32), table, negatives=negatives, **given)
    np.testing.assert_allclose(value, CALLS[loss](case)[0], rtol=1e-5)
    assert set(aux) == {"positive_score"} | ({"masked_negatives"} if objective.sampled else set())
    assert all(v.shape == () and v.dtype == jnp.float32 for v in aux.values())


TRAINED = np.r_[np.arange(1, 10), 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "infonc"},
            r"Unknown loss 'infonc'\. Known: bce, gbce, infonce, sampled_softmax, softmax\. Did you mean 'infonce'",
        ),
        ({"score": "euclid"}, "Unknown score 'euclid'"),
        ({"sampling": "popular"}, "Unknown sampling 'popular'.*Did you mean 'popularity'"),
        ({"negatives": 10}, "--negatives must lie between 1 and the number of items in training, 9, got 10"),
    ],
)
def test_bad_configuration(changes, message):
    config = ObjectiveConfig(**{"negatives": 5, **changes})
    with pytest.raises(InputError, match=message):
        objectives.build(config, TRAINED)


@pytest.mark.parametrize("loss", CALLS)
def test_nothing_to_learn_from(loss):
    with pytest.raises(InputError, match="None of the 4 items occurs in training"):
        objectives.build(ObjectiveConfig(loss=loss, negatives=1), np.zeros(4, int))
    objectives.check_name(loss)


def test_the_softmax_needs_no_negatives():
    objective = objectives.build(ObjectiveConfig(loss="softmax", negatives=10**6), TRAINED)
    assert isinstance(objective, objectives.Softmax)
    assert objective.sampler is None
