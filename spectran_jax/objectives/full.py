"""Cross-entropy over all items, whose logits never exist all at once."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.errors import InputError
from spectran_jax.negatives import Sampler
from spectran_jax.objectives.base import Aux, Excluded, Negatives, expect, matrix, shares, supervised, weighted_mean
from spectran_jax.objectives.chunked import cross_entropy


def softmax(
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    positive_ids: Int[jax.Array, "T"],
    candidates: Bool[jax.Array, "N"],
    weight: Float[jax.Array, "T"],
    *,
    temperature: float,
    chunk: int | None = None,
) -> tuple[Float[jax.Array, ""], Aux]:
    """Cross-entropy over all items of the training set; those outside it are in no denominator.

    `-log( exp(s_pos) / sum_{j: candidates_j} exp(s_j) )` with s = <state, item> / temperature; then the mean under
    `weight`. Differentiable once, in reverse, by states, table, temperature and the weights above 0; `positive_score`
    is a constant to it.

    Args:
      states: user states, float32 or bfloat16; products accumulate in float32. NaN where the weight is 0 does no harm.
      table: vectors of the whole catalogue, all finite.
      positive_ids: int32 id of each position's target; a supervised target is always a candidate.
      candidates: True for the items of the training set.
      weight: 1 on supervised positions, 0 on padding. Where all are zero the loss is zero.
      temperature: divides the scores.
      chunk: logits held at once, at most (float32; beside them as many probabilities); 2^23 if None.

    Returns:
      The float32 loss, and `positive_score` (mean score of the targets, before the temperature).

    Raises:
      InputError: for arrays whose shapes do not fit together, or a chunk below one.
    """
    tokens, dimension = matrix("states", states)
    expect("table", table, (len(table), dimension))
    expect("positive_ids", positive_ids, (tokens,))
    expect("candidates", candidates, (len(table),))
    expect("weight", weight, (tokens,))
    if chunk is not None and chunk < 1:
        raise InputError(f"A chunk holds at least 1 logit, got {chunk}.")
    # Scaled outside the custom gradient, and in float32, so that bfloat16 states are not rounded again.
    scaled = supervised(states, weight).astype(jnp.float32) / temperature
    loss, positive = cross_entropy(chunk, scaled, table, positive_ids, candidates, shares(weight))
    return loss, {"positive_score": weighted_mean(positive, weight) * temperature}


@dataclasses.dataclass(frozen=True)
class Softmax:
    """`softmax` over the whole training catalogue."""

    temperature: float
    sampled: ClassVar[bool] = False
    sampler: ClassVar[Sampler | None] = None
    mask_negatives: ClassVar[Excluded] = "positive"
    history_negatives: ClassVar[bool] = False

    def loss(
        self,
        states: Float[jax.Array, "T d"],
        items: Float[jax.Array, "M d"],
        *,
        positive_ids: Int[jax.Array, "T"],
        weight: Float[jax.Array, "T"],
        negatives: Negatives | None,
        candidates: Bool[jax.Array, "M"],
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """See `Objective.loss` and `softmax`; `items` is the whole catalogue, `negatives` is not used."""
        return softmax(states, items, positive_ids, candidates, weight, temperature=self.temperature)
