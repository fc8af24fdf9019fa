"""Rows by their numbers: the values of plain indexing, and gradients that do not stop growing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.gather import gather_rows


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_gives_the_rows(dtype):
    vectors = jax.random.normal(jax.random.key(0), (5, 3)).astype(dtype)
    at = jnp.array([[4, 0], [0, 2]])
    rows = gather_rows(vectors, at)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows.astype(jnp.float32), np.asarray(vectors.astype(jnp.float32))[np.asarray(at)])


def test_the_gradient_of_a_popular_row_is_the_sum_over_all_its_places():
    at = jnp.zeros(4096, jnp.int32).at[-1].set(2)
    total = jax.jit(jax.grad(lambda vectors: gather_rows(vectors, at).astype(jnp.float32).sum()))
    gradient = total(jnp.ones((3, 2), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[:, 0].astype(jnp.float32), [4096.0, 0.0, 1.0])  # 4095 is no bfloat16
