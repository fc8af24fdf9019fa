"""What every loss shares: the protocol of the training step, the mean over supervised positions, checks of shapes."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.errors import InputError
from spectran_jax.negatives import Sampler

Aux = dict[str, Float[jax.Array, ""]]

Excluded = Literal["positive", "history"]
"""What is no negative of a position: its own target, or all of the user's items in the row."""

MASKED = -1e30
"""Stands for, or is added to, a score that takes part in no denominator: no float32 score is large enough to return
from there. Finite, so that the difference of two of them is defined."""


class History(NamedTuple):
    """The items that a position has seen, as negatives of that position alone."""

    scores: Float[jax.Array, "T L"]
    """float32 scores of the items of the row, before the temperature."""
    counts: Bool[jax.Array, "T L"]
    """True where one is a negative of the position: an item of its history, once, and not its target."""


class Negatives(NamedTuple):
    """The negatives of one update, shared by all its positions; what the step hands to a sampled loss."""

    ids: Int[jax.Array, "n"]
    """int32 rows of `items`."""
    log_q: Float[jax.Array, "n"]
    """float32 log-probability of each under the sampler."""
    excluded: Bool[jax.Array, "T n"]
    """True where a negative does not count for a position; its own target never does."""
    excluded_mass: Float[jax.Array, "T"]
    """float32 probability, under the sampler, of all items that are excluded for the position, drawn or not."""
    history: History | None = None
    """Further negatives of each position; None where `Objective.history_negatives` is False."""


class Objective(Protocol):
    """A loss with its sampling of negatives, as the training step calls it."""

    @property
    def sampled(self) -> bool:
        """False for a loss over all items, which are then what `items` holds."""

    @property
    def sampler(self) -> Sampler | None:
        """Where negatives come from; None where there are none."""

    @property
    def mask_negatives(self) -> Excluded:
        """Which negatives the step excludes."""

    @property
    def history_negatives(self) -> bool:
        """Whether the step adds the items of a position's history to its negatives."""

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
        """The float32 loss and float32 scalars to log.

        On a mesh it may be called for a part of the batch at a time, with the items that this part or the whole batch
        touches: it must depend on no row of `items` but those of `positive_ids` and `negatives`, unless it is over all.

        Args:
          states: user states, ready to score.
          items: vectors, ready to score, of the distinct items that the batch touches; of all for a loss over all.
          positive_ids: int32 row of `items` of each position's target.
          weight: 1 on supervised positions, 0 on padding, whose states may be NaN.
          negatives: for a loss with a sampler.
          candidates: True for the items of the training set; read by a loss over all items.
        """


def weighted_mean(values: Float[jax.Array, "T"], weight: Float[jax.Array, "T"]) -> Float[jax.Array, ""]:
    """`sum(weight * values) / sum(weight)` in float32, 0 where all weights are 0; a value of weight 0 may be NaN."""
    return jnp.sum(jnp.where(weight > 0, shares(weight) * values, 0.0))


def shares(weight: Float[jax.Array, "T"]) -> Float[jax.Array, "T"]:
    """Float32 weights over their sum; all 0 where they are."""
    weight = weight.astype(jnp.float32)
    total = jnp.sum(weight)
    return weight / jnp.where(total > 0, total, 1.0)


def supervised(states: Float[jax.Array, "T d"], weight: Float[jax.Array, "T"]) -> Float[jax.Array, "T d"]:
    """States, zero where the weight is: what padding holds reaches neither the loss nor a gradient, were it NaN."""
    return jnp.where(weight[:, None] > 0, states, 0)


def matrix(name: str, array: jax.Array) -> tuple[int, int]:
    """The shape of a matrix; `InputError` for anything else."""
    if array.ndim != 2:
        raise InputError(f"{name} must be a matrix, got the shape {array.shape}.")
    return array.shape[0], array.shape[1]


def expect(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises `InputError` for an array of another shape."""
    if array.shape != shape:
        raise InputError(f"{name} must have the shape {shape} to fit the other arrays, got {array.shape}.")
