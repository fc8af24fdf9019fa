"""Objectives by the name of their loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from jaxtyping import Int

from spectran_jax import negatives
from spectran_jax.config import ObjectiveConfig
from spectran_jax.errors import unknown_name
from spectran_jax.objectives.base import Excluded, Objective
from spectran_jax.objectives.binary import BinaryCrossEntropy, gbce_beta
from spectran_jax.objectives.full import Softmax
from spectran_jax.objectives.sampled import InfoNCE, SampledSoftmax
from spectran_jax.objectives.scores import check_score


def build(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Objective:
    """The objective that `config`, of a checked configuration, names.

    Args:
      config: loss, score, temperature, and how many negatives come from where.
      counts: training occurrences of each item; one of 0 is never a negative and in no denominator.

    Raises:
      InputError: for an unknown loss, score or sampler, counts that no item can be drawn by
        (`negatives.checked_counts`), or more uniform negatives than trained items.
    """
    check_name(config.loss)
    check_score(config.score)
    return LOSSES[config.loss](config, counts)


def _excluded(config: ObjectiveConfig) -> Excluded:
    return cast(Excluded, config.mask_negatives)


def _softmax(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Objective:
    negatives.checked_counts(counts)
    return Softmax(config.temperature)


def _infonce(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Objective:
    return InfoNCE(config.temperature, negatives.build(config, counts), _excluded(config), config.history_negatives)


def _sampled_softmax(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Objective:
    # Sampling draws the history too, at its rate: it is added where it is left out of what is drawn.
    history = config.history_negatives and config.mask_negatives == "history"
    return SampledSoftmax(config.temperature, negatives.build(config, counts), _excluded(config), history)


def _bce(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Objective:
    return BinaryCrossEntropy(
        config.temperature, negatives.build(config, counts), _excluded(config), config.history_negatives
    )


def _gbce(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Objective:
    sampler = negatives.build(config, counts)
    beta = gbce_beta(config.negatives, int(np.count_nonzero(counts)), config.gbce_t)
    return BinaryCrossEntropy(config.temperature, sampler, _excluded(config), config.history_negatives, beta)


LOSSES: dict[str, Callable[[ObjectiveConfig, Int[np.ndarray, "N"]], Objective]] = {
    "infonce": _infonce,
    "sampled_softmax": _sampled_softmax,
    "softmax": _softmax,
    "bce": _bce,
    "gbce": _gbce,
}


def check_name(loss: str) -> None:
    """Raises `InputError` for an unknown loss."""
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
