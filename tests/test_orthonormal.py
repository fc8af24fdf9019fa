"""The polar factor against its definition by singular vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.orthonormal import orthonormal_rows


def matrix(d, r, condition, seed=0):
    """Random singular vectors, singular values from 3 down to 3 / condition; and the polar factor, float64."""
    left, _, right = np.linalg.svd(np.random.default_rng(seed).normal(size=(d, r)), full_matrices=False)
    return (left * np.linspace(3, 3 / condition, d)) @ right, left @ right


@pytest.mark.parametrize(("condition", "error"), [(1, 2e-6), (5, 1e-5), (50, 1e-3)])
@pytest.mark.parametrize(("d", "r"), [(8, 20), (64, 64), (128, 300)])
def test_it_is_the_nearest_matrix_with_orthonormal_rows(d, r, condition, error):
    weights, want = matrix(d, r, condition)
    got = jax.jit(orthonormal_rows)(jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(got, want, atol=error)


def test_orthonormal_rows_come_out_as_they_are_and_zero_as_zero():
    np.testing.assert_allclose(orthonormal_rows(jnp.eye(5, 9)), np.eye(5, 9), atol=1e-6)
    np.testing.assert_array_equal(orthonormal_rows(jnp.zeros((3, 4))), np.zeros((3, 4)))


def test_rows_that_span_too_little_stay_finite():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    got = np.asarray(orthonormal_rows(weights))
    np.testing.assert_allclose(np.linalg.svd(got, compute_uv=False), 1, atol=1e-3)
    assert np.isfinite(jax.grad(lambda w: jnp.sum(orthonormal_rows(w) ** 3))(weights)).all()


def test_the_gradient_is_that_of_the_polar_factor():
    weights, _ = matrix(4, 7, 4)
    cotangent = np.random.default_rng(1).normal(size=(4, 7))

    def polar(w):
        left, _, right = np.linalg.svd(w, full_matrices=False)
        return float((cotangent * (left @ right)).sum())

    with jax.enable_x64(True):
        got = jax.jit(jax.grad(lambda w: jnp.sum(cotangent * orthonormal_rows(w))))(jnp.asarray(weights))
    for index in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[index] = 1e-6
        assert got[index] == pytest.approx((polar(weights + step) - polar(weights - step)) / 2e-6, abs=1e-5)
