"""Sequence models behind one protocol, by name.

A backbone is a Flax module `(item_vectors [B, L, d], layout, *, train) -> states [B, L, d]`. It never sees
item ids, so it composes with every item encoder and every loss. To add one: write its file, add its line here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from spectran_jax.backbones.bert4rec import BERT4Rec
from spectran_jax.backbones.hstu import HSTU
from spectran_jax.backbones.sasrec import SASRec
from spectran_jax.config import BackboneConfig
from spectran_jax.config_checks import check_heads
from spectran_jax.errors import unknown_name
from spectran_jax.layout import SequenceLayout


class Backbone(Protocol):
    """What a recommender asks of a sequence model.

    The module has the fields `dimension`, `row_length` and `dtype`, and those fields of `BackboneConfig` that it reads.
    """

    task: ClassVar[Literal["next", "masked"]]
    """How it is trained. "next": the state at a position predicts the item after it. "masked": rows have a position
    more, the backbone puts a token of its own where `layout.hidden` says, and the state there predicts what stood
    there; to predict, a hidden position follows the history."""
    reads_time: ClassVar[bool]
    """Whether it reads `layout.timestamp` where the data has one."""

    def __call__(
        self, item_vectors: Float[jax.Array, "B L d"], layout: SequenceLayout, *, train: bool
    ) -> Float[jax.Array, "B L d"]:
        """Maps item vectors, 0 on padding and where `layout.hidden`, to user states."""
        ...


BACKBONES: dict[str, type[nn.Module]] = {"bert4rec": BERT4Rec, "hstu": HSTU, "sasrec": SASRec}


def lookup(name: str) -> Any:
    """The class of a backbone; raises `InputError` for an unknown name."""
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    return BACKBONES[name]


def is_masked(config: BackboneConfig) -> bool:
    """Whether the backbone is trained to fill in hidden items; its rows then have `max_length + 1` positions."""
    return bool(lookup(config.backbone).task == "masked")


def build(config: BackboneConfig, *, dimension: int, max_length: int, dtype: Any = jnp.float32) -> nn.Module:
    """The backbone that the configuration names.

    Args:
      config: name and sizes.
      dimension: d of item vectors and states.
      max_length: the longest history to predict from.
      dtype: compute dtype; parameters are float32.

    Raises:
      InputError: for an unknown name, or heads that do not divide d.
    """
    backbone = lookup(config.backbone)
    check_heads(dimension, config.heads)
    known = {field.name for field in dataclasses.fields(config)}
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(backbone) if f.name in known}
    row_length = max_length + is_masked(config)
    module: nn.Module = backbone(dimension=dimension, row_length=row_length, dtype=dtype, **options)
    return module
