"""The pieces of the backbones against references written from their formulas."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.backbones import layers

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def plain_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8)])
def test_layer_norm_and_its_gradients_follow_the_formula(shape):
    arguments = (3 * normal(*shape) + 1, normal(8), normal(8))
    cotangent = normal(*shape)
    np.testing.assert_allclose(layers.layer_norm(*arguments), plain_norm(*arguments), atol=1e-5)
    ours, plain = (
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * cotangent), argnums=(0, 1, 2))(*arguments)
        for f in (layers.layer_norm, plain_norm)
    )
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_layer_norm_in_bfloat16_has_float32_statistics_and_gradients():
    """Ten thousand rows: a sum in bfloat16 would stop growing at 256 times its addend."""
    x = jnp.asarray(normal(10_000, 8) + 20, jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    got = layers.layer_norm(x, jnp.ones(8), jnp.zeros(8))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0.005, atol=0.005)
    dx, _, bias = jax.grad(lambda *a: layers.layer_norm(*a).sum(dtype=jnp.float32), argnums=(0, 1, 2))(
        x, jnp.ones(8), jnp.zeros(8)
    )
    assert (dx.dtype, bias.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(bias, 10_000)


def test_gelu_is_the_tanh_approximation():
    x = np.linspace(-12, 12, 2001, dtype=np.float32)
    wide = x.astype(np.float64)
    z = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    np.testing.assert_allclose(layers.gelu(x), 0.5 * wide * (1 + np.tanh(z)), atol=1e-6)
    slope = 0.5 * (1 + np.tanh(z)) + 0.5 * wide / np.cosh(z) ** 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * wide**2)
    np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), slope, atol=2e-6)
    assert np.isfinite(jax.vmap(jax.grad(layers.gelu))(np.float32([-1e4, 1e4]))).all()


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, answer):
    """Test vectors of Random123 (kat_vectors, threefry2x32 with 20 rounds)."""
    got = layers.threefry(tuple(map(jnp.uint32, key)), *map(jnp.uint32, counter))
    assert tuple(map(int, got)) == answer


def keep(rate: float, shape=(1000, 64), seed=0, site=0) -> np.ndarray:
    return np.asarray(layers.Dropout(rate, jax.random.key(seed))(jnp.ones(shape), site))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_rate_and_the_expectation(rate):
    out = keep(rate)
    kept = out > 0
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-4)
    sigma = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 4 * sigma / np.sqrt(kept.size)
    assert np.abs(kept.mean(0) - (1 - rate)).max() < 5 * sigma / np.sqrt(1000)  # no column is special
    assert np.abs(kept.mean(1) - (1 - rate)).max() < 5 * sigma / np.sqrt(64)


def test_dropout_draws_are_independent_across_keys_sites_rows_and_columns():
    first = keep(0.5) > 0
    others = [keep(0.5, seed=1), keep(0.5, site=1), np.roll(keep(0.5), 1, 0)]
    others += [np.roll(keep(0.5), shift, 1) for shift in (1, 2, 16, 32)]
    for other in others:
        agree = (first == (other > 0)).mean()
        assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(first.size)


def test_dropout_is_a_function_of_the_key_and_drops_the_same_from_gradients():
    np.testing.assert_array_equal(keep(0.3, (7, 6)), keep(0.3, (7, 6)))  # d that four does not divide
    drop = layers.Dropout(0.3, jax.random.PRNGKey(0))
    np.testing.assert_array_equal(jax.grad(lambda x: drop(x, 0).sum())(jnp.ones((1000, 64))), keep(0.3))


def test_dropout_at_its_ends():
    x = jnp.ones((4, 8))
    np.testing.assert_array_equal(layers.Dropout(0.0, jax.random.key(0))(x, 0), 1)
    np.testing.assert_array_equal(layers.Dropout(0.5, None)(x, 0), 1)
    np.testing.assert_array_equal(layers.Dropout(1.0, jax.random.key(0))(x, 0), 0)


def test_attention_in_bfloat16_keeps_the_softmax_in_float32():
    """200 near-equal probabilities: summed in bfloat16 they would miss 1 by a percent or more."""
    length, d = 200, 8
    qkv = jnp.asarray(np.concatenate([0.1 * normal(length, 2 * d), np.ones((length, d))], 1), jnp.bfloat16)
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
    np.testing.assert_array_equal(np.asarray(layers.attention(qkv, mask, heads=2), np.float32), 1)


@pytest.mark.parametrize(
    ("version", "capability", "want"),
    [("PJRT C API\ncuda 12090", "9.0", "cudnn"), ("PJRT C API\nrocm 60400", "gfx90a", "xla")],
    ids=["cuda", "rocm"],
)
def test_attention_asks_cudnn_where_the_gpu_is_of_nvidia(version, capability, want, monkeypatch):
    device = SimpleNamespace(
        platform="gpu", compute_capability=capability, client=SimpleNamespace(platform_version=version)
    )
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *_, implementation, mask: asked.append(implementation) or q
    )
    qkv, mask = jnp.zeros((4, 48), jnp.bfloat16), jnp.ones((1, 1, 4, 4), bool)
    layers.attention(qkv, mask, heads=2)
    layers.attention(qkv, mask, heads=2, fused=False)
    assert asked == [want, "xla"]


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({}, "cudnn"),
        ({"dtype": jnp.float16, "head_dimension": 128}, "cudnn"),
        ({"platform": "cpu"}, "xla"),
        ({"platform": "tpu"}, "xla"),
        ({"capability": 7.5}, "xla"),
        ({"dtype": jnp.float32}, "xla"),
        ({"length": 21}, "xla"),
        ({"head_dimension": 20}, "xla"),
        ({"head_dimension": 136}, "xla"),
    ],
)
def test_fused_attention_is_asked_for_where_cudnn_can_do_it(change, want):
    case = {"platform": "gpu", "capability": 9.0, "dtype": jnp.bfloat16, "length": 20, "head_dimension": 32}
    assert layers.fused_attention(**{**case, **change}) == want
