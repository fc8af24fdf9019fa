"""The encoders alphafuse and rlmrec against NumPy from their formulas, and what each of them promises."""

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
    losses,
    singular_vectors,
    started,
    table,
    unit,
)

from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.item_encoders import StepView
from spectran_jax.layout import SequenceLayout

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
            (value,) = module.apply({"params": p, "frozen": frozen}, seen, method=losses, rngs=key).values()
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
