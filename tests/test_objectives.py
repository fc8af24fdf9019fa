"""The losses against NumPy float64 written from their formulas, closed forms and finite differences."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import negatives as samplers
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
    excluded = positive_ids[:, None] == negative_ids
    vectors = table[positive_ids], table[negative_ids]
    return objectives.infonce(states, *vectors, excluded, weight, temperature=temperature)


@jax.jit
def jitted_sampled_softmax(states, table, positive_ids, negative_ids, weight, temperature):
    """With negatives drawn by q = (1, 2, ..., ITEMS) / sum."""
    log_q = jnp.log(jnp.arange(1, ITEMS + 1) / (ITEMS * (ITEMS + 1) / 2))
    masks = log_q[negative_ids], positive_ids[:, None] == negative_ids, jnp.exp(log_q[positive_ids])
    vectors = table[positive_ids], table[negative_ids]
    return objectives.sampled_softmax(states, *vectors, *masks, weight, temperature=temperature)


def call_infonce(case, dtype=jnp.float32, temperature=0.5, call=jitted_infonce, **changes):
    case = case | changes
    return call(
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


def call_sampled_softmax(case, **changes):
    return call_infonce(case, call=jitted_sampled_softmax, **changes)


CALLS = {"infonce": call_infonce, "sampled_softmax": call_sampled_softmax, "softmax": call_softmax}


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
        if name != "softmax":
            call = {"infonce": jitted_infonce, "sampled_softmax": jitted_sampled_softmax}[name]
            ids = jnp.asarray(case["positive_ids"], jnp.int32), jnp.asarray(case["negative_ids"], jnp.int32)
            return call(states, table, *ids, jnp.asarray(case["weight"], jnp.float32), temperature)[0]
        ids = jnp.asarray(case["positive_ids"], jnp.int32)
        candidates = jnp.arange(ITEMS) > -1
        return jitted_softmax(states, table, ids, candidates, jnp.asarray(case["weight"], jnp.float32), temperature)[0]

    arrays = np.asarray(case["states"], np.float32), np.asarray(case["table"], np.float32)
    return jax.jit(jax.value_and_grad(both, argnums=(0, 1)))(*arrays)


@pytest.mark.parametrize("name", ["infonce", "sampled_softmax"])
def test_where_every_negative_is_masked_the_gradient_is_zero(case, name):
    value, (states, table) = gradients(name, case, positive_ids=np.full(TOKENS, 3), negative_ids=np.full(COUNT, 3))
    assert value == 0
    np.testing.assert_array_equal(states, 0)
    np.testing.assert_array_equal(table, 0)


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
    assert min(errors(ids, log_q, "infonce")[:1]) > 0.1, "more negatives alone do not come nearer"
    if sampling != "uniform":
        flat = jnp.full(count, -np.log(np.count_nonzero(CATALOGUE)), jnp.float32)
        assert max(errors(ids, flat)) > 0.1, "nor does a correction for another sampler"


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
    """Beside arguments and gradients, by the account of the compiler that optimises; compiled, not run."""
    script = """
import jax, jax.numpy as jnp
from spectran_jax import objectives
S = jax.ShapeDtypeStruct
def loss(states, table, *rest):
    return objectives.softmax(states, table, *rest, temperature=0.07)[0]
for items in (12_101, 65_536, 1_000_000):
    vectors = S((4096, 64), "float32"), S((items, 64), "float32")
    shapes = *vectors, S((4096,), "int32"), S((items,), bool), S((4096,), "float32")
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    print(compiled.memory_analysis().temp_size_in_bytes)
"""
    env = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    env |= {"JAX_PLATFORMS": "cpu"}
    repo = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=repo, env=env, capture_output=True, text=True, check=True)
    sizes = [int(line) for line in done.stdout.split()]
    assert len(sizes) == 3
    assert max(sizes) <= 128 * 2**20


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


TRAINED = np.r_[np.arange(1, 10), 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "infonc"},
            r"Unknown loss 'infonc'\. Known: infonce, sampled_softmax, softmax\. Did you mean 'infonce'",
        ),
        ({"score": "euclid"}, "Unknown score 'euclid'"),
        ({"sampling": "popular"}, "Unknown sampling 'popular'.*Did you mean 'popularity'"),
        ({"mask_negatives": "histories"}, "Unknown mask_negatives 'histories'.*Did you mean 'history'"),
        ({"negatives": 10}, "--negatives must lie between 1 and the number of items in training, 9, got 10"),
        ({"negatives": 0}, "--negatives must lie between 1 and .* 9, got 0"),
        ({"temperature": 0.0}, "--temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "--temperature must be above 0, got nan"),
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
