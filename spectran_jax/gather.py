"""Rows of an array by their numbers, with a gradient that is summed in float32."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def gather_rows(vectors: Float[Array, "U d"], at: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """`vectors[at]`, in the dtype of the vectors.

    A popular item stands thousands of times in a batch. Its gradient is the sum over them, and a sum in bfloat16 stops
    growing at 256 times its terms; so the gradient is rounded once, when it is complete.
    """
    return vectors.astype(jnp.float32)[at].astype(vectors.dtype)
