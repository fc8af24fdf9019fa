"""Binary cross-entropy over sampled negatives: each target is to be likely, each negative unlikely, on its own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from spectran_jax.errors import InputError
from spectran_jax.objectives.base import Aux, History, Negatives, weighted_mean
from spectran_jax.objectives.sampled import SampledLoss, Vectors, check_shapes, history_that_counts, score_pairs


def binary_cross_entropy(
    states: Float[jax.Array, "T d"],
    positives: Float[jax.Array, "T d"],
    negatives: Float[jax.Array, "n d"],
    excluded: Bool[jax.Array, "T n"],
    weight: Float[jax.Array, "T"],
    *,
    temperature: float,
    beta: float = 1.0,
    history: History | None = None,
) -> tuple[Float[jax.Array, ""], Aux]:
    """Binary cross-entropy (beta 1: SASRec's loss) or its generalisation (gSASRec's).

    For each position, with scores s = <state, item> / temperature, a probability sigmoid(s) of each item, and the m of
    the n negatives that are not excluded,

        -( log sigmoid(s_pos)^beta + n / m sum_j log(1 - sigmoid(s_j)) ) / (n + 1)

    and then the mean under `weight`. It is the papers' sum over target and negatives, over how many these are; the
    m that count stand for all n, so that a false negative among them does not make the others lighter. SASRec draws
    one negative a position and does not divide by 2. A position without a negative that counts has its target's term.
    Each item of `history` is one more term of the sum.

    In float32: -log sigmoid(s)^beta = beta log(1 + e^-s) and -log(1 - sigmoid(s)) = log(1 + e^s), so neither a
    probability nor its power is ever formed; the authors' way through the logit of sigmoid(s)^beta needs float64.

    Args:
      states: user states, float32 or bfloat16; products accumulate in float32. NaN where the weight is 0 does no harm.
      positives: vector of each position's target.
      negatives: vectors of the sampled items; one drawn twice counts twice.
      excluded: True where a negative does not count for a position.
      weight: 1 on supervised positions, 0 on padding. Where all are zero the loss is zero.
      temperature: divides the scores.
      beta: power of the target's probability; see `gbce_beta`.
      history: further negatives of each position.

    Returns:
      The float32 loss, and `positive_score` (mean score of the targets, before the temperature) and
      `masked_negatives` (share of negatives excluded).

    Raises:
      InputError: for arrays whose shapes do not fit together.

    References:
      Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018. Petrov and Macdonald, gSASRec: Reducing
      Overconfidence in Sequential Recommendation Trained with Negative Sampling, RecSys 2023.
    """
    check_shapes(states, positives, negatives, excluded, weight)
    positive, scores, aux = score_pairs(states, positives, negatives, excluded, weight)
    count = len(negatives)
    others = jnp.sum(jnp.where(excluded, 0.0, jax.nn.softplus(scores / temperature)), axis=1)
    others = others * (count / jnp.maximum(jnp.sum(~excluded, axis=1), 1))
    if history is not None:
        counts, seen = history_that_counts(history, weight)
        others += jnp.sum(jnp.where(counts, jax.nn.softplus(seen / temperature), 0.0), axis=1)
    losses = (beta * jax.nn.softplus(-positive / temperature) + others) / (count + 1)
    return weighted_mean(losses, weight), aux


def gbce_beta(negatives: int, items: int, calibration: float) -> float:
    """beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha), alpha = negatives / (items - 1), 1 at most.

    Negatives drawn uniformly meet an item at the rate alpha, its targets at the rate 1: the model that is best under
    the loss gives an item that follows with probability p the probability beta p / (beta p + alpha (1 - p)). At
    t = 0 that is far above p where alpha is small, which presses all good items together near 1; at t = 1 it is p.

    Args:
      negatives: drawn for each position.
      items: that they are drawn from, the target included.
      calibration: t in [0, 1].

    References:
      Petrov and Macdonald, gSASRec, RecSys 2023, where alpha is the sampling rate and t the calibration.
    """
    alpha = min(1.0, negatives / max(items - 1, 1))
    return 1.0 - calibration * (1.0 - alpha)


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(SampledLoss):
    """`binary_cross_entropy` with negatives of `sampler`: `bce` at beta 1, else `gbce`.

    Where negatives are not uniform, an item is met at its own rate; alpha is then the mean rate over the items.

    Unlike a softmax, the loss sees what all scores have in common: a model first learns how rare a target is, that is,
    scores far below zero, and only then which item it is. It takes more epochs than InfoNCE.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise InputError(f"The power of a target's probability must lie in (0, 1], got {self.beta}.")

    def contrast(
        self, vectors: Vectors, drawn: Negatives, weight: Float[jax.Array, "T"]
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """See `binary_cross_entropy`; the probabilities of the negatives are not used."""
        masks = drawn.excluded, weight
        return binary_cross_entropy(
            *vectors, *masks, temperature=self.temperature, beta=self.beta, history=drawn.history
        )
