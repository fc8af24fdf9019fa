"""Joining the semantic and the ID vector of an item: sum, concatenate-and-project, gate.

Each starts as the sum, so that the choice changes what can be learned and not where training starts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from spectran_jax.errors import unknown_name

FUSIONS = ("sum", "concat", "gate")


def fuse_concat(
    semantic: Float[Array, "*b d"], identity: Float[Array, "*b d"], kernel: Float[Array, "2d d"]
) -> Float[Array, "*b d"]:
    """[semantic, identity] kernel: with the kernel [I; I] the sum."""
    return jnp.concatenate([semantic, identity], axis=-1) @ kernel


def fuse_gate(
    semantic: Float[Array, "*b d"],
    identity: Float[Array, "*b d"],
    kernel: Float[Array, "2d d"],
    bias: Float[Array, "d"],
) -> Float[Array, "*b d"]:
    """2 g semantic + 2 (1 - g) identity, g = sigmoid([semantic, identity] kernel + bias): at g = 1/2 the sum."""
    gate = 2 * jax.nn.sigmoid(jnp.concatenate([semantic, identity], axis=-1) @ kernel + bias)
    return gate * semantic + (2 - gate) * identity


def _stacked_identity(_: Array, shape: tuple[int, int], dtype: Any) -> Float[Array, "2d d"]:
    return jnp.concatenate([jnp.eye(shape[1], dtype=dtype)] * 2)


class Fusion(nn.Module):
    """One of `FUSIONS` with its parameters: none for sum, `kernel [2d, d]` for concat, and `bias [d]` for gate."""

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, semantic: Float[Array, "*b d"], identity: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Fused vectors [..., d] in the compute dtype.

        Raises:
          InputError: for an unknown kind.
        """
        if self.kind == "sum":  # rounded once; and, given rows that are rounded, TPUs would round whole tables first
            return (semantic.astype(jnp.float32) + identity.astype(jnp.float32)).astype(self.dtype)
        semantic, identity = semantic.astype(self.dtype), identity.astype(self.dtype)
        d = semantic.shape[-1]
        if self.kind == "concat":
            kernel = self.param("kernel", _stacked_identity, (2 * d, d), jnp.float32)
            return fuse_concat(semantic, identity, kernel.astype(self.dtype))
        if self.kind == "gate":
            kernel = self.param("kernel", nn.initializers.zeros, (2 * d, d), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
            return fuse_gate(semantic, identity, kernel.astype(self.dtype), bias.astype(self.dtype))
        raise unknown_name("fusion", self.kind, FUSIONS)
