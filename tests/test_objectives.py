"""The losses against NumPy float64 written from their formulas, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import objectives
from spectran_jax.config import ObjectiveConfig
from spectran_jax.errors import InputError

TOKENS, COUNT, ITEMS, DIMENSION = 7, 11, 13, 5


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, DIMENSION))
    positive_ids = rng.integers(ITEMS, size=TOKENS)
    negative_ids = rng.integers(ITEMS, size=COUNT)
    negative_ids[:2] = positive_ids[:2]  # false negatives
    weight = np.ones(TOKENS)
    weight[-2:] = 0
    return {
        "states": rng.normal(size=(TOKENS, DIMENSION)),
        "table": table,
        "positive_ids": positive_ids,
        "negative_ids": negative_ids,
        "weight": weight,
    }


def infonce_reference(states, positives, negatives, positive_ids, negative_ids, weight, temperature):
    """Position by position, from the formula."""
    losses = []
    for state, positive, own in zip(states, positives, positive_ids, strict=True):
        top = np.exp(state @ positive / temperature)
        others = sum(np.exp(state @ n / temperature) for n, i in zip(negatives, negative_ids, strict=True) if i != own)
        losses.append(-np.log(top / (top + others)))
    return np.sum(weight * np.array(losses)) / np.sum(weight)


@jax.jit
def jitted_infonce(states, table, positive_ids, negative_ids, weight, temperature):
    positives, negatives = table[positive_ids], table[negative_ids]
    return objectives.infonce(states, positives, negatives, positive_ids, negative_ids, weight, temperature=temperature)


def call_infonce(case, dtype=jnp.float32, temperature=0.5, **changes):
    case = case | changes
    return jitted_infonce(
        np.asarray(case["states"], dtype),
        np.asarray(case["table"], dtype),
        np.asarray(case["positive_ids"], np.int32),
        np.asarray(case["negative_ids"], np.int32),
        np.asarray(case["weight"], np.float32),
        temperature,
    )


@jax.jit
def jitted_softmax(states, table, positive_ids, candidates, weight, temperature):
    return objectives.softmax(states, table, positive_ids, candidates, weight, temperature=temperature)


def call_softmax(case, dtype=jnp.float32, temperature=0.5, candidates=None, **changes):
    case = case | changes
    return jitted_softmax(
        np.asarray(case["states"], dtype),
        np.asarray(case["table"], dtype),
        np.asarray(case["positive_ids"], np.int32),
        np.ones(ITEMS, bool) if candidates is None else candidates,
        np.asarray(case["weight"], np.float32),
        temperature,
    )


CALLS = {"infonce": call_infonce, "softmax": call_softmax}


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


def gradients(name, case, **changes):
    """Loss, and its gradients by the states and the table."""
    case = case | changes
    temperature = case.get("temperature", 0.5)

    @jax.jit
    def both(states, table):
        if name == "infonce":
            ids = jnp.asarray(case["positive_ids"], jnp.int32), jnp.asarray(case["negative_ids"], jnp.int32)
            return jitted_infonce(states, table, *ids, jnp.asarray(case["weight"], jnp.float32), temperature)[0]
        ids = jnp.asarray(case["positive_ids"], jnp.int32)
        candidates = jnp.arange(ITEMS) > -1
        return jitted_softmax(states, table, ids, candidates, jnp.asarray(case["weight"], jnp.float32), temperature)[0]

    arrays = np.asarray(case["states"], np.float32), np.asarray(case["table"], np.float32)
    return jax.jit(jax.value_and_grad(both, argnums=(0, 1)))(*arrays)


def test_where_every_negative_is_masked_the_gradient_is_zero(case):
    value, (states, table) = gradients("infonce", case, positive_ids=np.full(TOKENS, 3), negative_ids=np.full(COUNT, 3))
    assert value == 0
    np.testing.assert_array_equal(states, 0)
    np.testing.assert_array_equal(table, 0)


@pytest.mark.parametrize("name", ["infonce", "softmax"])
def test_padding_changes_nothing_and_no_supervision_is_zero(case, name):
    call = CALLS[name]
    loss, aux = call(case)
    garbage = case["states"].copy()
    garbage[-2:] = np.nan
    other, other_aux = call(case, states=garbage)
    assert loss == other
    assert aux == other_aux
    empty, aux = call(case, weight=np.zeros(TOKENS))
    assert empty == 0
    assert all(value == 0 for value in aux.values())
    doubled, _ = call(case, weight=2 * case["weight"])
    np.testing.assert_allclose(doubled, loss, rtol=1e-6)


@pytest.mark.parametrize("name", ["infonce", "softmax"])
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


def test_infonce_is_stable_for_large_scores(case):
    value, grads = gradients("infonce", case, table=case["table"] * 1e4, temperature=0.01)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", ["infonce", "softmax"])
def test_bfloat16_inputs_accumulate_in_float32(case, name):
    call = CALLS[name]
    rounded = {k: case[k].astype(jnp.bfloat16).astype(np.float32) for k in ("states", "table")}
    low, aux = call(case, dtype=jnp.bfloat16)
    high, _ = call(case | rounded)
    assert low.dtype == jnp.float32
    assert all(value.dtype == jnp.float32 for value in aux.values())
    np.testing.assert_allclose(low, high, rtol=1e-5)  # the inputs are rounded, nothing after them
    np.testing.assert_allclose(low, call(case)[0], rtol=5e-2)


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


def test_infonce_with_every_item_as_negative_is_the_softmax(case):
    full = call_infonce(case, negative_ids=np.arange(ITEMS))[0]
    np.testing.assert_allclose(full, call_softmax(case)[0], rtol=1e-6)


@pytest.mark.parametrize("loss", ["infonce", "softmax"])
@pytest.mark.parametrize("jit", [False, True])
def test_an_objective_scores_the_ids_that_it_sampled(case, loss, jit):
    config = ObjectiveConfig(loss=loss, negatives=6, temperature=0.5)
    objective = objectives.build(config, num_candidates=9)
    table = jnp.asarray(case["table"], jnp.float32)
    trained = jnp.asarray(np.unique(case["positive_ids"]), jnp.int32)
    candidates = jnp.asarray(np.isin(np.arange(ITEMS), case["positive_ids"]))
    positive_ids = jnp.asarray(case["positive_ids"], jnp.int32)
    calls = []

    def items(ids):
        calls.append(ids.shape)
        return table[ids]

    def step(states, weight, negative_ids):
        return objective.loss(
            states,
            positive_ids=positive_ids,
            negative_ids=negative_ids,
            weight=weight,
            items=items,
            table=lambda: table,
            candidates=candidates,
        )

    drawn = jax.jit(objective.sample)(jax.random.PRNGKey(3), trained)
    arrays = jnp.asarray(case["states"], jnp.float32), jnp.asarray(case["weight"], jnp.float32), drawn
    value, aux = (jax.jit(step) if jit else step)(*arrays)
    assert drawn.dtype == jnp.int32
    assert all(v.shape == () and v.dtype == jnp.float32 for v in aux.values())
    if loss == "infonce":
        assert calls == [(TOKENS + 6,)]
        np.testing.assert_allclose(value, reference(case | {"negative_ids": np.asarray(drawn)}), rtol=2e-6)
    else:
        assert calls == []
        assert drawn.shape == (0,)
        np.testing.assert_allclose(value, call_softmax(case, candidates=candidates)[0], rtol=1e-6)


def test_negatives_are_uniform_over_the_trained_items():
    trained = jnp.asarray([2, 3, 5, 7, 11], jnp.int32)
    draw = jax.jit(lambda key: objectives.sample_uniform(key, trained, 20_000))
    ids = np.asarray(draw(jax.random.PRNGKey(0)))
    assert ids.dtype == np.int32
    counts = np.bincount(ids, minlength=12)
    assert counts[np.asarray(trained)].sum() == 20_000
    # Chi-square with 4 degrees of freedom: 18.5 is exceeded once in a thousand.
    assert np.sum((counts[np.asarray(trained)] - 4000) ** 2 / 4000) < 18.5
    np.testing.assert_array_equal(ids, draw(jax.random.PRNGKey(0)))
    assert (ids != np.asarray(draw(jax.random.PRNGKey(1)))).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
    x = np.asarray([[3, 4], [0, 0], [-5e-3, 0]], dtype)

    @jax.jit
    def weighted(v):
        unit = objectives.normalize(v)
        return (unit * jnp.asarray([1, 2], dtype)).sum().astype(jnp.float32), unit

    (_, unit), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(x)
    gradient = np.asarray(gradient, np.float32)
    assert unit.dtype == dtype
    np.testing.assert_allclose(np.asarray(unit, np.float32), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=5e-3)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)
    if dtype == jnp.float32:  # (I - n n^T) g / |x|
        np.testing.assert_allclose(gradient[0], [(1 - 0.6 * 2.2) / 5, (2 - 0.8 * 2.2) / 5], rtol=1e-5)


def test_normalize_lets_nan_through():
    assert np.isnan(objectives.normalize(jnp.asarray([jnp.nan, 1.0]))).all()


def test_scores():
    x = jnp.asarray([[3.0, 4.0]], jnp.bfloat16)
    np.testing.assert_array_equal(objectives.score_vectors(x, "dot"), [[3, 4]])
    np.testing.assert_allclose(objectives.score_vectors(x, "cosine"), [[0.6, 0.8]], rtol=1e-6)
    assert objectives.score_vectors(x, "cosine").dtype == jnp.float32
    with pytest.raises(InputError, match=r"Unknown score 'cosin'.*cosine, dot.*Did you mean 'cosine'"):
        objectives.score_vectors(x, "cosin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "infonc"}, r"Unknown loss 'infonc'\. Known: infonce, softmax\. Did you mean 'infonce'"),
        ({"score": "euclid"}, "Unknown score 'euclid'"),
        ({"negatives": 10}, "--negatives must lie between 1 and the number of items in training, 9, got 10"),
        ({"negatives": 0}, "--negatives must lie between 1 and .* 9, got 0"),
        ({"temperature": 0.0}, "--temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "--temperature must be above 0, got nan"),
    ],
)
def test_bad_configuration(changes, message):
    config = ObjectiveConfig(**{"negatives": 5, **changes})
    with pytest.raises(InputError, match=message):
        objectives.build(config, num_candidates=9)


def test_the_softmax_needs_no_negatives():
    assert isinstance(
        objectives.build(ObjectiveConfig(loss="softmax", negatives=10**6), num_candidates=9), objectives.Softmax
    )
    for name in ("infonce", "softmax"):
        objectives.check_name(name)


@pytest.mark.parametrize("name", ["positives", "negatives", "positive_ids", "negative_ids", "weight"])
def test_wrong_shapes_are_named(name):
    arrays = {
        "positives": np.ones((4, 3)),
        "negatives": np.ones((6, 3)),
        "positive_ids": np.ones(4, np.int32),
        "negative_ids": np.ones(6, np.int32),
        "weight": np.ones(4),
    }
    arrays[name] = np.ones((*arrays[name].shape, 2), arrays[name].dtype)
    with pytest.raises(InputError, match=f"^{name} must have the shape"):
        objectives.infonce(np.ones((4, 3)), **arrays, temperature=1.0)
    with pytest.raises(InputError, match=r"states must be a matrix, got the shape \(4,\)"):
        objectives.infonce(np.ones(4), **arrays, temperature=1.0)


@pytest.mark.parametrize("name", ["table", "positive_ids", "candidates", "weight"])
def test_wrong_shapes_of_the_softmax_are_named(name):
    arrays = {
        "table": np.ones((6, 3)),
        "positive_ids": np.ones(4, np.int32),
        "candidates": np.ones(6, bool),
        "weight": np.ones(4),
    }
    arrays[name] = np.ones((*arrays[name].shape, 2), arrays[name].dtype)
    with pytest.raises(InputError, match=f"^{name} must have the shape"):
        objectives.softmax(np.ones((4, 3)), **arrays, temperature=1.0)


def test_nothing_to_sample_from():
    key = jax.random.PRNGKey(0)
    with pytest.raises(InputError, match="at least one trained item"):
        objectives.sample_uniform(key, jnp.zeros(0, jnp.int32), 3)
    with pytest.raises(InputError, match="--negatives must be at least 1, got 0"):
        objectives.sample_uniform(key, jnp.arange(3), 0)
