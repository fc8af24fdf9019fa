"""BERT4Rec: the mask token, attention both ways within a history, packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sasrec import D, L, layout, reference

from spectran_jax import backbones
from spectran_jax.backbones.bert4rec import from_newest
from spectran_jax.config import BackboneConfig

HIDDEN = np.zeros((2, L + 1), bool)
HIDDEN[0, [1, 4]] = HIDDEN[1, 8] = True


def hidden_layout(lengths, hidden):
    """Rows of L + 1 positions."""
    found = layout(lengths, L + 1)
    return found._replace(hidden=hidden & found.mask)


@pytest.fixture(scope="module")
def model():
    config = BackboneConfig(backbone="bert4rec", blocks=2, heads=2)
    module = backbones.build(config, dimension=D, max_length=L)
    x = jax.random.normal(jax.random.PRNGKey(0), (2, L + 1, D))
    lay = hidden_layout([[5], [L + 1]], HIDDEN)
    params = jax.jit(lambda: module.init(jax.random.PRNGKey(1), x, lay, train=False))()["params"]
    # Larger weights than at initialisation, so that attention is far from uniform and a leak would show.
    params = jax.tree.map(lambda p: p * 5 if p.ndim == 2 else p, params)
    params["mask_token"] = jax.random.normal(jax.random.PRNGKey(2), (D,))
    run = jax.jit(lambda x, lay: module.apply({"params": params}, x, lay, train=False))
    return lambda x, lay: np.asarray(run(x, lay)), params, x


def test_it_is_trained_by_masking_in_rows_of_one_more_position(model):
    assert backbones.is_masked(BackboneConfig(backbone="bert4rec"))
    assert not backbones.is_masked(BackboneConfig())
    assert model[1]["newest_position_embedding"].shape == (L + 1, D)
    assert model[1]["mask_token"].shape == (D,)


def test_what_is_hidden_influences_no_state(model):
    run, _, x = model
    lay = hidden_layout([[5], [L + 1]], HIDDEN)
    before = run(x, lay)
    np.testing.assert_array_equal(run(jnp.where(lay.hidden[..., None], 1e3, x), lay)[lay.mask], before[lay.mask])
    # Every other item does, in both directions, and no other history's does.
    for row, at in ((0, 0), (0, 3), (1, 7)):
        moved = np.abs(run(x.at[row, at, 0].add(2.0), lay) - before).max(axis=-1)
        assert moved[row][lay.mask[row]].min() > 1e-4
        assert moved[1 - row].max() == 0


def test_packed_and_padded_rows_give_the_same_states(model):
    run, _, x = model
    packed = hidden_layout([[3, 6], []], np.array([[0, 1, 0, 0, 0, 0, 0, 1, 1], [0] * 9], bool))
    padded = hidden_layout([[3], [6]], np.array([[0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0, 0]], bool))
    rolled = jnp.stack([x[0], jnp.roll(x[0], -3, 0)])
    ours, theirs = run(x, packed), run(rolled, padded)
    np.testing.assert_allclose(ours[0, :3], theirs[0, :3], atol=1e-5)
    np.testing.assert_allclose(ours[0, 3:], theirs[1, :6], atol=1e-5)
    noisy = jnp.where(padded.mask[..., None], rolled, 1e3)
    np.testing.assert_allclose(run(noisy, padded)[padded.mask], theirs[padded.mask], atol=1e-5)
    assert np.isfinite(ours).all()  # of a row that is all padding, too


def formula(xp, x, params, lay):
    """States of the first row, in `xp`."""
    items = x / xp.sqrt((x**2).mean(-1, keepdims=True))
    shown = xp.where(lay.hidden[..., None], params["mask_token"], items)
    params = {**params, "position_embedding": params["newest_position_embedding"]}
    from_the_end = lambda xp, h, positions: h + positions[: len(h)][::-1]  # noqa: E731
    return reference(xp, shown[:1], params, lay, causal=False, inputs=from_the_end)


def test_states_agree_with_the_formula(model):
    run, params, x = model
    lay = hidden_layout([[4, 5], [2]], HIDDEN)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = formula(np, np.asarray(x, np.float64), wide, lay)
    np.testing.assert_allclose(run(x, lay)[0][lay.mask[0]], want, atol=2e-4)


def test_gradients_agree_with_those_of_the_plain_formula(model):
    _, params, x = model
    module = backbones.build(BackboneConfig(backbone="bert4rec", blocks=2, heads=2), dimension=D, max_length=L)
    lay = hidden_layout([[4, 5], [L + 1]], HIDDEN)
    cotangent = jax.random.normal(jax.random.PRNGKey(3), (L + 1, D))

    def gradients(states):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(states(p, x) * cotangent), argnums=(0, 1)))(params, x)

    ours = gradients(lambda p, x: module.apply({"params": p}, x, lay, train=False)[0])
    plain = gradients(lambda p, x: formula(jnp, x, p, lay))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()) + 1e-6)


def test_bfloat16_computes_in_bfloat16_near_float32(model):
    run, params, x = model
    lay = hidden_layout([[4, 5], [L + 1]], HIDDEN)
    config = BackboneConfig(backbone="bert4rec", blocks=2, heads=2)
    module = backbones.build(config, dimension=D, max_length=L, dtype=jnp.bfloat16)
    states = module.apply({"params": params}, x, lay, train=False)
    assert states.dtype == jnp.bfloat16
    assert np.abs(np.asarray(states, np.float32) - run(x, lay)).max() < 0.1


def test_the_length_of_item_vectors_changes_no_state(model):
    """So that positions are seen whatever the scale of an item encoder."""
    run, _, x = model
    lay = hidden_layout([[5], [L + 1]], HIDDEN)
    for scale in (1e-4, 20):
        np.testing.assert_allclose(run(scale * x, lay), run(x, lay), atol=1e-4)


def test_older_items_leave_those_that_follow_at_their_positions():
    """Trained at the end of a short history, it predicts from a longer one by the same two positions."""
    short, long = layout([[3], [2, 3]], L), layout([[5], [2, 6]], L)
    np.testing.assert_array_equal(from_newest(short), [[2, 1, 0, 0, 0, 0, 0, 0], [1, 0, 2, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(from_newest(long), [[4, 3, 2, 1, 0, 0, 0, 0], [1, 0, 5, 4, 3, 2, 1, 0]])
    assert from_newest(layout([[], [8]], L))[0].max() == 0
    # A full row, and the next one's first history of the same number.
    np.testing.assert_array_equal(from_newest(layout([[8], [2]], L)), [list(range(7, -1, -1)), [1, 0] + [0] * 6])


def test_before_training_the_state_of_a_hidden_place_is_near_what_is_shown():
    """Attention hands items on from the start, so that the items in view are the first that are likely."""
    d = 64
    module = backbones.build(BackboneConfig(backbone="bert4rec", blocks=2, heads=2), dimension=d, max_length=L)
    x = jax.random.normal(jax.random.PRNGKey(0), (2, L + 1, d))
    lay = hidden_layout([[2], [2]], np.eye(1, L + 1, 1, dtype=bool).repeat(2, 0))
    params = module.init(jax.random.PRNGKey(1), x, lay, train=False)["params"]
    for block in ("block_0", "block_1"):
        passed = params[block]["qkv"]["kernel"][:, 2 * d :] @ params[block]["attention_out"]["kernel"]
        np.testing.assert_allclose(passed, np.eye(d), atol=0.2)
        assert abs(params[block]["qkv"]["kernel"][:, : 2 * d]).max() < 0.2
    states = np.asarray(module.apply({"params": params}, x, lay, train=False))[:, 1]
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))  # noqa: E731
    seen = np.asarray(x[:, 0])
    # The token and the positions are all that the two states share.
    assert cosine(states[0] - states[1], seen[0] - seen[1]) > 0.8
