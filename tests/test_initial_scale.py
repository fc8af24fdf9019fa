"""Where the attention starts: spread and threshold against integrals, draws and the bounds of docs/scale.md."""

import functools

import jax
import numpy as np
import pytest
from adapter_runs import apply, start
from flax import linen as nn

from spectran_jax.adapter import SpecTranAdapter
from spectran_jax.config import EncoderConfig
from spectran_jax.initial_scale import (
    equal_row_normal,
    initial_scale,
    inverse_softplus,
    softmax_spread,
    softshrink_energy,
)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.96, 3.0])
def test_softshrink_energy_is_the_integral(ratio):
    z = np.linspace(ratio, ratio + 12, 400_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    integral = 2 * np.trapezoid((z - ratio) ** 2 * density, z)
    np.testing.assert_allclose(softshrink_energy(ratio), integral, rtol=1e-6)


def test_inverse_softplus():
    for x in (1e-6, 0.08, 1.0, 50.0):
        assert float(jax.nn.softplus(inverse_softplus(x))) == pytest.approx(x, rel=1e-5)


@functools.cache
def draw(initializer, shape, seed):
    """One draw of unit spread: Q and K scale with it."""
    return np.asarray(initializer(1.0)(jax.random.key(seed, impl="rbg"), shape))


def measure(scale, d, r, k, seed):
    """Share of live entries, and energy of phi(Z) over that of A, of one draw."""
    query, key = draw(equal_row_normal, (d, k), seed), draw(nn.initializers.normal, (r, k), seed + 2)
    z = scale.factor_std**2 * query @ key.T / np.sqrt(k)
    phi = np.sign(z) * np.maximum(np.abs(z) - scale.threshold, 0)
    return np.mean(phi != 0), np.sum(phi**2) / min(d, r)


@pytest.mark.parametrize("k", [16, 64, 256])
@pytest.mark.parametrize("r", [100, 384, 4096])
@pytest.mark.parametrize("d", [16, 64, 256])
def test_scale_at_start_over_a_grid(d, r, k):
    live_bound, energy_bound = ((0.92, 1.08), (0.88, 1.12)) if r == 4096 else ((0.75, 1.3), (0.5, 1.7))
    scale = initial_scale(d, r, live=0.05)
    assert scale.live == (0.05 if d <= r else 0.08)
    for seed in (0, 1):
        live, energy = measure(scale, d, r, k, seed)
        assert live_bound[0] < live / scale.live < live_bound[1]
        assert energy_bound[0] < energy / 0.1 < energy_bound[1]


@pytest.mark.parametrize(("d", "r", "k"), [(256, 100, 16), (64, 4096, 64)])
@pytest.mark.parametrize("live", [0.05, 0.8])
def test_module_starts_at_that_scale(d, r, k, live):
    module = SpecTranAdapter(d, r, attention_dimension=k, attention_live=live)
    scale = initial_scale(d, r, live=live)
    sigma = np.arange(1, r + 1, dtype=np.float32) ** -0.5
    params = start(module)
    got = apply(module, params, sigma, method=module.diagnostics)
    np.testing.assert_allclose(got["threshold"], scale.threshold, rtol=1e-4)
    np.testing.assert_allclose(got["diagonal_row_energy"], min(d, r) / d, rtol=1e-5)
    assert 0.75 < got["attention_live"] / scale.live < 1.3
    assert 0.5 < got["attention_energy"] / 0.1 < 1.7
    for name in ("query", "key"):
        assert np.std(params["params"][name]) == pytest.approx(scale.factor_std, rel=0.1)


@pytest.mark.parametrize("k", [4, 16])
def test_scale_at_start_is_exact_even_at_small_k(k):
    """Over 4 million entries; with normal rows of Q the energy at k = 4 would be three times as large."""
    live, energy = measure(initial_scale(2000, 2000, live=0.05), 2000, 2000, k, 0)
    assert live == pytest.approx(0.05, rel=0.1)
    assert energy == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("r", [100, 384, 4096])
@pytest.mark.parametrize("d", [16, 64, 256])
def test_softmax_energy_at_start_over_a_grid(d, r):
    scale = initial_scale(d, r, attention="softmax")
    for k in (16, 64, 256):
        query, key = draw(equal_row_normal, (d, k), 0), draw(nn.initializers.normal, (r, k), 2)
        p = np.exp(scale.spread * query @ key.T / np.sqrt(k))
        p /= p.sum(1, keepdims=True)
        assert 0.6 < np.sum(p**2) / min(d, r) / 0.1 < 2.5


def test_softmax_module_starts_at_that_scale():
    module = SpecTranAdapter(16, 100, attention="softmax")
    sigma = np.arange(1, 101, dtype=np.float32) ** -0.5
    parts = apply(module, start(module), sigma, method=module.parts)
    np.testing.assert_allclose(np.sum(parts.attention, axis=1), 1, rtol=1e-5)
    assert 0.6 < np.sum(np.square(parts.attention)) / 16 / 0.1 < 2.5


def test_softmax_spread_grows_with_the_energy_and_stays_alive():
    spreads = [softmax_spread(100, energy) for energy in (0.001, 0.02, 0.1, 0.4, 0.9)]
    assert spreads[0] == pytest.approx(0.1)
    assert spreads == sorted(spreads)
    assert spreads[-1] == pytest.approx(softmax_spread(100, 0.5))


def test_attention_alone_carries_unit_energy():
    module = SpecTranAdapter(64, 384, position_encoding=False, spectral_norm="none")
    parts = apply(module, start(module), np.ones(384, np.float32), method=module.parts)
    assert parts.diagonal is None
    assert np.sum(np.square(parts.weights)) / 64 == pytest.approx(1, rel=0.3)


def test_the_defaults_are_those_of_the_configuration():
    config = EncoderConfig()
    module = SpecTranAdapter(64, 384)
    for name in ("attention_live", "attention_energy", "attention_dimension", "spectral_norm", "taylor_order"):
        assert getattr(module, name) == getattr(config, name), name
    assert initial_scale(64, 384) == initial_scale(64, 384, live=config.attention_live, energy=config.attention_energy)


@pytest.mark.parametrize(("live", "energy"), [(0.01, 0.1), (0.3, 0.02), (0.05, 2.0)])
def test_scale_follows_its_options(live, energy):
    got = measure(initial_scale(64, 4096, live=live, energy=energy), 64, 4096, 64, 0)
    assert got == pytest.approx((live, energy), rel=0.1)
