"""Losses over sampled negatives, shared by all positions of a batch: one matrix product of states and negatives."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.errors import InputError
from spectran_jax.negatives import Sampler
from spectran_jax.objectives.base import (
    MASKED,
    Aux,
    Excluded,
    History,
    Negatives,
    expect,
    matrix,
    supervised,
    weighted_mean,
)


def infonce(
    states: Float[jax.Array, "T d"],
    positives: Float[jax.Array, "T d"],
    negatives: Float[jax.Array, "n d"],
    excluded: Bool[jax.Array, "T n"],
    weight: Float[jax.Array, "T"],
    *,
    temperature: float,
    history: History | None = None,
) -> tuple[Float[jax.Array, ""], Aux]:
    """InfoNCE with negatives as they were drawn; the loss of SpecTran's paper.

    For each position, with scores s = <state, item> / temperature,
    `-log( exp(s_pos) / (exp(s_pos) + sum_{j not excluded} exp(s_j)) )`; then the mean under `weight`. The sum also
    goes over the position's `history` where it is given: what is drawn from the catalogue hardly ever holds it, so
    without it nothing tells a model that what a user has bought is not what comes next.

    Args:
      states: user states, float32 or bfloat16; products accumulate in float32. NaN where the weight is 0 does no harm.
      positives: vector of each position's target.
      negatives: vectors of the sampled items; one drawn twice counts twice.
      excluded: True where a negative does not count for a position.
      weight: 1 on supervised positions, 0 on padding. Where all are zero the loss is zero.
      temperature: divides the scores.
      history: further negatives of each position.

    Returns:
      The float32 loss, and `positive_score` (mean score of the targets, before the temperature) and
      `masked_negatives` (share of negatives excluded).

    Raises:
      InputError: for arrays whose shapes do not fit together.

    References:
      van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, equation 4.
      Cui et al., SpecTran, SIGIR 2026.
    """
    check_shapes(states, positives, negatives, excluded, weight)
    return _contrast(states, positives, negatives, excluded, weight, jnp.zeros(()), temperature, history)


def sampled_softmax(
    states: Float[jax.Array, "T d"],
    positives: Float[jax.Array, "T d"],
    negatives: Float[jax.Array, "n d"],
    log_q: Float[jax.Array, "n"],
    excluded: Bool[jax.Array, "T n"],
    excluded_mass: Float[jax.Array, "T"],
    weight: Float[jax.Array, "T"],
    *,
    temperature: float,
    history: History | None = None,
) -> tuple[Float[jax.Array, ""], Aux]:
    """Sampled softmax: the cross-entropy over all items but the excluded ones, estimated from negatives drawn by q.

    For position t the negatives that count are m_t draws from q given that it is not excluded,
    q'_j = q_j / (1 - excluded_mass_t). So, with scores s = <state, item> / temperature,
    `sum_{j counts} exp(s_j - log(m_t q'_j))` is an unbiased estimate of the sum of exp(s) over the other items, and the
    loss `-log( exp(s_pos) / (exp(s_pos) + estimate) )` nears the full softmax as negatives are added. The correction
    follows the temperature. A position without a negative that counts has loss 0.

    Args:
      states: user states, float32 or bfloat16; products accumulate in float32. NaN where the weight is 0 does no harm.
      positives: vector of each position's target, which is in the sum once, uncorrected.
      negatives: vectors of the sampled items; one drawn twice counts twice.
      log_q: float32 log-probability of each negative under the sampler; one of -inf counts for no position.
      excluded: True where a negative does not count for a position; the position's own target never may.
      excluded_mass: probability, under the sampler, of all that is excluded for the position, drawn or not.
      weight: 1 on supervised positions, 0 on padding. Where all are zero the loss is zero.
      temperature: divides the scores.
      history: items of each position to add to the sum as they are; they must be among the excluded, or count twice.

    Returns:
      As `infonce`.

    Raises:
      InputError: for arrays whose shapes do not fit together.

    References:
      Bengio and Senécal, Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model,
      2008, section III. Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations,
      RecSys 2019, equation 3 (the logQ correction).
    """
    check_shapes(states, positives, negatives, excluded, weight)
    expect("log_q", log_q, (len(negatives),))
    expect("excluded_mass", excluded_mass, (len(states),))
    never = jnp.isneginf(log_q)
    excluded = excluded | never
    counted = jnp.sum(~excluded, axis=1)
    # Where rounding leaves nothing beside the excluded, what was drawn still shows that something is.
    remaining = jnp.maximum(1.0 - excluded_mass, jnp.finfo(jnp.float32).eps)
    correction = jnp.log(jnp.maximum(counted, 1) / remaining)[:, None] + jnp.where(never, 0.0, log_q)
    return _contrast(states, positives, negatives, excluded, weight, correction, temperature, history)


def check_shapes(
    states: jax.Array, positives: jax.Array, negatives: jax.Array, excluded: jax.Array, weight: jax.Array
) -> None:
    """Raises `InputError` for arrays of a sampled loss whose shapes do not fit together."""
    tokens, dimension = matrix("states", states)
    expect("positives", positives, (tokens, dimension))
    expect("negatives", negatives, (len(negatives), dimension))
    expect("excluded", excluded, (tokens, len(negatives)))
    expect("weight", weight, (tokens,))


def score_pairs(
    states: Float[jax.Array, "T d"],
    positives: Float[jax.Array, "T d"],
    negatives: Float[jax.Array, "n d"],
    excluded: Bool[jax.Array, "T n"],
    weight: Float[jax.Array, "T"],
) -> tuple[Float[jax.Array, "T"], Float[jax.Array, "T n"], Aux]:
    """Float32 scores of the targets and of the negatives, before the temperature, and what a loss reports of them."""
    states = supervised(states, weight)
    positive = jnp.einsum("td,td->t", states, positives, preferred_element_type=jnp.float32)
    scores = jnp.einsum("td,nd->tn", states, negatives, preferred_element_type=jnp.float32)
    return (
        positive,
        scores,
        {
            "positive_score": weighted_mean(positive, weight),
            "masked_negatives": weighted_mean(jnp.mean(excluded, axis=1, dtype=jnp.float32), weight),
        },
    )


def history_that_counts(
    history: History, weight: Float[jax.Array, "T"]
) -> tuple[Bool[jax.Array, "T h"], Float[jax.Array, "T h"]]:
    """Which of a history's items count, and their scores, 0 where they don't: not even NaN in a gradient is left."""
    counts = history.counts & (weight > 0)[:, None]
    return counts, jnp.where(counts, history.scores, 0)


def _contrast(
    states: Float[jax.Array, "T d"],
    positives: Float[jax.Array, "T d"],
    negatives: Float[jax.Array, "n d"],
    excluded: Bool[jax.Array, "T n"],
    weight: Float[jax.Array, "T"],
    correction: Float[jax.Array, "*b"],
    temperature: float,
    history: History | None,
) -> tuple[Float[jax.Array, ""], Aux]:
    """Each target against the negatives that count, whose scores, over the temperature, `correction` is taken from.

    Left to automatic differentiation: at [1340, 512, 64] on a CPU, value and gradients take as long as the three bare
    matrix products; a hand-written gradient is no faster.
    """
    positive, scores, aux = score_pairs(states, positives, negatives, excluded, weight)
    others = jax.nn.logsumexp(jnp.where(excluded, MASKED, scores / temperature - correction), axis=1)
    if history is not None:
        counts, seen = history_that_counts(history, weight)
        of_history = jax.nn.logsumexp(jnp.where(counts, seen / temperature, MASKED), axis=1)
        others = jnp.logaddexp(others, of_history)
    # log(1 + exp(others - positive)) is the negative log of the softmax, without the cancellation near zero.
    return weighted_mean(jax.nn.softplus(others - positive / temperature), weight), aux


class Vectors(NamedTuple):
    """What a sampled loss scores."""

    states: Float[jax.Array, "T d"]
    positives: Float[jax.Array, "T d"]
    negatives: Float[jax.Array, "n d"]


@dataclasses.dataclass(frozen=True)
class SampledLoss(abc.ABC):
    """What losses over sampled negatives share: an `Objective` that looks up the vectors of targets and negatives."""

    temperature: float
    sampler: Sampler
    mask_negatives: Excluded
    history_negatives: bool = False
    sampled: ClassVar[bool] = True

    @abc.abstractmethod
    def contrast(
        self, vectors: Vectors, drawn: Negatives, weight: Float[jax.Array, "T"]
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """The loss of states with the vectors of their targets and of `drawn`."""

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
        """See `Objective.loss`; `candidates` is not used."""
        if negatives is None:
            raise InputError("A loss over sampled negatives needs negatives, got None.")
        return self.contrast(Vectors(states, items[positive_ids], items[negatives.ids]), negatives, weight)


class InfoNCE(SampledLoss):
    """`infonce` with negatives of `sampler`, whose probabilities it does not use."""

    def contrast(
        self, vectors: Vectors, drawn: Negatives, weight: Float[jax.Array, "T"]
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """See `infonce`."""
        masks = drawn.excluded, weight
        return infonce(*vectors, *masks, temperature=self.temperature, history=drawn.history)


class SampledSoftmax(SampledLoss):
    """`sampled_softmax` with negatives of `sampler`."""

    def contrast(
        self, vectors: Vectors, drawn: Negatives, weight: Float[jax.Array, "T"]
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """See `sampled_softmax`."""
        masks = drawn.log_q, drawn.excluded, drawn.excluded_mass, weight
        return sampled_softmax(*vectors, *masks, temperature=self.temperature, history=drawn.history)
