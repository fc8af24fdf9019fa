"""The encoder llmesr against NumPy from its formulas: two views, attention between them, distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_catalogue import (
    COLD,
    SEGMENT,
    TARGETS,
    TEXTLESS,
    WEIGHT,
    D,
    L,
    N,
    auxiliary,
    built,
    layout_of,
    singular_vectors,
    started,
    table,
    unit,
)

from spectran_jax.errors import InputError
from spectran_jax.item_encoders import StepView
from spectran_jax.item_encoders.llmesr import distillation


def test_llmesr_is_an_adapter_of_the_text_beside_ids_that_start_from_it():
    module, frozen, params = started("llmesr", spectral_power=1.0)
    u, s, _ = singular_vectors()
    text = u * s / np.sqrt(np.mean(s**2))
    hidden, output = params["hidden"], params["output"]
    semantic = (text @ hidden["kernel"] + hidden["bias"]) @ output["kernel"] + output["bias"]
    semantic[TEXTLESS] = 0
    start = u[:, :4] * s[:4]
    start /= np.sqrt(np.mean(np.delete(start, TEXTLESS, axis=0) ** 2))
    learned = np.where(np.arange(N)[:, None] == COLD, 0, params["id_embedding"])
    vectors = table(module, frozen, params)
    want = np.concatenate([0.1 * semantic, 0.1 * start + learned], axis=1)
    np.testing.assert_allclose(vectors, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InputError, match=r"llmesr halves the vectors .* --dimension=7 is odd; take an even one that --heads divides"
    ):
        built("llmesr", dimension=7)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attend(queries, values, may_look, p):
    """One row, position by position."""
    q = norm(queries, p["query_norm"]) @ p["query"]["kernel"]
    key, value = np.split(norm(values, p["value_norm"]) @ p["key_value"]["kernel"], 2, axis=-1)
    out = []
    for t, one in enumerate(q):
        at = np.flatnonzero(may_look[t])
        weights = np.exp(key[at] @ one / np.sqrt(len(one)))
        out.append(weights / weights.sum() @ value[at])
    return np.array(out) @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_llmesr_views_attend_to_what_a_state_may_depend_on(bidirectional):
    """Causal, or, of a backbone that hides positions, everything but these; within one history."""
    scale = 0.5
    module, _, params = started("llmesr", semantic_scale=scale)
    hidden = np.zeros_like(SEGMENT, bool)
    if bidirectional:
        hidden[0, [1, 3]] = hidden[1, 0] = True
    layout = layout_of(SEGMENT, hidden if bidirectional else None)
    inputs = np.random.default_rng(1).normal(size=(2, L, D)).astype(np.float32) * layout.mask[..., None]
    run = jax.jit(lambda x: module.apply({"params": params}, x, layout, method=module.contextualize))
    got = np.asarray(run(inputs))
    for row in range(2):
        shown = np.where(hidden[row][:, None], 0, inputs[row].astype(np.float64))
        semantic, collaborative = shown[:, :4], shown[:, 4:]
        may_look = SEGMENT[row][:, None] == SEGMENT[row]
        may_look &= ~hidden[row] | np.eye(L, dtype=bool) if bidirectional else np.tri(L, dtype=bool)
        want = np.concatenate(
            [
                semantic + scale * attend(collaborative, semantic, may_look, params["attend_semantic"]),
                collaborative + scale * attend(semantic, collaborative, may_look, params["attend_collaborative"]),
            ],
            axis=1,
        )
        np.testing.assert_allclose(got[row], np.where(layout.mask[row][:, None], want, 0), rtol=2e-3, atol=2e-4)
    # The property itself: who sees an item that changes.
    for t in range(L):
        other = inputs.copy()
        other[:, t] += layout.mask[:, t, None] * np.arange(D)
        sees = np.abs(np.asarray(run(other)) - got).max(axis=-1) > 1e-5
        for row in range(2):
            may = (SEGMENT[row] == SEGMENT[row, t]) & layout.mask[row, t]
            may &= ~hidden[row, t] if bidirectional else np.arange(L) >= t
            np.testing.assert_array_equal(sees[row], may)


def numpy_distillation(states, texts):
    losses = []
    for k, state in enumerate(unit(states)):
        others = [j for j in range(len(states)) if j != k]
        nearest = sorted(others, key=lambda j: -unit(texts[k]) @ unit(texts[j]))[:10]
        losses.append(np.sum((state - unit(states)[nearest].mean(axis=0)) ** 2))
    return np.mean(losses)


def test_distillation_draws_to_the_ten_most_similar_users():
    rng = np.random.default_rng(2)
    states, texts = rng.normal(size=(16, D)), rng.normal(size=(16, 4))
    present = np.arange(16) < 14  # two slots are empty
    states = np.where(present[:, None], states, 100)
    alone = np.arange(16)
    loss = lambda s: distillation(s / jnp.linalg.norm(s, axis=1, keepdims=True), jnp.float32(texts), alone, present)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.float32(states))
    assert value == pytest.approx(numpy_distillation(states[:14], texts[:14]), rel=1e-5)
    np.testing.assert_array_equal(gradient[14:], 0)

    # Teachers are fixed: descent of the students alone is the derivative with their teachers held, and no other.
    def held(s):
        total = 0.0
        for k in range(14):
            others = sorted((j for j in range(14) if j != k), key=lambda j: -unit(texts[k]) @ unit(texts[j]))[:10]
            total += np.sum((unit(s)[k] - unit(states)[others].mean(axis=0)) ** 2) / 14
        return total

    step = np.zeros_like(states)
    step[3, 2] = 1e-4
    assert gradient[3, 2] == pytest.approx((held(states + step) - held(states - step)) / 2e-4, rel=1e-2, abs=1e-5)


def test_users_without_text_neither_teach_nor_learn():
    rng = np.random.default_rng(3)
    states = unit(rng.normal(size=(16, D)))
    texts = rng.normal(size=(16, 4))
    texts[[2, 9]] = 0
    some = np.delete(np.arange(16), [2, 9])
    alone, present = np.arange(16), np.ones(16, bool)
    value, gradient = jax.value_and_grad(distillation)(jnp.float32(states), jnp.float32(texts), alone, present)
    assert value == pytest.approx(numpy_distillation(states[some], texts[some]), rel=1e-5)
    np.testing.assert_array_equal(gradient[np.array([2, 9])], 0)
    assert distillation(jnp.float32(states), jnp.zeros((16, 4)), alone, present) == 0


@pytest.mark.parametrize("present", [0, 1, 3])
def test_distillation_of_few_users(present):
    """None has no loss, one has no teacher, three have two each."""
    states = np.eye(4, dtype=np.float32)
    loss = lambda s: distillation(s, jnp.ones((4, 2)), jnp.arange(4), jnp.arange(4) < present)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(states))
    assert value == pytest.approx(1.5 if present == 3 else 0)  # |e_1 - (e_2 + e_3) / 2|^2
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("hidden", [None, [[False, True], [True, True, False], [True, False, True, False]]])
def test_llmesr_users_are_histories_packed_or_padded(hidden):
    """With the state of their last position, or of the last hidden one."""
    module, frozen, params = started("llmesr", alignment_weight=0.7)
    rng = np.random.default_rng(3)
    histories = [[1, 2], [2, 8, TEXTLESS], [5, 6, 1, 9]]
    ends = rng.normal(size=(3, D))
    packed = layout_of(SEGMENT)
    padded = layout_of(np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]], np.int32))
    values = []
    for layout in (packed, padded):
        ids, states = rng.integers(N, size=layout.mask.shape), rng.normal(size=(*layout.mask.shape, D))
        ids[layout.mask] = np.concatenate(histories)
        if hidden is None:
            states[np.asarray(layout.last_positions())] = ends
        else:
            where = np.zeros_like(layout.mask)
            where[layout.mask] = np.concatenate(hidden)
            layout = layout._replace(hidden=where)
            at = np.argwhere(layout.mask)[[1, 3, 7]]  # of the nine positions
            states[at[:, 0], at[:, 1]] = ends
        seen = StepView(None, np.int32(ids), layout, np.float32(states), TARGETS, WEIGHT)
        values.append(float(auxiliary(module, frozen, params, seen)["distillation"]))
    u, s, _ = singular_vectors()
    texts = np.array([(u * s)[history, :4].sum(axis=0) for history in histories])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] == pytest.approx(0.7 * numpy_distillation(ends, texts), rel=1e-4)


def test_beginnings_of_one_history_do_not_teach_each_other():
    """Two of three histories of a batch are one user's: the only teacher of each is the third, whose are both."""
    module, frozen, params = started("llmesr", alignment_weight=1.0)
    ids = np.zeros(SEGMENT.shape, np.int32)
    ids[0, :5], ids[1, :4] = [1, 2, 1, 2, 8], [5, 6, 1, 9]
    hidden = np.zeros_like(SEGMENT, bool)
    hidden[0, [1, 4]] = hidden[1, 3] = True
    states = np.zeros((*SEGMENT.shape, D), np.float32)
    states[hidden] = np.eye(3, D)
    whose = np.array([[4, 4, 4, 4, 4, 0], [7, 7, 7, 7, 0, 0]], np.int32)
    layout = layout_of(SEGMENT, hidden)
    for user, expected in ((whose, (2 + 2 + 1.5) / 3), (None, 1.5)):
        seen = StepView(None, ids, layout._replace(user=user), states, TARGETS, WEIGHT)
        assert auxiliary(module, frozen, params, seen)["distillation"] == pytest.approx(expected, rel=1e-5)
