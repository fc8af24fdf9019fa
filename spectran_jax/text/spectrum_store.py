"""The spectrum on disk: decomposed once for a catalogue, shared by its runs, never part of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectran_jax import processes, spectral
from spectran_jax.config import Config, SpectrumConfig
from spectran_jax.errors import InputError
from spectran_jax.spectral import DTYPES
from spectran_jax.text import store
from spectran_jax.text.digests import digest_of, row_chunks
from spectran_jax.text.embeddings import TextEmbeddings

_OPTIONAL = ("u_scale",)
_NAMES = tuple(field.name for field in dataclasses.fields(spectral.Spectrum) if field.name not in _OPTIONAL)


def load_or_decompose(config: Config, embeddings: TextEmbeddings, cache_dir: Path) -> spectral.Spectrum:
    """The spectrum of a catalogue's text embeddings: read from `cache_dir`, or decomposed and written there.

    `u` goes to disk as it is computed: neither it nor the embeddings need fit in memory. Several processes share the
    work, and `cache_dir` (collective; see `store` and `spectral.decompose_shared`). Keyed by the digest of the
    embeddings, every field of `config.spectrum` that changes it and the code's version, so that changed text, items or
    options never meet an old spectrum.

    Returns:
      A `Spectrum` over the N items, `u` memory-mapped.

    Raises:
      InputError: as `spectral.decompose`, `cache_dir` can't be written to, its disk has too little space left,
        which is said before anything is computed, or the file of the embeddings was changed meanwhile.
      RunError: the disk is full.
    """
    options = config.spectrum
    made_by = {name: value for name, value in dataclasses.asdict(options).items() if name != "spectrum_memory"}
    identity = {
        "embeddings": embeddings.digest,
        "options": json.dumps(made_by, sort_keys=True),
        "version": str(spectral.VERSION),
    }
    folder = cache_dir / "spectrum" / digest_of(identity.values())[:32]
    sealed = store.open_sealed(folder, identity, _NAMES, _OPTIONAL)
    if sealed is None:
        with store.sealed_folder(folder, identity) as draft:
            processes.together(lambda: _check_space(draft.folder, embeddings.matrix.shape, options, cache_dir))
            decompose = spectral.decompose_to if jax.process_count() == 1 else spectral.decompose_shared
            spectrum, sha256 = decompose(
                draft.path("u"),
                embeddings.matrix,
                embeddings.has_text,
                **decompose_options(options),
            )
            if embeddings.file is not None:
                processes.together(embeddings.file.require_same)  # or this is not the spectrum of `embeddings.digest`
            draft.adopt("u", shape=spectrum.u.shape, dtype=spectrum.u.dtype, sha256=sha256)
            _write(draft, spectrum, [name for name in (*_NAMES, *_OPTIONAL) if name != "u"])
        # From disk from the first run on: the same mapped `u` as in every later one.
        sealed = store.reopen(folder, identity, _NAMES, _OPTIONAL)
    return _spectrum(sealed)


def decompose_options(options: SpectrumConfig) -> dict[str, Any]:
    """The options of `spectral.decompose` and its like that the configuration says."""
    return {
        "normalize_rows": options.normalize_rows,
        "center": options.center,
        "rtol": options.rtol,
        "max_rank": options.max_rank,
        "method": options.decomposition,
        "dtype": options.spectrum_dtype,
        "precision": options.decomposition_precision,
    }


def _check_space(draft: Path, shape: tuple[int, ...], options: SpectrumConfig, cache_dir: Path) -> None:
    """Refuses a disk that `u` would fill up; how many components it has is not known yet, only how many at most."""
    items, m = shape
    rank = min(items, m, options.max_rank or m)
    item_size = 2 if options.spectrum_dtype == "bfloat16" else 4  # int8 is float32 until its scales are known
    if jax.process_count() > 1:  # the draft beside what stays
        item_size += DTYPES[options.spectrum_dtype].itemsize
    needed, free = items * rank * item_size + 8 * m * rank, shutil.disk_usage(draft).free
    if needed > free:
        raise InputError(
            f"The spectrum of {items} items with up to {rank} components needs {needed} bytes ({needed / 2**30:.1f} "
            f"GiB) on disk, but {cache_dir} has {free} bytes ({free / 2**30:.1f} GiB) free. Choose another --data_dir, "
            "keep fewer components with --max_rank, or take --spectrum_dtype=bfloat16, which halves it "
            "(--spectrum_dtype=int8 quarters what stays, but needs as much as float32 while it is made)."
        )


def _write(draft: store.Draft, spectrum: spectral.Spectrum, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(spectrum, name)
        if value is not None:
            array = np.asarray(value)
            rows = [array] if array.ndim == 0 else (array[where] for where in row_chunks(array))
            draft.write(name, rows, shape=array.shape, dtype=array.dtype)


def _spectrum(sealed: store.Sealed) -> spectral.Spectrum:
    return spectral.Spectrum(
        **{name: array if name == "u" else np.array(array) for name, array in sealed.arrays.items()}
    )
