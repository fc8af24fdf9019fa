"""The full softmax: its formula, its chunks, its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import AS_USERS_DO
from objective_cases import DIMENSION, ITEMS, call_softmax

from spectran_jax import objectives
from spectran_jax.errors import InputError


def test_softmax_is_its_formula_over_the_trained_items(case):
    candidates = np.zeros(ITEMS, bool)
    candidates[case["positive_ids"]] = True
    candidates[case["negative_ids"]] = True
    assert not candidates.all()
    scores = case["states"] @ case["table"].T / 0.5
    losses = [
        -np.log(np.exp(row[own]) / np.exp(row[candidates]).sum())
        for row, own in zip(scores, case["positive_ids"], strict=True)
    ]
    expected = np.sum(case["weight"] * losses) / np.sum(case["weight"])
    np.testing.assert_allclose(call_softmax(case, candidates=candidates)[0], expected, rtol=2e-6)
    moved = np.where(candidates[:, None], case["table"], 100.0)
    assert call_softmax(case, candidates=candidates, table=moved)[0] == call_softmax(case, candidates=candidates)[0]


def test_softmax_of_equal_scores_is_log_of_the_number_of_candidates(case):
    candidates = np.arange(ITEMS) < 9
    loss, _ = call_softmax(case, table=np.ones((ITEMS, DIMENSION)), candidates=candidates)
    np.testing.assert_allclose(loss, np.log(9), rtol=1e-6)


def plain_softmax(states, table, positive_ids, candidates, weight, temperature):
    """The formula, all logits at once."""
    scores = jnp.einsum("td,nd->tn", states, table, precision="highest").astype(jnp.float32) / temperature
    positive = jnp.take_along_axis(scores, positive_ids[:, None], axis=1)[:, 0]
    everything = jax.nn.logsumexp(jnp.where(candidates, scores, -1e30), axis=1)
    return jnp.sum(weight * (everything - positive)) / jnp.sum(weight)


def softmax_case(tokens, items, dimension=8, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    states, table = (jnp.asarray(rng.normal(size=(n, dimension)) / dimension**0.25, dtype) for n in (tokens, items))
    candidates = rng.random(items) < 0.9
    positive_ids = rng.integers(items, size=tokens).astype(np.int32)
    candidates[positive_ids] = True
    weight = rng.integers(0, 3, size=tokens).astype(np.float32)
    weight[0] = 1
    return states, table, positive_ids, candidates, weight


@pytest.mark.parametrize(
    ("tokens", "items", "chunk"),
    [
        (300, 37, None),  # one chunk of positions
        (300, 37, 128 * 37),  # three
        (257, 37, 128 * 37),  # and one position left over
        (5, 37, 5 * 37),
        (300, 1, None),
        (1, 37, None),
        (300, 37, 300),  # chunks of one item
        (300, 37, 3000),  # of ten, seven left over
        (300, 40, 3000),  # of ten, none left over
        (7, 1000, 1),
        (7, 1000, 4567),  # of 652
    ],
)
def test_chunks_change_nothing(tokens, items, chunk):
    states, table, positive_ids, candidates, weight = softmax_case(tokens, items)

    def ours(states, table, weight, temperature):
        return objectives.softmax(
            states, table, positive_ids, candidates, weight, temperature=temperature, chunk=chunk
        )[0]

    def plain(states, table, weight, temperature):
        return plain_softmax(states, table, positive_ids, candidates, weight, temperature)

    arguments = states, table, weight, jnp.asarray(0.3)
    value, found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2, 3)))(*arguments)
    expected, exact = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(ours)(*arguments), expected, rtol=2e-6, atol=1e-6)
    counted = np.where(weight > 0, 1, np.nan)  # the derivative by a weight of zero is not promised
    for a, b, where in zip(found, exact, (1, 1, counted, 1), strict=True):
        np.testing.assert_allclose(a * where, b * where, rtol=1e-4, atol=2e-6)
    np.testing.assert_array_equal(found[1][~candidates], 0)
    scaled = jax.jit(jax.grad(lambda s, t: 3 * ours(s, t, weight, 0.3), argnums=(0, 1)))(states, table)
    for a, b in zip(scaled, exact, strict=False):
        np.testing.assert_allclose(a, 3 * b, rtol=1e-4, atol=6e-6)


@pytest.mark.parametrize("chunk", [None, 2**17])
def test_a_catalogue_of_20_000(chunk):
    """The bar of accuracy: both routes against the plain formula, unit vectors at the usual temperature."""
    states, table, *rest = softmax_case(64, 20_000, dimension=64)
    states, table = objectives.normalize(states), objectives.normalize(table)
    ours = jax.jit(
        jax.value_and_grad(lambda s, t: objectives.softmax(s, t, *rest, temperature=0.07, chunk=chunk)[0], (0, 1))
    )
    plain = jax.jit(jax.value_and_grad(lambda s, t: plain_softmax(s, t, *rest, 0.07), (0, 1)))
    (value, found), (expected, exact) = ours(states, table), plain(states, table)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(abs(b).max()))


@pytest.mark.parametrize("chunk", [None, 300])
def test_chunks_of_bfloat16_round_their_results_alone(chunk):
    states, table, *rest = softmax_case(40, 37, dtype=jnp.bfloat16)
    grad = jax.jit(jax.grad(lambda s, t: objectives.softmax(s, t, *rest, temperature=0.3, chunk=chunk)[0], (0, 1)))
    for low, high in zip(grad(states, table), grad(*(x.astype(jnp.float32) for x in (states, table))), strict=True):
        assert low.dtype == jnp.bfloat16
        np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2**-8, atol=1e-7)


def test_a_million_items_fit_into_128_mebibytes():
    """Beside arguments and gradients, by the compiler's account; compiled, not run."""
    shape = jax.ShapeDtypeStruct

    def loss(states, table, *rest):
        return objectives.softmax(states, table, *rest, temperature=0.07)[0]

    for items in (12_101, 65_536, 1_000_000):
        vectors = shape((4096, 64), "float32"), shape((items, 64), "float32")
        shapes = *vectors, shape((4096,), "int32"), shape((items,), bool), shape((4096,), "float32")
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile(AS_USERS_DO)
        assert compiled.memory_analysis().temp_size_in_bytes <= 128 * 2**20


@pytest.mark.parametrize("name", ["table", "positive_ids", "candidates", "weight"])
def test_wrong_shapes_of_the_softmax_are_named(name):
    arrays = {
        "table": np.ones((6, 3)),
        "positive_ids": np.ones(4, np.int32),
        "candidates": np.ones(6, bool),
        "weight": np.ones(4),
    }
    with pytest.raises(InputError, match="at least 1 logit, got 0"):
        objectives.softmax(np.ones((4, 3)), **arrays, temperature=1.0, chunk=0)
    arrays[name] = np.ones((*arrays[name].shape, 2), arrays[name].dtype)
    with pytest.raises(InputError, match=f"^{name} must have the shape"):
        objectives.softmax(np.ones((4, 3)), **arrays, temperature=1.0)
