"""Sequence models behind one protocol, by name.

A backbone is a Flax module `(item_vectors [B, L, d], layout, *, train) -> states [B, L, d]`. It never sees
item ids, so it composes with every item encoder and every loss. To add one: write its file, add its line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from spectran_jax.backbones.sasrec import SASRec
from spectran_jax.config import BackboneConfig
from spectran_jax.errors import InputError, unknown_name
from spectran_jax.layout import SequenceLayout


class Backbone(Protocol):
    """What a recommender asks of a sequence model."""

    def __call__(
        self, item_vectors: Float[jax.Array, "B L d"], layout: SequenceLayout, *, train: bool
    ) -> Float[jax.Array, "B L d"]:
        """Maps item vectors to user states; the state at a position predicts the item after it."""
        ...


BACKBONES: dict[str, Callable[..., nn.Module]] = {"sasrec": SASRec}


def build(config: BackboneConfig, *, dimension: int, max_length: int, dtype: Any = jnp.float32) -> nn.Module:
    """The backbone that the configuration names.

    Args:
      config: name and sizes.
      dimension: d of item vectors and states.
      max_length: L, the longest history in a row.
      dtype: compute dtype; parameters are float32.

    Raises:
      InputError: for an unknown name, or heads that do not divide d.
    """
    if config.backbone not in BACKBONES:
        raise unknown_name("backbone", config.backbone, BACKBONES)
    if dimension % config.heads:
        raise InputError(
            f"--dimension={dimension} is not divisible by --heads={config.heads}; "
            f"take one of {', '.join(str(h) for h in range(1, dimension + 1) if dimension % h == 0)} heads."
        )
    return BACKBONES[config.backbone](
        dimension=dimension,
        max_length=max_length,
        blocks=config.blocks,
        heads=config.heads,
        dropout=config.dropout,
        ffn_multiplier=config.ffn_multiplier,
        dtype=dtype,
    )
