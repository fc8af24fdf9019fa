"""The useful work of a training step, counted by hand: no padding, nothing twice."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Product(NamedTuple):
    """A matrix product [rows, inner] x [inner, columns], `times` times in a step.

    `contract` says how it is stored: "forward" a b, "input" a b^T, "weight" a^T b.
    """

    name: str
    rows: int
    inner: int
    columns: int
    times: int = 1
    contract: str = "forward"

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each term, all `times` of them together."""
        return 2 * self.rows * self.inner * self.columns * self.times


def layer(name: str, tokens: int, inputs: int, outputs: int, times: int = 1) -> list[Product]:
    """A product with a weight [inputs, outputs], its gradient to the input and that to the weight."""
    return [
        Product(name, tokens, inputs, outputs, times, "forward"),
        Product(f"{name} by input", tokens, outputs, inputs, times, "input"),
        Product(f"{name} by weight", inputs, tokens, outputs, times, "weight"),
    ]


def step_products(
    *, tokens: int, items: int, negatives: int, dimension: int, rank: int, attention: int, blocks: int, ffn: int
) -> list[Product]:
    """Every matrix product of a step of spectran on SASRec with a sampled loss, attention over the history apart.

    Args:
      tokens: real positions.
      items: distinct items that the step touches.
      negatives: shared by all positions.
      dimension: d.
      rank: r, spectral components.
      attention: k, the dimension of spectral queries and keys.
      blocks: of the backbone.
      ffn: width of the feed-forward layer over d.
    """
    d = dimension
    semantic = layer("u W^T", items, rank, d)
    del semantic[1]  # u is frozen
    return [
        *layer("qkv", tokens, d, 3 * d, blocks),
        *layer("attention_out", tokens, d, d, blocks),
        *layer("ffn_in", tokens, d, ffn * d, blocks),
        *layer("ffn_out", tokens, ffn * d, d, blocks),
        # The negatives' vectors are the weight here, [d, negatives].
        *layer("state x negatives", tokens, d, negatives),
        *semantic,
        *layer("Q K^T", d, attention, rank),
    ]


def attention_flops(lengths: Int[np.ndarray, "S"], dimension: int, blocks: int) -> int:
    """Attention over histories of these lengths, forward and backward, over pairs of the same history in order.

    A pair costs 2 d for its score and 2 d for its share of the values, over all heads; the backward pass twice that.
    """
    lengths = np.asarray(lengths, np.int64)
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return 12 * dimension * blocks * pairs
