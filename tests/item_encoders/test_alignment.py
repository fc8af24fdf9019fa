"""The encoders alphafuse, rlmrec and llmesr against NumPy from their formulas, and what each of them promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import item_encoders, spectral
from spectran_jax.config import Config, EncoderConfig
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.item_encoders import ItemSource, StepView
from spectran_jax.item_encoders.llmesr import distillation, last_positions
from spectran_jax.layout import SequenceLayout

N, M, D, L = 30, 12, 8, 6
TEXTLESS, COLD = 4, 7


@functools.cache
def source():
    """Items with random text; one without, one in no training."""
    text = np.random.default_rng(0).normal(size=(N, M)).astype(np.float32)
    text[TEXTLESS] = 0
    counts = np.ones(N, np.int32)
    counts[COLD] = 0
    return ItemSource(num_items=N, counts=counts, spectrum=spectral.decompose(text, text.any(axis=1)), text=text)


def singular_vectors():
    """U sqrt(n), S of the unit rows less their mean, from the definition; zero rows without text."""
    text = np.delete(source().text, TEXTLESS, axis=0).astype(np.float64)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    left, s, right = np.linalg.svd(text - text.mean(axis=0), full_matrices=False)
    u = np.insert(left * np.sqrt(N - 1), TEXTLESS, 0, axis=0)
    return u * np.sign(right[np.arange(M), np.abs(right).argmax(axis=1)]), s, right.T


@functools.cache
def built(name, dtype=jnp.float32, **options):
    config = EncoderConfig(**{"item_encoder": name, "dimension": D, "adapter_width": 5, **options})
    return item_encoders.build(config, source(), dtype=dtype)


def everything(module):
    """Whatever has parameters."""
    ids = jnp.zeros((1, L), jnp.int32)
    layout = SequenceLayout(ids == 0, ids + 1, ids)
    vectors = module.table()
    module.contextualize(vectors[ids], layout)
    module.auxiliary(module.rows(None), StepView(vectors, ids, layout, jnp.ones((1, L, D)), ids[0], jnp.ones(L)))


@functools.cache
def started(name, **options):
    """A module, its frozen arrays and parameters at random, biases included."""
    module, frozen = built(name, **options)
    shapes = jax.eval_shape(
        lambda f: module.apply(
            {"frozen": f}, rngs={"params": jax.random.key(0)}, mutable=["params"], method=everything
        )[1]["params"],
        frozen,
    )
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return module, frozen, jax.tree.unflatten(tree, [rng.normal(0, 0.4, x.shape).astype(np.float32) for x in leaves])


@functools.cache
def _jitted(module, method):
    return jax.jit(lambda variables, *args, **rngs: module.apply(variables, *args, method=method, rngs=rngs))


def table(module, frozen, params):
    return _jitted(module, type(module).table)({"params": params, "frozen": frozen})


def _auxiliary(module, seen):
    rows = module.rows(None)
    return module.auxiliary(rows, seen._replace(vectors=module.encode(rows)))


def auxiliary(module, frozen, params, seen, **rngs):
    """The losses of a step on the whole catalogue; `seen` comes without vectors."""
    return _jitted(module, _auxiliary)({"params": params, "frozen": frozen}, seen, **rngs)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# alphafuse


def test_alphafuse_is_text_in_the_row_space_and_ids_in_the_null_space():
    """Of the text's own m dimensions: V_s u_s + V_n e_id, from an SVD of its own, has the vectors' inner products."""
    module, frozen, params = started("alphafuse", null_share=0.25)
    assert {name: leaf.shape for name, leaf in params.items()} == {"id_embedding": (N, 2)}
    vectors = np.asarray(table(module, frozen, params), np.float64)
    u, _, right = singular_vectors()
    learned = np.where(np.arange(N)[:, None] == COLD, 0, params["id_embedding"])
    text, ids = 0.1 * u[:, :6] @ right[:, :6].T, learned @ right[:, 6:D].T
    np.testing.assert_allclose(text @ ids.T, 0, atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, (text + ids) @ (text + ids).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors, np.concatenate([0.1 * u[:, :6], learned], axis=1), atol=1e-5)
    trained = np.asarray(table(module, frozen, {"id_embedding": params["id_embedding"] + 1}))
    np.testing.assert_array_equal(trained[:, :6], vectors[:, :6])  # whatever is learned, the text stays
    assert (trained[:COLD, 6:] != vectors[:COLD, 6:]).all()


@pytest.mark.parametrize(("share", "part"), [(0.05, "the IDs"), (0.95, "the text")])
def test_alphafuse_refuses_a_part_without_a_dimension(share, part):
    with pytest.raises(InputError, match=rf"--null_share={share} of --dimension=8 leaves no dimension to {part}"):
        built("alphafuse", null_share=share)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("null_share", 1.0, "--null_share must lie between 0 and 1, got 1.0"),
        ("alignment_weight", -0.1, "--alignment_weight must be at least 0, got -0.1"),
        ("alignment_temperature", 0.0, "--alignment_temperature must be above 0, got 0.0"),
        ("alignment", "both", "--alignment must be one of contrastive, generative, got 'both'"),
    ],
)
def test_values_out_of_range_are_refused(name, value, words):
    with pytest.raises(InputError, match=words):
        check(Config().replace(**{name: value}))


# rlmrec


TARGETS = np.array([3, 9, 3, TEXTLESS, 12, 9, 3, 20], np.int32)
WEIGHT = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)


def seen_targets(targets, weight):
    ids = np.zeros((1, L), np.int32)
    layout = SequenceLayout(ids == 0, ids + 1, ids)
    return StepView(None, ids, layout, np.zeros((1, L, D), np.float32), np.int32(targets), np.float32(weight))


def two_layers(x, p):
    hidden = np.maximum(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    return hidden @ p["output"]["kernel"] + p["output"]["bias"]


@pytest.mark.parametrize("alignment", ["contrastive", "generative"])
def test_rlmrec_aligns_each_target_against_the_batchs_other_items(alignment):
    module, frozen, params = started("rlmrec", alignment=alignment, alignment_weight=0.5, alignment_temperature=0.3)
    u, s, _ = singular_vectors()
    text = u * s / np.sqrt(np.mean(s**2))
    identity = params["id_embedding"].astype(np.float64)
    if alignment == "contrastive":
        a, b = identity, two_layers(text, params["adapter"])
    else:
        a, b = two_layers(unit(identity) * np.sqrt(D), params["adapter"]), text
    losses = []
    for i in (3, 9, 3, 12, 9, 3):  # supervised, with text
        scores = {j: np.exp(unit(a[i]) @ unit(b[j]) / 0.3) for j in {3, 9, 12}}
        losses.append(-np.log(scores[i] / sum(scores.values())))
    seen = seen_targets(TARGETS, WEIGHT)
    got = auxiliary(module, frozen, params, seen)
    assert set(got) == {"alignment"}
    assert got["alignment"].dtype == jnp.float32
    assert got["alignment"] == pytest.approx(0.5 * np.mean(losses), rel=1e-4)
    assert np.mean(losses) > 0.1
    # The generative loss masks in training, from the step's key.
    masked = [auxiliary(module, frozen, params, seen, dropout=jax.random.key(k))["alignment"] for k in (0, 0, 1)]
    assert masked[0] == masked[1]
    assert (masked[0] != got["alignment"]) == (masked[0] != masked[2]) == (alignment == "generative")

    # bfloat16 computes alike.
    half, _ = built("rlmrec", alignment=alignment, alignment_weight=0.5, alignment_temperature=0.3, dtype=jnp.bfloat16)
    assert auxiliary(half, frozen, params, seen)["alignment"] == pytest.approx(float(got["alignment"]), rel=0.05)


def test_rlmrec_vectors_are_ids_and_the_loss_moves_targets_alone():
    module, frozen, params = started("rlmrec")
    vectors = table(module, frozen, params)
    np.testing.assert_array_equal(vectors, np.where(np.arange(N)[:, None] == COLD, 0, params["id_embedding"]))
    seen = seen_targets(TARGETS, WEIGHT)
    gradient = jax.grad(lambda p: auxiliary(module, frozen, p, seen)["alignment"])(params)
    moved = np.abs(gradient["id_embedding"]).max(axis=1) > 1e-5
    assert np.flatnonzero(moved).tolist() == [3, 9, 12]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["adapter"]))


@pytest.mark.parametrize("targets", [[TEXTLESS, TEXTLESS], [9, 9]])
def test_rlmrec_with_nothing_to_contrast_has_no_loss_and_finite_gradients(targets):
    module, frozen, params = started("rlmrec")
    seen = seen_targets(targets, [1, 1])
    value, gradient = jax.value_and_grad(lambda p: auxiliary(module, frozen, p, seen)["alignment"])(params)
    assert value == pytest.approx(0, abs=1e-6)
    assert all(np.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(gradient))


# llmesr


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
    with pytest.raises(InputError, match=r"llmesr halves the vectors .* --dimension=7 is odd; take 8"):
        built("llmesr", dimension=7)


# Two rows of histories: 2 + 3 items and padding; 4 items and padding.
SEGMENT = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]], np.int32)


def layout_of(segment, hidden=None):
    position = np.zeros_like(segment)
    for row, of in zip(position, segment, strict=True):
        for number in range(1, of.max() + 1):
            row[of == number] = np.arange(np.count_nonzero(of == number))
    return SequenceLayout(segment > 0, segment, position, None, hidden)


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


def test_last_positions_end_every_history():
    want = [[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    np.testing.assert_array_equal(last_positions(layout_of(SEGMENT)), np.array(want, bool))
    full = np.array([[0, 1, 1, 2, 2, 2]], np.int32)  # padding on the left, and an end at the row's
    np.testing.assert_array_equal(last_positions(layout_of(full)), [[False, False, True, False, False, True]])


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
    loss = lambda s: distillation(s / jnp.linalg.norm(s, axis=1, keepdims=True), jnp.float32(texts), present)  # noqa: E731
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


@pytest.mark.parametrize("present", [0, 1, 3])
def test_distillation_of_few_users(present):
    """None has no loss, one has no teacher, three have two each."""
    states = np.eye(4, dtype=np.float32)
    loss = lambda s: distillation(s, jnp.ones((4, 2)), jnp.arange(4) < present)  # noqa: E731
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
            states[np.asarray(last_positions(layout))] = ends
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


# Every loss


@pytest.mark.parametrize("options", [("rlmrec", "contrastive"), ("rlmrec", "generative"), ("llmesr", "contrastive")])
def test_a_part_of_the_catalogue_gives_the_losses_and_gradients_of_the_whole(options):
    """As a sparse step takes it: the items that it touches, others among them, and filled up."""
    module, frozen, params = started(options[0], alignment=options[1])
    layout, rng = layout_of(SEGMENT), np.random.default_rng(4)
    item_ids = np.where(layout.mask, rng.integers(N, size=SEGMENT.shape), 0)
    states = rng.normal(size=(*SEGMENT.shape, D)).astype(np.float32)
    ids = np.unique(np.concatenate([item_ids[layout.mask], TARGETS, [0, 15, 29]]))
    ids = np.append(ids, [N - 1, N - 1])  # two rows too many
    assert len(ids) < N
    part = module.clone(num_items=len(ids))
    rows = {name: array[ids] if name in module.item_arrays else array for name, array in frozen.items()}
    few = {**params, "id_embedding": params["id_embedding"][ids]}
    place = lambda x: np.int32(np.searchsorted(ids[:-2], x))  # noqa: E731

    def step(module, frozen, params, at):
        seen = StepView(None, np.int32(at(item_ids)), layout, states, np.int32(at(TARGETS)), WEIGHT)
        seen = jax.tree.map(jnp.asarray, seen)
        key = {"dropout": jax.random.key(5)}

        def loss(p):
            (value,) = module.apply({"params": p, "frozen": frozen}, seen, method=_auxiliary, rngs=key).values()
            return value

        return jax.jit(jax.value_and_grad(loss))(params)

    whole, gradient = step(module, frozen, params, lambda x: x)
    value, sparse = step(part, rows, few, place)
    assert whole > 0.01
    assert float(value) == pytest.approx(float(whole), rel=1e-5)
    table = np.zeros((N, sparse["id_embedding"].shape[1]), np.float32)
    np.add.at(table, ids, sparse["id_embedding"])
    gradient = {**gradient, "id_embedding": np.asarray(gradient["id_embedding"])}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), {**sparse, "id_embedding": table}, gradient
    )
