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


def layout(lengths: list[list[int]]) -> SequenceLayout:
    """Rows of histories of these lengths, packed from the left."""
    mask, segment, position = (np.zeros((len(lengths), L), np.int32) for _ in range(3))
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


def test_attention_agrees_with_the_formula():
    """One block against NumPy float64 written from the definition."""
    module = backbones.build(BackboneConfig(blocks=1, heads=2, dropout=0.0), dimension=D, max_length=L)
    x = np.random.default_rng(0).normal(size=(1, L, D)).astype(np.float32)
    lay = layout([[8]])
    params = module.init(jax.random.PRNGKey(1), x, lay, train=False)["params"]
    params = jax.tree.map(lambda p: p * 4 if p.ndim == 2 else p, params)
    got = np.asarray(module.apply({"params": params}, x, lay, train=False))[0]

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(h, q):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return h * q["scale"] + q["bias"]

    def dense(h, q):
        return h @ q["kernel"] + q["bias"]

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    h = norm(x[0].astype(np.float64) * D**0.5 + p["position_embedding"], p["input_norm"])
    b = p["block_0"]
    q, k, v = np.split(dense(norm(h, b["attention_norm"]), b["qkv"]), 3, axis=-1)
    heads = []
    for i in range(2):
        s = slice(i * D // 2, (i + 1) * D // 2)
        z = q[:, s] @ k[:, s].T / np.sqrt(D // 2)
        z[np.triu_indices(L, 1)] = -np.inf
        w = np.exp(z - z.max(-1, keepdims=True))
        heads.append(w / w.sum(-1, keepdims=True) @ v[:, s])
    h = h + dense(np.concatenate(heads, -1), b["attention_out"])
    h = h + dense(gelu(dense(norm(h, b["ffn_norm"]), b["ffn_in"])), b["ffn_out"])
    np.testing.assert_allclose(got, norm(h, p["output_norm"]), atol=2e-4)


def test_heads_must_divide_the_dimension():
    with pytest.raises(InputError, match=r"--dimension=10 is not divisible by --heads=4; take one of 1, 2, 5, 10"):
        backbones.build(BackboneConfig(heads=4), dimension=10, max_length=L)


def test_unknown_backbone_suggests_the_nearest():
    with pytest.raises(InputError, match=r"Unknown backbone 'sasrek'.*Did you mean 'sasrec'"):
        backbones.build(BackboneConfig(backbone="sasrek"), dimension=8, max_length=L)
