"""A catalogue of any size with random text and random histories, for what a method costs and not what it learns."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.data.interactions import Dataset, Histories
from spectran_jax.data.splits import Targets
from spectran_jax.spectral import Spectrum
from spectran_jax.text import TextEmbeddings
from spectran_jax.training import partitioning
from spectran_jax.training.setup import Setup, assemble

LENGTHS = (5, 16)
"""Interactions of a user, the upper end left out."""


def synthetic_inputs(items: int, width: int, users: int) -> tuple[Dataset, TextEmbeddings, Spectrum]:
    """Histories, text [N, m] of a falling spectrum and spectral coordinates [N, min(N, m)], all random.

    The coordinates have unit variance, as those of a decomposition do, and are not those of the text: nothing that
    is timed depends on it, and decomposing 4,096 dimensions takes longer than timing everything.
    """
    rng = np.random.default_rng(0)
    rank = min(items, width)
    sigma = (np.arange(1, rank + 1) ** -0.5).astype(np.float32)
    matrix = rng.standard_normal((items, width), np.float32)
    matrix[:, :rank] *= sigma
    spectrum = bare_spectrum(rng.standard_normal((items, rank), np.float32), sigma, width)
    histories = random_histories(rng, items, users, LENGTHS)
    embeddings = TextEmbeddings(matrix, np.ones(items, bool), "synthetic", "synthetic")
    return _dataset(items, histories), embeddings, spectrum


def synthetic_setup(config: Config, inputs: tuple[Dataset, TextEmbeddings, Spectrum]) -> Setup:
    """The set-up of `config` over these inputs."""
    dataset, embeddings, spectrum = inputs
    mesh = partitioning.training_mesh(config.training)
    return assemble(config, dataset, data.split(dataset, config.data), embeddings, spectrum, mesh)


def training_setup(config: Config, items: int, histories: Histories, spectrum: Spectrum) -> Setup:
    """The set-up of `config` over N items that all count as trained, with these histories to train on and nobody to
    evaluate; beside the spectrum and the counts nothing is as large as the catalogue."""
    mesh = partitioning.training_mesh(config.training)
    return assemble(config, _dataset(items, histories), training_split(items, histories), None, spectrum, mesh)


def training_split(items: int, histories: Histories) -> data.Split:
    """N items that all count as trained, histories to train on, and nobody to evaluate."""
    nobody = Targets(Histories.from_lists([]), np.zeros(0, np.int32), np.zeros(0, np.int32))
    return data.Split(histories, np.ones(items, np.int32), nobody, nobody, {"count": 0, "total": 0})


def random_histories(rng: np.random.Generator, items: int, users: int, lengths: tuple[int, int]) -> Histories:
    """Histories of items drawn uniformly, of lengths drawn from `range(*lengths)`."""
    return Histories.from_lists([rng.integers(0, items, n) for n in rng.integers(*lengths, users)])


def bare_spectrum(
    u: Num[np.ndarray, "N r"],
    sigma: Float[np.ndarray, "r"],
    width: int,
    u_scale: Float[np.ndarray, "r"] | None = None,
) -> Spectrum:
    """A spectrum of these coordinates, whose map from the text, of `width` dimensions, is none: no model reads it."""
    return Spectrum(
        u=u,
        sigma=sigma,
        basis=np.broadcast_to(0.0, (width, len(sigma))),
        mean=np.zeros(width),
        scale=np.asarray(1.0),
        count=np.asarray(len(u)),
        u_scale=u_scale,
    )


def _dataset(items: int, histories: Histories) -> Dataset:
    """Without names, texts and rows of a file, which only what comes before a set-up reads."""
    return Dataset(
        name="synthetic",
        digest="synthetic",
        user_ids=range(len(histories)),
        item_ids=range(items),
        histories=histories,
        item_text=[],
        item_titles=[],
        text_columns=(),
        items_row=np.zeros(0, np.int32),
    )
