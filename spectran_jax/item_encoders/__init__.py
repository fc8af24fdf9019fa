"""Item encoders: every way from item text, or nothing, to item vectors; one file each, found by name.

A new encoder is one class with `options`, `frozen`, `rows` and `encode` (base.py says what they promise), and
one line in `REGISTRY`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError, unknown_name
from spectran_jax.item_encoders.alphafuse import AlphaFuseEncoder
from spectran_jax.item_encoders.base import ItemEncoder, ItemSource, Rows, StepView
from spectran_jax.item_encoders.id import IdEncoder
from spectran_jax.item_encoders.llmesr import LlmEsrEncoder
from spectran_jax.item_encoders.llminit import LlmInitEncoder
from spectran_jax.item_encoders.mlp import MlpEncoder
from spectran_jax.item_encoders.moe import MoeEncoder
from spectran_jax.item_encoders.rlmrec import RlmRecEncoder
from spectran_jax.item_encoders.spectran import SpecTranEncoder
from spectran_jax.item_encoders.svd import SvdEncoder
from spectran_jax.item_encoders.whiten import WhitenEncoder

__all__ = ["REGISTRY", "ItemEncoder", "ItemSource", "Rows", "StepView", "build", "lookup"]

REGISTRY: dict[str, type[ItemEncoder]] = {
    "id": IdEncoder,
    "svd": SvdEncoder,
    "llminit": LlmInitEncoder,
    "mlp": MlpEncoder,
    "moe": MoeEncoder,
    "whiten": WhitenEncoder,
    "alphafuse": AlphaFuseEncoder,
    "rlmrec": RlmRecEncoder,
    "llmesr": LlmEsrEncoder,
    "spectran": SpecTranEncoder,
}


def lookup(name: str) -> type[ItemEncoder]:
    """The class of an item encoder; raises `InputError` for an unknown name."""
    if name not in REGISTRY:
        raise unknown_name("item encoder", name, REGISTRY)
    return REGISTRY[name]


def build(
    config: EncoderConfig, source: ItemSource, *, dtype: Any = jnp.float32
) -> tuple[ItemEncoder, dict[str, np.ndarray]]:
    """The item encoder that `config` names, and its frozen arrays.

    Args:
      config: the encoder section.
      source: the items.
      dtype: compute dtype; parameters stay float32.

    Returns:
      The module and a dict of NumPy arrays for its collection "frozen".

    Raises:
      InputError: unknown name, text missing, a fusion that the encoder does not have, or fewer spectral
        components than dimensions without `pad_rank`.
    """
    encoder = lookup(config.item_encoder)
    if len(source.counts) != source.num_items:
        raise InputError(f"Item counts have {len(source.counts)} entries for {source.num_items} items.")
    if encoder.needs_text and source.text is None:
        raise InputError(f"--item_encoder={config.item_encoder} needs item text, and the data set has none.")
    options = encoder.options(config, source, dtype)
    if config.fusion != EncoderConfig().fusion and "fusion" not in options:
        raise InputError(
            f"--fusion={config.fusion} joins a part of text and an ID part, and --item_encoder={config.item_encoder} "
            "has no such two; leave the flag out."
        )
    return encoder(**options), encoder.frozen(source, config)
