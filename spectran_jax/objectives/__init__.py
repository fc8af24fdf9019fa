"""Losses over the scores of user states and items: pure functions, and a registry of objectives.

An `Objective` says where its negatives come from (`sampler`), so that a training step knows every item that it touches
before it computes the first vector, and turns states and item vectors into a loss.
"""

from spectran_jax.objectives.base import Aux, History, Negatives, Objective, weighted_mean
from spectran_jax.objectives.binary import BinaryCrossEntropy, binary_cross_entropy, gbce_beta
from spectran_jax.objectives.full import Softmax, softmax
from spectran_jax.objectives.registry import LOSSES, build, check_name
from spectran_jax.objectives.sampled import InfoNCE, SampledSoftmax, infonce, sampled_softmax
from spectran_jax.objectives.scores import check_score, normalize, score_vectors

__all__ = [
    "LOSSES",
    "Aux",
    "BinaryCrossEntropy",
    "History",
    "InfoNCE",
    "Negatives",
    "Objective",
    "SampledSoftmax",
    "Softmax",
    "binary_cross_entropy",
    "build",
    "check_name",
    "check_score",
    "gbce_beta",
    "infonce",
    "normalize",
    "sampled_softmax",
    "score_vectors",
    "softmax",
    "weighted_mean",
]
