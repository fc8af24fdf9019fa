"""The spectrum on disk: decomposed once for a catalogue, shared by its runs, never part of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from spectran_jax import spectral
from spectran_jax.config import Config
from spectran_jax.text import store
from spectran_jax.text.digests import digest_of, row_chunks
from spectran_jax.text.embeddings import TextEmbeddings

_NAMES = tuple(field.name for field in dataclasses.fields(spectral.Spectrum))


def save(folder: Path, spectrum: spectral.Spectrum, identity: store.Identity) -> None:
    """Writes one .npy a field and their seal, atomically.

    Raises:
      RunError: the disk is full.
      InputError: `folder` can't be written to.
    """
    with store.sealed_folder(folder, identity) as draft:
        for name in _NAMES:
            array = np.asarray(getattr(spectrum, name))
            rows = [array] if array.ndim == 0 else (array[where] for where in row_chunks(array))
            store.write_array(draft / f"{name}.npy", rows, shape=array.shape, dtype=array.dtype)


def load(folder: Path, identity: store.Identity) -> spectral.Spectrum | None:
    """What `save` wrote under the same identity, `u` memory-mapped, the rest in memory.

    None where there is nothing; None and a warning where it is damaged or of another identity.
    """
    sealed = store.open_sealed(folder, identity, _NAMES)
    return None if sealed is None else _spectrum(sealed)


def load_or_decompose(config: Config, embeddings: TextEmbeddings, cache_dir: Path) -> spectral.Spectrum:
    """The spectrum of a catalogue's text embeddings: read from `cache_dir`, or decomposed and written there.

    Keyed by the digest of the embeddings, every field of `config.spectrum` and the code's version, so
    that changed text, items or options never meet an old spectrum.

    Returns:
      A `Spectrum` over the N items, `u` memory-mapped.

    Raises:
      InputError: as `spectral.decompose`, or `cache_dir` can't be written to.
      RunError: the disk is full.
    """
    options = dataclasses.asdict(config.spectrum)
    identity = {
        "embeddings": embeddings.digest,
        "options": json.dumps(options, sort_keys=True),
        "version": str(spectral.VERSION),
    }
    folder = cache_dir / "spectrum" / digest_of(identity.values())[:32]
    spectrum = load(folder, identity)
    if spectrum is None:
        spectrum = spectral.decompose(
            embeddings.matrix,
            embeddings.has_text,
            normalize_rows=config.spectrum.normalize_rows,
            center=config.spectrum.center,
            rtol=config.spectrum.rtol,
            max_rank=config.spectrum.max_rank,
            method=config.spectrum.decomposition,
        )
        save(folder, spectrum, identity)
        # From disk from the first run on: the same mapped `u` as in every later one.
        spectrum = _spectrum(store.reopen(folder, identity, _NAMES))
    return spectrum


def _spectrum(sealed: store.Sealed) -> spectral.Spectrum:
    return spectral.Spectrum(
        **{name: array if name == "u" else np.array(array) for name, array in sealed.arrays.items()}
    )
