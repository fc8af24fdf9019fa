"""The score of a user state and an item: what both sides go through before their inner product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from spectran_jax.errors import unknown_name


def normalize(x: Float[jax.Array, "... d"], eps: float = 1e-12) -> Float[jax.Array, "... d"]:
    """Scales vectors to unit length; one not longer than `eps` becomes zero and passes no gradient.

    Args:
      x: vectors of any floating dtype; the length is computed in float32.
      eps: length up to which a vector counts as zero.

    Returns:
      Vectors of the same shape and dtype.
    """
    wide = x.astype(jnp.float32)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    zero = square <= eps * eps
    # The inner `where` keeps 1 / 0 out of the gradient, the outer one keeps what is left of it out of the value.
    return jnp.where(zero, 0.0, wide * jax.lax.rsqrt(jnp.where(zero, 1.0, square))).astype(x.dtype)


def score_vectors(x: Float[jax.Array, "... d"], score: str) -> Float[jax.Array, "... d"]:
    """Float32 vectors whose inner product is the score: unit vectors for `cosine`, as they are for `dot`.

    Both sides go through this, in training and in ranking, so that the score that is trained is the one evaluated.

    Raises:
      InputError: for an unknown score.
    """
    check_score(score)
    return _SCORES[score](x.astype(jnp.float32))


_SCORES: dict[str, Callable[[Any], Any]] = {"cosine": normalize, "dot": lambda x: x}


def check_score(score: str) -> None:
    """Raises `InputError` for an unknown score."""
    if score not in _SCORES:
        raise unknown_name("score", score, _SCORES)
