"""From a configuration to everything that training, evaluation and recommending need: data, spectrum, model, mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spectran_jax import backbones, data, item_encoders, objectives, text
from spectran_jax.config import Config
from spectran_jax.config_checks import check, no_exchange
from spectran_jax.data import packing
from spectran_jax.digest import json_digest
from spectran_jax.errors import InputError
from spectran_jax.progress import task
from spectran_jax.recommender import Recommender
from spectran_jax.spectral import Spectrum
from spectran_jax.training import catalogue, exchange, partitioning
from spectran_jax.training.item_table import Access
from spectran_jax.training.micro_batches import touched_at_most
from spectran_jax.training.shares import rows_of_process
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
    objective: objectives.Objective
    plan: packing.Plan
    """How training histories fill the rows of batches."""
    frozen: Frozen
    """NumPy arrays; `place` puts them on the mesh."""
    host_arrays: dict[str, np.ndarray]
    """Arrays of the item encoder that stay with the host, in its memory or on disk (`--spectrum_memory`)."""
    mesh: jax.sharding.Mesh

    @property
    def inputs_digest(self) -> str:
        """SHA-256 over the data and its text embeddings: a checkpoint fits these inputs and no others."""
        return _inputs_digest(self.dataset, self.embeddings)

    @property
    def source(self) -> item_encoders.ItemSource:
        """What the item encoder is built from."""
        return _source(self.config, self.dataset, self.split, self.embeddings, self.spectrum)

    @property
    def masked(self) -> bool:
        """Whether the backbone is trained to fill in hidden items."""
        return backbones.is_masked(self.config.backbone)

    @property
    def timed(self) -> bool:
        """Whether histories have timestamps."""
        return self.split.train.timestamps is not None

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many slices of each batch this process reads; see `rows_of_process`."""
        return rows_of_process(self.mesh, jax.process_index())

    @property
    def access(self) -> Access:
        """How the table of all item vectors lies on the mesh."""
        return Access(self.mesh, self.dataset.num_items, self.model.item_encoder.num_items)

    @property
    def item_arrays(self) -> dict[str, tuple[str, ...]]:
        """The names of the arrays with one row an item in each field of `Frozen` that holds several."""
        sampler = self.objective.sampler
        return {
            "item_encoder": self.model.item_encoder.item_arrays,
            "sampler": () if sampler is None else sampler.item_arrays,
        }

    @property
    def touched(self) -> int | None:
        """Distinct items that a training step touches at most; None where it takes all of them."""
        if not self.objective.sampled or self.config.optimizer.table_updates == "dense":
            return None
        return min(self.plan.step_items + self.config.objective.negatives, self.dataset.num_items)

    @property
    def exchange(self) -> exchange.Sizes | None:
        """The sizes of the exchange between the owners of rows and the shards of the batch; None where there is none.

        Without it a step takes the rows of tables that are cut by a sum over all devices, which is simple, and costs
        the traffic of the whole batch's items on each of them.
        """
        whole = self.host_arrays or self.model.item_encoder.has_auxiliary() or self.objective.sampler is None
        if not self.access.cut or self.touched is None or whole:
            return None
        negatives, number = self.config.objective.negatives, self.plan.groups // self.mesh.shape["data"]
        lists = touched_at_most(self.plan.group_items, negatives, self.dataset.num_items, number)
        return exchange.plan(self.mesh, self.access.rows, lists)

    def eval_batches(self, targets: data.Targets, *, filter_seen: bool | None = None) -> data.EvalBatches:
        """What this process reads of the batches to rank `targets` by; `--filter_seen` unless told otherwise."""
        training = self.config.training
        filter_seen = training.filter_seen if filter_seen is None else filter_seen
        # A run may have been trained on fewer devices: rows must be a multiple of those that are here.
        devices = self.mesh.shape["data"]
        return data.EvalBatches(
            targets,
            max_length=self.config.data.max_length,
            batch_size=-(-training.eval_batch_size // devices) * devices,
            filter_seen=filter_seen,
            share=self.share,
            most_items=self.dataset.most_items if filter_seen else 0,
            masked=self.masked,
        )

    def place(self) -> Frozen:
        """The frozen arrays on the devices, as the partitioning table says."""

        return jax.tree.map(partitioning.put_array, self.frozen, self.abstract())

    def abstract(self) -> Frozen:
        """Shapes, dtypes and shardings of the frozen arrays on the devices."""
        names, rows = self.item_arrays, self.access.rows
        shardings = partitioning.frozen_shardings(self.mesh, self.frozen, names, rows)

        def of(path: Any, array: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            shape = (rows, *array.shape[1:]) if catalogue.frozen_by_row(path, names) else np.shape(array)
            dtype = jax.dtypes.canonicalize_dtype(array.dtype)  # float64 files are float32 on the devices
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(of, self.frozen, shardings)


def _inputs_digest(dataset: data.Dataset, embeddings: text.TextEmbeddings | None) -> str:
    return json_digest([dataset.digest, None if embeddings is None else embeddings.digest])


def prepare(
    config: Config,
    mesh: jax.sharding.Mesh | None = None,
    load: Callable[[Config], data.Dataset] = data.load,
    accept: Callable[[str], None] = lambda digest: None,
) -> Setup:
    """Reads the data, encodes and decomposes the text (both cached), and builds the model.

    Args:
      config: everything that decides the run.
      mesh: the one to train on; `partitioning.training_mesh` of the configuration if None.
      load: reads the data set; several processes take turns.
      accept: is told `Setup.inputs_digest` before the spectrum is decomposed; raises where other inputs are wanted.

    Raises:
      InputError: for bad input or configuration, before anything is trained.
    """
    check(config)
    if config.spectrum.spectrum_memory != "device" and jax.process_count() > 1:
        raise InputError(
            f"--spectrum_memory={config.spectrum.spectrum_memory} is for one process; take --spectrum_memory=device, "
            "which cuts the spectrum over all devices."
        )
    mesh = partitioning.training_mesh(config.training) if mesh is None else mesh
    # Names, and numbers that a backbone refuses, are told before hours of encoding.
    encoder_class = item_encoders.lookup(config.encoder.item_encoder)
    objectives.check_name(config.objective.loss)
    build_backbone(config)
    dataset = load(config)
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
    accept(_inputs_digest(dataset, embeddings))
    if embeddings is not None and encoder_class.needs_spectrum:
        spectrum = text.load_or_decompose(config, embeddings, cache)
    return assemble(config, dataset, split, embeddings, spectrum, mesh)


def build_backbone(config: Config) -> nn.Module:
    """The backbone that the configuration names."""
    return backbones.build(
        config.backbone,
        dimension=config.encoder.dimension,
        max_length=config.data.max_length,
        dtype=DTYPES[config.training.precision],
    )


def _source(
    config: Config,
    dataset: data.Dataset,
    split: data.Split,
    embeddings: text.TextEmbeddings | None,
    spectrum: Spectrum | None,
) -> item_encoders.ItemSource:
    return item_encoders.ItemSource(
        num_items=dataset.num_items,
        counts=split.item_counts,
        spectrum=spectrum,
        text=None if embeddings is None else embeddings.matrix,
        normalize_rows=config.spectrum.normalize_rows,
        center=config.spectrum.center,
    )


def assemble(
    config: Config,
    dataset: data.Dataset,
    split: data.Split,
    embeddings: text.TextEmbeddings | None,
    spectrum: Spectrum | None,
    mesh: jax.sharding.Mesh,
) -> Setup:
    """The model and its arrays over data and a spectrum that are there already.

    Raises:
      InputError: for a configuration that does not fit them.
    """
    plan = packing.make_plan(
        split.train.lengths,
        config.data.max_length,
        packed=config.data.packing,
        batch_size=config.training.batch_size,
        row_multiple=mesh.shape["data"] * (config.training.micro_batches if mesh.size > 1 else 1),
        mask_ratio=config.backbone.mask_ratio if backbones.is_masked(config.backbone) else None,
        prefixes=config.backbone.prefixes,
    )
    source = _source(config, dataset, split, embeddings, spectrum)
    encoder, arrays = item_encoders.build(config.encoder, source, dtype=DTYPES[config.training.precision])
    rows = partitioning.table_rows(dataset.num_items)
    objective = objectives.build(config.objective, split.item_counts)
    sampler = {} if objective.sampler is None else objective.sampler.arrays(split.item_counts)
    if config.training.parallelism == "pmap" and encoder.has_auxiliary():
        raise InputError(
            f"--parallelism=pmap computes losses on each device's part of the batch, and --item_encoder="
            f"{config.encoder.item_encoder} compares its users with one another; take --parallelism=jit."
        )
    if config.training.micro_batches > 1 and encoder.has_auxiliary():
        raise no_exchange(config, f"--item_encoder={config.encoder.item_encoder}")
    if config.training.micro_batches > 1 and objective.sampler is None:  # a loss of one's own
        raise no_exchange(config, f"--loss={config.objective.loss}")
    if config.spectrum.spectrum_memory != "device" and not objective.sampled:  # a loss of one's own
        raise InputError(
            f"--spectrum_memory={config.spectrum.spectrum_memory} reads the rows that a step touches, and "
            f"--loss={config.objective.loss} touches all; take --spectrum_memory=device, or a sampled loss."
        )
    if config.objective.cold_scale != 1 and "trained" not in encoder.item_arrays:  # an encoder of one's own
        raise InputError(
            f"--cold_scale={config.objective.cold_scale} needs to know which items training sees, and "
            f"--item_encoder={config.encoder.item_encoder} has no array `trained`; leave the flag out."
        )
    host: dict[str, np.ndarray] = {}
    if config.spectrum.spectrum_memory != "device":
        host = {name: arrays.pop(name) for name in encoder.wide_arrays}
        if config.spectrum.spectrum_memory == "host":
            host = {name: np.array(array) for name, array in host.items()}  # out of the file, into memory
    return Setup(
        config=config,
        dataset=dataset,
        split=split,
        embeddings=embeddings,
        spectrum=spectrum,
        model=Recommender(
            item_encoder=encoder.clone(num_items=rows),
            backbone=build_backbone(config),
            score=config.objective.score,
            cold_scale=config.objective.cold_scale,
        ),
        objective=objective,
        plan=plan,
        frozen=Frozen(item_encoder=arrays, sampler=sampler, candidates=split.item_counts > 0),
        host_arrays=host,
        mesh=mesh,
    )
