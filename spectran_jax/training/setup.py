"""From a configuration to everything that training, evaluation and recommending need: data, spectrum, model, mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax import backbones, data, item_encoders, objectives, text
from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.digest import json_digest
from spectran_jax.progress import task
from spectran_jax.recommender import Recommender
from spectran_jax.spectral import Spectrum
from spectran_jax.training import partitioning
from spectran_jax.training.step import Frozen

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a configuration stands for, before any parameter exists."""

    config: Config
    dataset: data.Dataset
    split: data.Split
    embeddings: text.TextEmbeddings | None
    spectrum: Spectrum | None
    model: Recommender
    frozen: Frozen
    """NumPy arrays; `place` puts them on the mesh."""
    mesh: jax.sharding.Mesh

    @property
    def inputs_digest(self) -> str:
        """SHA-256 over the data and its text embeddings: a checkpoint fits these inputs and no others."""
        return json_digest([self.dataset.digest, None if self.embeddings is None else self.embeddings.digest])

    def place(self) -> Frozen:
        """The frozen arrays on the devices, as the partitioning table says."""
        return jax.device_put(self.frozen, partitioning.frozen_shardings(self.mesh, self.frozen))


def prepare(config: Config) -> Setup:
    """Reads the data, encodes and decomposes the text (both cached), and builds the model.

    Raises:
      InputError: for bad input or configuration, before anything is trained.
    """
    check(config)
    mesh = partitioning.build_mesh(config.training.mesh)
    dtype = DTYPES[config.training.precision]
    backbone = backbones.build(
        config.backbone, dimension=config.encoder.dimension, max_length=config.data.max_length, dtype=dtype
    )
    encoder_class = item_encoders.lookup(config.encoder.item_encoder)
    objectives.check_name(config.objective.loss)
    dataset = data.load(config)
    split = data.split(dataset, config.data)
    cache = data.data_dir(config)
    embeddings = spectrum = None
    if encoder_class.needs_spectrum or encoder_class.needs_text:
        with task("Encoding text", total=dataset.num_items) as progress:
            embeddings = text.item_embeddings(
                config,
                item_ids=dataset.item_ids,
                item_text=dataset.item_text,
                items_row=dataset.items_row,
                items_file_rows=dataset.items_file_rows,
                cache_dir=cache,
                progress=progress,
            )
    if embeddings is not None and encoder_class.needs_spectrum:
        spectrum = text.load_or_decompose(config, embeddings, cache)
    source = item_encoders.ItemSource(
        num_items=dataset.num_items,
        counts=split.item_counts,
        spectrum=spectrum,
        text=None if embeddings is None else embeddings.matrix,
    )
    encoder, arrays = item_encoders.build(config.encoder, source, dtype=dtype)
    model = Recommender(item_encoder=encoder, backbone=backbone, score=config.objective.score)
    trained = np.flatnonzero(split.item_counts > 0).astype(np.int32)
    frozen = Frozen(item_encoder=arrays, trained_ids=trained, candidates=split.item_counts > 0)
    return Setup(config, dataset, split, embeddings, spectrum, model, frozen, mesh)
