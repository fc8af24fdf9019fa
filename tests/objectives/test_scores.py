"""Scores and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import objectives
from spectran_jax.errors import InputError


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
    x = np.asarray([[3, 4], [0, 0], [-5e-3, 0]], dtype)

    @jax.jit
    def weighted(v):
        unit = objectives.normalize(v)
        return (unit * jnp.asarray([1, 2], dtype)).sum().astype(jnp.float32), unit

    (_, unit), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(x)
    gradient = np.asarray(gradient, np.float32)
    assert unit.dtype == dtype
    np.testing.assert_allclose(np.asarray(unit, np.float32), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=5e-3)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)
    if dtype == jnp.float32:  # (I - n n^T) g / |x|
        np.testing.assert_allclose(gradient[0], [(1 - 0.6 * 2.2) / 5, (2 - 0.8 * 2.2) / 5], rtol=1e-5)


def test_normalize_lets_nan_through():
    assert np.isnan(objectives.normalize(jnp.asarray([jnp.nan, 1.0]))).all()


def test_scores():
    x = jnp.asarray([[3.0, 4.0]], jnp.bfloat16)
    np.testing.assert_array_equal(objectives.score_vectors(x, "dot"), [[3, 4]])
    np.testing.assert_allclose(objectives.score_vectors(x, "cosine"), [[0.6, 0.8]], rtol=1e-6)
    assert objectives.score_vectors(x, "cosine").dtype == jnp.float32
    with pytest.raises(InputError, match=r"Unknown score 'cosin'.*cosine, dot.*Did you mean 'cosine'"):
        objectives.score_vectors(x, "cosin")
