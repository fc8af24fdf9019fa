"""The randomised range finder against its error bound and against the exact SVD."""

import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.spectral import decompose, project, randomized, rows
from spectran_jax.spectral.routes import Options

K = 12
DECAY = {
    "slow": np.arange(1, 121) ** -0.5,
    "fast": np.arange(1, 121) ** -2.0,
    "geometric": 0.8 ** np.arange(120),
    "flat": np.ones(120),
}


def with_singular_values(n, m, values, seed=0):
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(n, len(values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(m, len(values))))[0]
    return (left * values) @ right.T + rng.normal(size=m) / n**0.5  # centring takes the common row away


def bound(values, m, p, q):
    """Halko, Martinsson and Tropp 2011: theorem 10.6 and corollary 10.10, written out."""
    first = 1 + np.sqrt(K / (p - 1)) + np.e * np.sqrt(K + p) / p * np.sqrt(m - K)
    return first ** (1 / (2 * q + 1)) * values[K]


@pytest.mark.parametrize("decay", DECAY)
@pytest.mark.parametrize(("p", "q"), [(5, 0), (5, 1), (20, 3)])
def test_range_is_within_the_bound(decay, p, q, monkeypatch):
    values = DECAY[decay]
    x = with_singular_values(400, 130, values)
    monkeypatch.setattr(randomized, "OVERSAMPLING", p)
    monkeypatch.setattr(randomized, "POWER_ITERATIONS", q)
    errors = []
    for seed in range(10):
        monkeypatch.setattr(randomized, "_SEED", seed)
        _, basis = randomized.range_finder(x, np.ones(400, bool), Options(normalize_rows=False, max_rank=K))
        np.testing.assert_allclose(basis.T @ basis, np.eye(K + p), atol=1e-12)
        centred = x - x.mean(axis=0)
        errors.append(np.linalg.norm(centred - centred @ basis @ basis.T, 2))
    assert np.mean(errors) <= bound(values, 130, p, q)
    assert min(errors) >= values[K + p] * (1 - 1e-9)  # nothing of this rank does better


def test_docstring_has_the_number():
    k, p, q, m = 64, 20, 3, 4096
    factor = (1 + np.sqrt(k / (p - 1)) + np.e * np.sqrt(k + p) / p * np.sqrt(m - k)) ** (1 / (2 * q + 1))
    assert f"{factor:.2f}" in randomized.randomized.__doc__
    assert (p, q) == (randomized.OVERSAMPLING, randomized.POWER_ITERATIONS)


@pytest.mark.parametrize("decay", ["fast", "geometric"])
@pytest.mark.parametrize("shape", [(400, 130), (130, 400)])
@pytest.mark.parametrize("normalize_rows", [True, False])
def test_equals_exact_where_the_spectrum_decays(decay, shape, normalize_rows):
    x = with_singular_values(*shape, DECAY[decay])
    options = {"max_rank": K, "normalize_rows": normalize_rows}
    exact, ours = (decompose(x, method=method, **options) for method in ("exact", "randomized"))
    np.testing.assert_allclose(ours.scale, exact.scale, rtol=1e-9)
    np.testing.assert_allclose(ours.sigma, exact.sigma, rtol=1e-6)
    np.testing.assert_allclose(ours.basis, exact.basis, atol=1e-4)
    np.testing.assert_allclose(ours.u, exact.u, atol=1e-3)
    np.testing.assert_allclose(project(ours, x, normalize_rows=normalize_rows), ours.u, atol=1e-5)


def test_slow_decay_is_near(monkeypatch):
    x = with_singular_values(400, 130, DECAY["slow"])
    exact, ours = (decompose(x, method=method, normalize_rows=False, max_rank=K) for method in ("exact", "randomized"))
    assert (ours.sigma <= exact.sigma * (1 + 1e-6)).all()  # a Ritz value is never above
    np.testing.assert_allclose(ours.sigma, exact.sigma, rtol=0.02)
    u = ours.u.astype(np.float64)
    np.testing.assert_allclose(u.T @ u / 400, np.eye(K), atol=1e-6)


def test_deterministic_whatever_the_chunk(monkeypatch):
    x = with_singular_values(300, 60, DECAY["geometric"][:60])
    options = {"method": "randomized", "max_rank": K}
    one, two = decompose(x, **options), decompose(x, **options)
    np.testing.assert_array_equal(one.u, two.u)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 8 * 60 * 11)
    np.testing.assert_allclose(decompose(x, **options).u, one.u, atol=1e-5)


def test_items_without_text_and_zero_rows():
    x = with_singular_values(300, 60, DECAY["geometric"][:60])
    x[[3, 200]] = 0
    x[50] = np.nan
    has_text = np.arange(300) != 50
    options = {"max_rank": K}
    exact, ours = (decompose(x, has_text, method=method, **options) for method in ("exact", "randomized"))
    assert int(ours.count) == 297
    assert not ours.u[[3, 50, 200]].any()
    np.testing.assert_allclose(ours.mean, exact.mean, atol=1e-15)
    np.testing.assert_allclose(ours.u, exact.u, atol=1e-4)


def test_more_than_there_is():
    x = with_singular_values(40, 10, np.arange(10, 0, -1.0))
    exact, ours = (decompose(x, method=method, max_rank=50) for method in ("exact", "randomized"))
    assert ours.rank == exact.rank == 10
    np.testing.assert_allclose(ours.u, exact.u, atol=1e-5)


def test_only_on_request(monkeypatch):
    monkeypatch.setattr("spectran_jax.spectral.routes.EXACT_COST", 0)
    monkeypatch.setattr(randomized, "randomized", None)
    assert decompose(with_singular_values(90, 30, DECAY["fast"][:30]), max_rank=2).rank == 2
    with pytest.raises(InputError, match=r"leading components only.*--max_rank"):
        decompose(np.eye(5), method="randomized")
