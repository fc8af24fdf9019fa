"""Orthonormal rows by matrix products alone: cheap on accelerators, differentiable, the same on every device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ITERATIONS = 14
_LEAST = 1e-7
"""Added to the scaled Gram matrix: directions that the rows do not span stay where they are instead of at infinity."""


def orthonormal_rows(weights: Float[Array, "d r"]) -> Float[Array, "d r"]:
    """(W W^T)^(-1/2) W: of all matrices with orthonormal rows, the nearest to W (its polar factor).

    The inverse root is by the coupled Newton-Schulz iteration (Higham, Functions of Matrices, 2008, equation 6.35).
    Rows come out orthonormal within 1e-3 for condition numbers of W up to 50; beyond that the weakest directions are
    still short, and grow with further training.

    Args:
      weights: float32 of rank d. Of a lower rank, only the directions that the rows span come out at unit length.

    Returns:
      [d, r] float32.
    """
    gram = jnp.matmul(weights, weights.T, precision="highest")
    # Two upper bounds of the largest eigenvalue; the result does not depend on which, so no gradient goes there.
    bound = jnp.minimum(jnp.trace(gram), jnp.abs(gram).sum(axis=1).max())
    scale = jax.lax.stop_gradient(jnp.maximum(bound, jnp.finfo(jnp.float32).tiny))
    eye = jnp.eye(len(gram), dtype=gram.dtype)

    def iterate(pair: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        root, inverse = pair
        step = 1.5 * eye - 0.5 * jnp.matmul(inverse, root, precision="highest")
        return (jnp.matmul(root, step, precision="highest"), jnp.matmul(step, inverse, precision="highest")), None

    # A loop, since unrolled it is most of what a small model compiles.
    (_, inverse), _ = jax.lax.scan(iterate, (gram / scale + _LEAST * eye, eye), length=_ITERATIONS)
    return jnp.matmul(inverse, weights, precision="highest") * jax.lax.rsqrt(scale)
