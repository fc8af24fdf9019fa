"""What a trained SpecTran adapter attends to: its parts, kept beside the run, and the numbers that describe them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from spectran_jax.errors import InputError
from spectran_jax.flags import read_config
from spectran_jax.report.statistics import energy_beyond, live_entries
from spectran_jax.studies.kept import kept, model_of
from spectran_jax.training.adapter_parts import Adapter, adapter_of

FILE = "adapter.npz"


def read_adapter(folder: Path, digest: str) -> Adapter:
    """The adapter of a finished run; taken out of its best checkpoint the first time and kept in the folder.

    Args:
      folder: of the run.
      digest: of its best parameters, from metrics.json; what was kept of others, before the run went on, is made again.

    Raises:
      InputError: where the run is not one of spectran, and as `model_of`.
    """
    return Adapter(**kept(folder / FILE, digest, "weights", lambda: _arrays(_restore(folder, digest))))


def _arrays(adapter: Adapter) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in adapter._asdict().items() if value is not None}


def _restore(folder: Path, digest: str) -> Adapter:
    encoder = read_config(folder / "config.json").encoder.item_encoder
    if encoder != "spectran":
        raise InputError(f"{folder} is a run of --item_encoder={encoder}, not of spectran.")
    return adapter_of(*model_of(folder, digest))


class Reach(NamedTuple):
    """Where in the spectrum an adapter looks."""

    tail: float
    """Share of the energy of W beyond the first d components, where a truncated SVD sees nothing."""
    live: float | None
    """Share of the entries of phi(Z) that are not 0; None without attention."""
    breadth: float
    """Components that an output dimension draws on: exp of the entropy of its row's energy, averaged over rows. 1
    where each reads one component, as in SVD."""
    half: int
    """The first components, in the order of the spectrum, that hold half of the energy."""


def reach(adapter: Adapter) -> Reach:
    """The numbers of one adapter."""
    energy = np.square(np.asarray(adapter.weights, np.float64))
    phi = adapter.attention
    share = energy / np.maximum(energy.sum(axis=1, keepdims=True), 1e-300)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    held = np.cumsum(energy.sum(axis=0))
    half = int(np.searchsorted(held, held[-1] / 2)) + 1
    return Reach(
        energy_beyond(adapter.weights), None if phi is None else live_entries(phi), float(np.exp(entropy).mean()), half
    )
