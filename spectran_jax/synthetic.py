"""A catalogue of any size with random text and random histories, for what a method costs and not what it learns."""

from __future__ import annotations

import numpy as np

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.data.interactions import Dataset
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
    spectrum = Spectrum(
        u=rng.standard_normal((items, rank), np.float32),
        sigma=sigma,
        basis=np.eye(width, rank),
        mean=np.zeros(width),
        scale=np.asarray(1.0),
        count=np.asarray(items),
    )
    histories = data.Histories.from_lists([rng.integers(0, items, n) for n in rng.integers(*LENGTHS, users)])
    names = [str(item) for item in range(items)]
    dataset = Dataset(
        name="synthetic",
        digest="synthetic",
        user_ids=range(users),
        item_ids=range(items),
        histories=histories,
        item_text=names,
        item_titles=names,
        text_columns=(),
        items_row=np.arange(items, dtype=np.int32),
    )
    return dataset, TextEmbeddings(matrix, np.ones(items, bool), "synthetic", "synthetic"), spectrum


def synthetic_setup(config: Config, inputs: tuple[Dataset, TextEmbeddings, Spectrum]) -> Setup:
    """The set-up of `config` over these inputs."""
    dataset, embeddings, spectrum = inputs
    mesh = partitioning.training_mesh(config.training)
    return assemble(config, dataset, data.split(dataset, config.data), embeddings, spectrum, mesh)
