"""Vectors of items that came after a run: from their text alone, by the trained model, without training again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from spectran_jax import item_encoders, spectral, text
from spectran_jax.data import data_dir, files, text_files
from spectran_jax.data.content import text_of
from spectran_jax.data.interactions import OriginalId
from spectran_jax.data.spelling import columns_found
from spectran_jax.errors import InputError
from spectran_jax.progress import task
from spectran_jax.training import catalogue
from spectran_jax.training.setup import Setup
from spectran_jax.training.step import Params

_CHUNK = 4096
"""Items that are encoded at once."""


@dataclasses.dataclass(frozen=True)
class NewItems:
    """Items beyond a run's catalogue."""

    ids: list[OriginalId]
    """[n], in the order of their file."""
    vectors: Float[np.ndarray, "n d"]
    """float32, as the vectors of the item table: the inner product with a user state is the score."""
    lengths: Float[np.ndarray, "n"]
    """float32: `vectors * lengths` is what the backbone reads."""


def new_items(setup: Setup, params: Params, items: Path, embeddings: Path | None = None) -> NewItems:
    """The vectors that the model gives to items of a file: those of cold items of the catalogue with the same text.

    The text is encoded as the run's was, and its coordinates are those in the run's spectrum (`spectral.project`): no
    decomposition is made anew, and no vector of the catalogue changes. An item without text has a zero vector.

    Args:
      setup: the run's set-up.
      params: its parameters.
      items: a file of items, as the run's own: `item_id` and the columns that the run made its text of.
      embeddings: for a run on precomputed text embeddings, those of the new items: .npy [n, m], by the same text
        encoder, rows in the order of `items`.

    Raises:
      InputError: an item encoder that knows items by their interactions alone; a bad file; items that the run has;
        columns that are missing; embeddings that are missing, not wanted, or of another dimension.
    """
    config = setup.config
    encoder = item_encoders.lookup(config.encoder.item_encoder)
    if not encoder.knows_cold_items():
        raise InputError(
            f"--item_encoder={config.encoder.item_encoder} knows an item by its interactions alone, so that new ones "
            "have no vector; train with an encoder that puts text into an item's vector, such as spectran."
        )
    found = files.read_items(items)
    _refuse_known(setup, items, found.ids)
    embedded = _embeddings(setup, found, embeddings)
    spectrum = setup.spectrum
    if spectrum is not None:
        scaled = config.spectrum.normalize_rows
        u = spectral.project(spectrum, embedded.matrix, embedded.has_text, normalize_rows=scaled)
        # Stored coordinates are multiplied by u_scale where they are read; these are as they are.
        u = u if spectrum.u_scale is None else u / np.asarray(spectrum.u_scale)
        spectrum = dataclasses.replace(spectrum, u=u)
    new = dataclasses.replace(
        setup.source,
        num_items=len(found.ids),
        counts=np.zeros(len(found.ids), np.int32),
        spectrum=spectrum,
        text=embedded.matrix,
    )
    vectors, lengths = _encoded(setup, params, encoder.new_rows(new, setup.source, config.encoder), len(found.ids))
    return NewItems(found.ids, vectors, lengths)


def _refuse_known(setup: Setup, path: Path, ids: list[OriginalId]) -> None:
    known = [item for item, dense in zip(ids, setup.dataset.dense_items(ids), strict=True) if dense >= 0]
    if known:
        names = ", ".join(repr(item) for item in known[:3])
        raise InputError(
            f"{path}: the run has {len(known)} of these items already ({names}), with what it learned of them; leave "
            "them out."
        )


def _embeddings(setup: Setup, found: files.Items, embeddings: Path | None) -> text.TextEmbeddings:
    """The text embeddings of the items found, by what the run's own were made with."""
    config, path = setup.config, found.path
    texts: Sequence[str] = [""] * len(found.ids)
    if config.text.embeddings and embeddings is None:
        raise InputError(
            f"The run was trained on precomputed text embeddings ({config.text.embeddings}); give those of the new "
            "items by the same text encoder: --new_embeddings=FILE.npy."
        )
    if not config.text.embeddings:
        if embeddings is not None:
            raise InputError(
                f"--new_embeddings={embeddings}: the run encoded its text itself, by {config.text.text_encoder}, and "
                "does so with the new items'; leave the flag out."
            )
        wanted = setup.dataset.text_columns
        columns: dict[str, Sequence[str]] = dict(found.columns)
        missing = [name for name in wanted if name not in columns]
        if text_files.content_suffix(path) in text_files.JSON_SUFFIXES and len(missing) < len(wanted):
            columns |= {name: texts for name in missing}  # a key that a line lacks is an entry that it lacks
            missing = []
        if missing:
            raise InputError(
                f"{path}: no column {', '.join(missing)}, and the run made the text of its items of "
                f"{', '.join(wanted)}; {columns_found(missing, found.columns, wanted)}"
            )
        texts = text_of(columns, wanted)
    with task("Encoding text", total=len(found.ids)) as progress:
        made = text.item_embeddings(
            config.replace(items=str(path), embeddings="" if embeddings is None else str(embeddings)),
            item_ids=found.ids,
            item_text=texts,
            items_row=np.arange(len(found.ids), dtype=np.int32),
            items_file_rows=len(found.ids),
            cache_dir=data_dir(config),
            require_text=False,
            progress=progress,
        )
    assert setup.embeddings is not None
    theirs, ours = setup.embeddings.matrix.shape[1], made.matrix.shape[1]
    if ours != theirs:
        raise InputError(
            f"{embeddings}: the new text embeddings have dimension {ours}, those of the run {theirs}; encode them with "
            "the same text encoder."
        )
    return made


def _encoded(
    setup: Setup, params: Params, rows: dict[str, np.ndarray], items: int
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n"]]:
    """Vectors and lengths of the items whose rows of the encoder's arrays these are."""
    names, arrays_by_row = setup.model.item_encoder.item_params, setup.model.item_encoder.item_arrays
    size = min(_CHUNK, items)
    part = setup.model.of_items(size)
    # What was learned of single items says nothing of these: zeros, which the model passes over as they are untrained.
    shared = jax.tree.map(
        np.asarray, catalogue.map_item_rows(lambda p: np.zeros((size, *p.shape[1:]), np.float32), names, params)
    )
    frozen = {name: array for name, array in setup.frozen.item_encoder.items() if name not in arrays_by_row}

    @jax.jit
    def encode(params: Params, frozen: dict[str, Any], rows: dict[str, Any]) -> Any:
        variables = {"params": params, "frozen": {"item_encoder": frozen | rows}}
        return part.apply(variables, method=part.table)

    vectors, lengths = np.zeros((items, setup.config.encoder.dimension), np.float32), np.zeros(items, np.float32)
    for start in range(0, items, size):
        start = min(start, items - size)  # the last chunk overlaps the one before it
        where = slice(start, start + size)
        vectors[where], lengths[where] = encode(shared, frozen, {name: array[where] for name, array in rows.items()})
    return vectors, lengths
