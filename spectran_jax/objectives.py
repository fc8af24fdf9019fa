"""Losses over the scores of user states and items, and the sampling of negatives: pure functions and a registry.

An `Objective` separates the drawing of negative ids (`sample`) from scoring (`loss`), so that a training step
knows every item it touches before it computes the first vector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.config import ObjectiveConfig
from spectran_jax.errors import InputError, unknown_name

Aux = dict[str, Float[jax.Array, ""]]
Items = Callable[[Int[jax.Array, "..."]], Float[jax.Array, "... d"]]
Table = Callable[[], Float[jax.Array, "N d"]]

# Stands for a score that takes part in no denominator. Finite, so that the difference of two of them is defined.
_MASKED = -1e30


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
    if score not in _SCORES:
        raise unknown_name("score", score, _SCORES)
    return _SCORES[score](x.astype(jnp.float32))


_SCORES: dict[str, Callable[[Any], Any]] = {"cosine": normalize, "dot": lambda x: x}


def infonce(
    states: Float[jax.Array, "T d"],
    positives: Float[jax.Array, "T d"],
    negatives: Float[jax.Array, "n d"],
    positive_ids: Int[jax.Array, "T"],
    negative_ids: Int[jax.Array, "n"],
    weight: Float[jax.Array, "T"],
    *,
    temperature: float,
) -> tuple[Float[jax.Array, ""], Aux]:
    """InfoNCE with negatives shared by all positions, one matrix product; the loss of SpecTran's paper.

    For each position, with scores s = <state, item> / temperature,
    `-log( exp(s_pos) / (exp(s_pos) + sum_{j: id_j != id_pos} exp(s_j)) )`; then the mean under `weight`.

    Args:
      states: user states, float32 or bfloat16; products accumulate in float32.
      positives: vector of each position's target.
      negatives: vectors of the sampled items; one drawn twice counts twice.
      positive_ids: int32 id of each position's target; a negative of the same id is masked for that position.
      negative_ids: int32 ids of the negatives.
      weight: 1 on supervised positions, 0 on padding. Where all are zero the loss is zero.
      temperature: divides the scores.

    Returns:
      The float32 loss, and `positive_score` (mean score of the targets, before the temperature) and
      `masked_negatives` (share of negatives masked).

    Raises:
      InputError: for arrays whose shapes do not fit together.

    References:
      van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, equation 4.
      Cui et al., SpecTran, SIGIR 2026.
    """
    tokens, dimension = _matrix("states", states)
    count = len(negatives)
    _expect("positives", positives, (tokens, dimension))
    _expect("negatives", negatives, (count, dimension))
    _expect("positive_ids", positive_ids, (tokens,))
    _expect("negative_ids", negative_ids, (count,))
    _expect("weight", weight, (tokens,))
    positive = jnp.einsum("td,td->t", states, positives, preferred_element_type=jnp.float32)
    scores = jnp.einsum("td,nd->tn", states, negatives, preferred_element_type=jnp.float32)
    false_negative = positive_ids[:, None] == negative_ids
    others = jax.nn.logsumexp(jnp.where(false_negative, _MASKED, scores / temperature), axis=1)
    # log(1 + exp(others - positive)) is the negative log of the softmax, without the cancellation near zero.
    loss = weighted_mean(jax.nn.softplus(others - positive / temperature), weight)
    masked = jnp.mean(false_negative.astype(jnp.float32), axis=1)
    return loss, {
        "positive_score": weighted_mean(positive, weight),
        "masked_negatives": weighted_mean(masked, weight),
    }


def softmax(
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    positive_ids: Int[jax.Array, "T"],
    candidates: Bool[jax.Array, "N"],
    weight: Float[jax.Array, "T"],
    *,
    temperature: float,
) -> tuple[Float[jax.Array, ""], Aux]:
    """Cross-entropy over all items of the training set; those outside it are in no denominator.

    `-log( exp(s_pos) / sum_{j: candidates_j} exp(s_j) )` with s = <state, item> / temperature; then the mean under
    `weight`. Holds the logits, `[T, N]` float32.

    Args:
      states: user states, float32 or bfloat16; products accumulate in float32.
      table: vectors of the whole catalogue.
      positive_ids: int32 id of each position's target; a supervised target is always a candidate.
      candidates: True for the items of the training set.
      weight: 1 on supervised positions, 0 on padding. Where all are zero the loss is zero.
      temperature: divides the scores.

    Returns:
      The float32 loss, and `positive_score` (mean score of the targets, before the temperature).

    Raises:
      InputError: for arrays whose shapes do not fit together.
    """
    tokens, dimension = _matrix("states", states)
    _expect("table", table, (len(table), dimension))
    _expect("positive_ids", positive_ids, (tokens,))
    _expect("candidates", candidates, (len(table),))
    _expect("weight", weight, (tokens,))
    scores = jnp.einsum("td,nd->tn", states, table, preferred_element_type=jnp.float32)
    positive = jnp.take_along_axis(scores, positive_ids[:, None], axis=1)[:, 0]
    everything = jax.nn.logsumexp(jnp.where(candidates, scores / temperature, _MASKED), axis=1)
    loss = weighted_mean(everything - positive / temperature, weight)
    return loss, {"positive_score": weighted_mean(positive, weight)}


def weighted_mean(values: Float[jax.Array, "T"], weight: Float[jax.Array, "T"]) -> Float[jax.Array, ""]:
    """`sum(weight * values) / sum(weight)` in float32, 0 where all weights are 0; a value of weight 0 may be NaN."""
    weight = weight.astype(jnp.float32)
    total = jnp.sum(weight)
    summed = jnp.sum(jnp.where(weight > 0, weight * values, 0.0))
    return summed / jnp.where(total > 0, total, 1.0)


def sample_uniform(key: jax.Array, trained_ids: Int[jax.Array, "n_trained"], count: int) -> Int[jax.Array, "count"]:
    """Draws `count` ids from `trained_ids`, uniformly, independently and with replacement; int32, under jit.

    With replacement, so that the cost follows `count` and not the size of the catalogue.

    Raises:
      InputError: where there is nothing to draw from, or `count` is below one.
    """
    if trained_ids.ndim != 1 or not len(trained_ids):
        raise InputError(
            f"Negatives are drawn from a list of at least one trained item, got the shape {trained_ids.shape}."
        )
    if count < 1:
        raise InputError(f"--negatives must be at least 1, got {count}.")
    return trained_ids[jax.random.randint(key, (count,), 0, len(trained_ids))].astype(jnp.int32)


class Objective(Protocol):
    """A loss with its sampling of negatives, as the training step calls it."""

    def sample(self, key: jax.Array, trained_ids: Int[jax.Array, "n_trained"]) -> Int[jax.Array, "n"]:
        """Ids of the step's negatives, int32; empty where the loss samples none."""

    def loss(
        self,
        states: Float[jax.Array, "T d"],
        *,
        positive_ids: Int[jax.Array, "T"],
        negative_ids: Int[jax.Array, "n"],
        weight: Float[jax.Array, "T"],
        items: Items,
        table: Table,
        candidates: Bool[jax.Array, "N"],
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """The float32 loss and float32 scalars to log.

        Args:
          states: user states, ready to score.
          positive_ids: int32 id of each position's target.
          negative_ids: what `sample` drew.
          weight: 1 on supervised positions, 0 on padding.
          items: ids `[...]` -> vectors `[..., d]`, ready to score; called at most once.
          table: -> vectors `[N, d]` of the whole catalogue, ready to score; called only by losses over all items.
          candidates: True for the items of the training set.
        """


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """`infonce` with uniformly sampled negatives."""

    temperature: float
    negatives: int

    def sample(self, key: jax.Array, trained_ids: Int[jax.Array, "n_trained"]) -> Int[jax.Array, "n"]:
        """Uniform over the trained items (see `sample_uniform`)."""
        return sample_uniform(key, trained_ids, self.negatives)

    def loss(
        self,
        states: Float[jax.Array, "T d"],
        *,
        positive_ids: Int[jax.Array, "T"],
        negative_ids: Int[jax.Array, "n"],
        weight: Float[jax.Array, "T"],
        items: Items,
        table: Table,
        candidates: Bool[jax.Array, "N"],
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """See `infonce`; `table` and `candidates` are not used."""
        # One call for all rows, so that the item encoder runs, and may add its auxiliary loss, once.
        vectors = items(jnp.concatenate([positive_ids, negative_ids]))
        positives, negatives = vectors[: len(positive_ids)], vectors[len(positive_ids) :]
        return infonce(states, positives, negatives, positive_ids, negative_ids, weight, temperature=self.temperature)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """`softmax` over the whole training catalogue."""

    temperature: float

    def sample(self, key: jax.Array, trained_ids: Int[jax.Array, "n_trained"]) -> Int[jax.Array, "n"]:
        """No negatives: an empty array."""
        return jnp.zeros((0,), jnp.int32)

    def loss(
        self,
        states: Float[jax.Array, "T d"],
        *,
        positive_ids: Int[jax.Array, "T"],
        negative_ids: Int[jax.Array, "n"],
        weight: Float[jax.Array, "T"],
        items: Items,
        table: Table,
        candidates: Bool[jax.Array, "N"],
    ) -> tuple[Float[jax.Array, ""], Aux]:
        """See `softmax`; `negative_ids` and `items` are not used."""
        return softmax(states, table(), positive_ids, candidates, weight, temperature=self.temperature)


def build(config: ObjectiveConfig, *, num_candidates: int) -> Objective:
    """The objective that `config` names.

    Args:
      config: loss, score, temperature and number of negatives.
      num_candidates: number of items in the training set, from which negatives are drawn.

    Raises:
      InputError: for an unknown loss or score, a temperature that is not above zero, or a number of negatives
        below one or above the number of trained items.
    """
    check_name(config.loss)
    if config.score not in _SCORES:
        raise unknown_name("score", config.score, _SCORES)
    if not 0 < config.temperature < math.inf:
        raise InputError(f"--temperature must be above 0, got {config.temperature}.")
    return _LOSSES[config.loss](config, num_candidates)


def _build_infonce(config: ObjectiveConfig, num_candidates: int) -> Objective:
    if not 1 <= config.negatives <= num_candidates:
        raise InputError(
            f"--negatives must lie between 1 and the number of items in training, {num_candidates}, "
            f"got {config.negatives}."
        )
    return InfoNCE(config.temperature, config.negatives)


def _build_softmax(config: ObjectiveConfig, num_candidates: int) -> Objective:
    return Softmax(config.temperature)


_LOSSES: dict[str, Callable[[ObjectiveConfig, int], Objective]] = {
    "infonce": _build_infonce,
    "softmax": _build_softmax,
}


def check_name(loss: str) -> None:
    """Raises `InputError` for an unknown loss."""
    if loss not in _LOSSES:
        raise unknown_name("loss", loss, _LOSSES)


def _matrix(name: str, array: jax.Array) -> tuple[int, int]:
    if array.ndim != 2:
        raise InputError(f"{name} must be a matrix, got the shape {array.shape}.")
    return array.shape[0], array.shape[1]


def _expect(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"{name} must have the shape {shape} to fit the other arrays, got {array.shape}.")
