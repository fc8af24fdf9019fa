"""What bfloat16 and int8 lose, and what int8 refuses."""

import jax
import ml_dtypes
import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.spectral import decompose, dequantise
from spectran_jax.spectral.storage import int8_scale, quantise


def make(n=2000, m=24):
    rng = np.random.default_rng(3)
    return rng.standard_t(6, size=(n, m)) * np.linspace(1, 0.05, m) + rng.normal(size=m)


@pytest.mark.parametrize("method", ["exact", "gram"])
@pytest.mark.parametrize("options", [{}, {"max_rank": 7}, {"rtol": 1e-6}])
def test_errors_are_within_their_bounds(method, options):
    x = make()
    u = decompose(x, method=method, **options).u.astype(np.float64)
    half = decompose(x, method=method, dtype="bfloat16", **options)
    assert half.u.dtype == ml_dtypes.bfloat16
    assert half.u_scale is None
    assert (np.abs(dequantise(half.u, None) - u) <= 2.0**-8 * np.abs(u)).all()
    byte = decompose(x, method=method, dtype="int8", **options)
    assert byte.u.dtype == np.int8
    assert byte.u_scale.dtype == np.float32
    np.testing.assert_allclose(byte.u_scale, np.abs(u).max(axis=0) / 127, rtol=1e-6)
    error = np.abs(dequantise(byte.u, byte.u_scale).astype(np.float64) - u)
    assert (error <= byte.u_scale / 2 * (1 + 1e-5)).all()
    assert error.max() > byte.u_scale.min() / 4  # the bound is no idle one
    assert (np.abs(byte.u.astype(int)).max(axis=0) == 127).all()
    for spectrum in (half, byte):
        np.testing.assert_array_equal(spectrum.sigma, decompose(x, method=method, **options).sigma)


def test_ties_go_to_the_even_code():
    u = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127.0, 0.0]], np.float32).T
    assert quantise(u, np.ones(1, np.float32)).T.tolist() == [[0, 2, 2, 0, -2, 126, -127, 0]]


def test_items_without_text_stay_zero():
    has_text = np.arange(2000) % 3 != 0
    spectrum = decompose(make(), has_text, dtype="int8")
    assert not spectrum.u[~has_text].any()
    assert spectrum.u[has_text].any(axis=1).all()


def test_dequantise_under_jit():
    spectrum = decompose(make(), dtype="int8")
    assert len(jax.tree.leaves(spectrum)) == 7
    ids = np.array([[3, 5], [0, 1999]])
    want = dequantise(spectrum.u[ids], spectrum.u_scale)
    got = jax.jit(lambda s: dequantise(s.u[ids], s.u_scale))(spectrum)
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    half = decompose(make(), dtype="bfloat16")
    np.testing.assert_array_equal(jax.jit(dequantise)(half.u, None), half.u.astype(np.float32))


@pytest.mark.parametrize("method", ["exact", "gram"])
def test_a_heavy_tail_is_refused_by_name(method):
    # An item alone in its direction: its coordinate is sqrt(n - 1), all others' next to nothing.
    rng = np.random.default_rng(0)
    x = np.zeros((2500, 6))
    x[:, :5] = rng.normal(size=(2500, 5)) * [8, 7, 6, 5, 4]
    x[77, 5] = 100
    options = {"normalize_rows": False, "method": method}
    with pytest.raises(InputError, match=r"Component 5 \(counted from 0\).* 50\.0 times .*--spectrum_dtype=bfloat16"):
        decompose(x, dtype="int8", **options)
    assert decompose(x, dtype="bfloat16", **options).rank == 6
    assert decompose(x[:900], dtype="int8", **options).rank == 6  # sqrt(900) is below 32


def test_what_is_not_finite_is_refused():
    with pytest.raises(InputError, match=r"Component 1 .* NaN or inf"):
        int8_scale(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(InputError, match=r"Component 0 .* NaN or inf"):
        int8_scale(np.array([np.inf, 1.0]), np.ones(2))
