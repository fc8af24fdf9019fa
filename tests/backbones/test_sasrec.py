"""SASRec: causality, packing, padding; what every causal backbone must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import backbones
from spectran_jax.config import BackboneConfig
from spectran_jax.errors import InputError
from spectran_jax.layout import SequenceLayout

D, L = 16, 8


def layout(lengths: list[list[int]], length: int = L) -> SequenceLayout:
    """Rows of histories of these lengths, packed from the left."""
    mask, segment, position = (np.zeros((len(lengths), length), np.int32) for _ in range(3))
    for row, parts in enumerate(lengths):
        start = 0
        for number, part in enumerate(parts, 1):
            mask[row, start : start + part] = 1
            segment[row, start : start + part] = number
            position[row, start : start + part] = np.arange(part)
            start += part
    return SequenceLayout(mask.astype(bool), segment, position)


@pytest.fixture(scope="module")
def model():
    module = backbones.build(BackboneConfig(blocks=2, heads=2, dropout=0.5), dimension=D, max_length=L)
    x = jax.random.normal(jax.random.PRNGKey(0), (2, L, D))
    params = module.init(jax.random.PRNGKey(1), x, layout([[5], [8]]), train=False)["params"]
    # Larger weights than at initialisation, so that attention is far from uniform and a leak would show.
    params = jax.tree.map(lambda p: p * 5 if p.ndim == 2 else p, params)
    return lambda x, lay: np.asarray(module.apply({"params": params}, x, lay, train=False)), module, params, x


def test_a_change_at_t_changes_no_state_before_t(model):
    run, _, _, x = model
    lay = layout([[8], [8]])
    before = run(x, lay)
    for t in range(L):
        after = run(x.at[:, t, 0].add(2.0), lay)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert np.abs(before[:, t:] - after[:, t:]).max(axis=(0, 2)).min() > 1e-4


def test_padding_changes_nothing(model):
    run, _, _, x = model
    lay = layout([[5], [8]])
    noisy = jnp.where(lay.mask[..., None], x, 1e3)
    np.testing.assert_allclose(run(x, lay)[lay.mask], run(noisy, lay)[lay.mask], atol=1e-6)


def test_packed_equals_padded(model):
    run, _, _, x = model
    packed = run(x, layout([[3, 5], [2, 2]]))
    first = run(jnp.concatenate([x[:1, :3], x[:1, 3:]], 1), layout([[3]]))
    second = run(jnp.concatenate([x[:1, 3:], x[:1, :3]], 1), layout([[5]]))
    np.testing.assert_allclose(packed[0, :3], first[0, :3], atol=1e-5)
    np.testing.assert_allclose(packed[0, 3:], second[0, :5], atol=1e-5)


def test_packed_and_padded_give_the_same_gradients(model):
    _, module, params, x = model
    cotangent = jax.random.normal(jax.random.PRNGKey(5), (8, D))

    def loss(params, vectors, lay):
        """The same two histories' states times fixed numbers, in one row or in two."""
        states = module.apply({"params": params}, vectors, lay, train=False)
        return jnp.sum(states[np.nonzero(lay.mask)] * cotangent)

    padded = jnp.zeros((2, L, D)).at[0, :3].set(x[0, :3]).at[1, :5].set(x[0, 3:])

    def gradients(vectors, lay):
        return jax.jit(lambda p, v: jax.grad(loss, argnums=(0, 1))(p, v, lay))(params, vectors)

    in_one, in_two = gradients(x[:1], layout([[3, 5]])), gradients(padded, layout([[3], [5]]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), in_one[0], in_two[0])
    two = jnp.concatenate([in_two[1][0, :3], in_two[1][1, :5]])
    np.testing.assert_allclose(in_one[1][0], two, atol=1e-3, rtol=1e-3)


def test_no_row_is_nan_even_when_all_of_it_is_padding(model):
    run, _, _, x = model
    assert np.isfinite(run(x, layout([[], [8]]))).all()


def test_dropout_only_in_training(model):
    run, module, params, x = model
    lay = layout([[8], [8]])
    np.testing.assert_array_equal(run(x, lay), run(x, lay))
    drop = [
        module.apply({"params": params}, x, lay, train=True, rngs={"dropout": jax.random.PRNGKey(i)}) for i in (0, 1)
    ]
    assert np.abs(np.asarray(drop[0]) - np.asarray(drop[1])).max() > 1e-3


def scaled(xp, h, positions):
    return h * D**0.5 + positions[: len(h)]


def reference(xp, x, p, lay, *, heads=2, d=D, causal=True, inputs=scaled):
    """The model from its formulas, one history and one head at a time, in `xp` (NumPy, or jax.numpy to differentiate).

    `inputs` makes what goes in of `xp`, the items of a history and the position embeddings.

    Returns the states of the first row's histories, [sum of lengths, d].
    """

    def norm(h, q):
        h = (h - h.mean(-1, keepdims=True)) / xp.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return h * q["scale"] + q["bias"]

    def dense(h, q):
        return h @ q["kernel"] + q["bias"]

    def gelu(h):
        return 0.5 * h * (1 + xp.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    def history(h):
        n = len(h)
        h = norm(inputs(xp, h, p["position_embedding"]), p["input_norm"])
        for index in range(sum(name.startswith("block_") for name in p)):
            b = p[f"block_{index}"]
            q, k, v = xp.split(dense(norm(h, b["attention_norm"]), b["qkv"]), 3, axis=-1)
            outputs = []
            for i in range(heads):
                s = slice(i * d // heads, (i + 1) * d // heads)
                z = q[:, s] @ k[:, s].T / np.sqrt(d // heads) + causal * np.triu(np.full((n, n), -1e30), 1)
                w = xp.exp(z - z.max(-1, keepdims=True))
                outputs.append(w / w.sum(-1, keepdims=True) @ v[:, s])
            h = h + dense(xp.concatenate(outputs, -1), b["attention_out"])
            h = h + dense(gelu(dense(norm(h, b["ffn_norm"]), b["ffn_in"])), b["ffn_out"])
        return norm(h, p["output_norm"])

    segment = np.asarray(lay.segment)[0]
    return xp.concatenate([history(x[0, segment == number]) for number in range(1, segment.max() + 1)])


@pytest.mark.parametrize("lengths", [[8], [3, 4]])
def test_states_agree_with_the_formula(model, lengths):
    run, _, params, x = model
    lay = layout([lengths])
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = reference(np, np.asarray(x[:1], np.float64), wide, lay)
    np.testing.assert_allclose(run(x[:1], lay)[lay.mask], want, atol=2e-4)


def test_gradients_agree_with_those_of_the_plain_formula(model):
    _, module, params, x = model
    lay = layout([[3, 5]])
    cotangent = jax.random.normal(jax.random.PRNGKey(3), (8, D))

    def gradients(states):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(states(p, x) * cotangent), argnums=(0, 1)))(params, x[:1])

    ours = gradients(lambda p, x: module.apply({"params": p}, x, lay, train=False)[0])
    plain = gradients(lambda p, x: reference(jnp, x, p, lay))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()) + 1e-6)


def test_bfloat16_computes_in_bfloat16_near_float32(model):
    run, _, params, x = model
    lay = layout([[3, 5], [8]])
    module = backbones.build(BackboneConfig(blocks=2, heads=2), dimension=D, max_length=L, dtype=jnp.bfloat16)
    states = module.apply({"params": params}, x, lay, train=False)
    assert states.dtype == jnp.bfloat16
    assert np.abs(np.asarray(states, np.float32) - run(x, lay)).max() < 0.1


def test_parameters_keep_their_names_and_shapes(model):
    """Checkpoints depend on them."""
    _, _, params, _ = model
    norm = {"scale": (D,), "bias": (D,)}
    block = {"attention_norm": norm, "ffn_norm": norm}
    for name, rows, columns in (
        ("qkv", D, 3 * D),
        ("attention_out", D, D),
        ("ffn_in", D, 4 * D),
        ("ffn_out", 4 * D, D),
    ):
        block[name] = {"kernel": (rows, columns), "bias": (columns,)}
    want = {
        "position_embedding": (L, D),
        "input_norm": norm,
        "block_0": block,
        "block_1": block,
        "output_norm": norm,
    }
    assert jax.tree.map(jnp.shape, params) == want


def test_heads_must_divide_the_dimension():
    with pytest.raises(InputError, match=r"--dimension=10 is not divisible by --heads=4; take one of 1, 2, 5, 10"):
        backbones.build(BackboneConfig(heads=4), dimension=10, max_length=L)


def test_unknown_backbone_suggests_the_nearest():
    with pytest.raises(InputError, match=r"Unknown backbone 'sasrek'.*Did you mean 'sasrec'"):
        backbones.build(BackboneConfig(backbone="sasrek"), dimension=8, max_length=L)
