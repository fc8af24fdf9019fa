"""The numbers that the plots of spectra and attention state."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def effective_rank(singular_values: Float[np.ndarray, "n"]) -> float:
    """Exponential of the entropy of the singular values, made to sum to one (Roy and Vetterli, 2007).

    Args:
      singular_values: `[n]`, in any order and unit; values that are not finite and positive count as zero.

    Returns:
      Between 1 (one direction holds everything) and n (all directions alike); 0.0 where all values are zero.
    """
    values = np.asarray(singular_values, np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def live_share(attention: Float[np.ndarray, "d r"]) -> Float[np.ndarray, "r"]:
    """The share of output dimensions that attend to each component: entries of phi(Z) that are not 0. `[r]` float64."""
    return np.count_nonzero(attention, axis=0) / attention.shape[0]


def live_entries(attention: Float[np.ndarray, "d r"]) -> float:
    """The share of the entries of phi(Z) that are not 0."""
    return np.count_nonzero(attention) / attention.size


def energy_beyond(matrix: Float[np.ndarray, "d r"]) -> float:
    """The share of the squared entries that lies beyond the first d columns: what a truncated SVD can't see."""
    energy = np.square(np.asarray(matrix, np.float64)).sum(axis=0)
    total = float(energy.sum())
    return float(energy[matrix.shape[0] :].sum()) / total if total > 0 else 0.0


def bin_columns(matrix: Float[np.ndarray, "d r"], most: int) -> tuple[Float[np.ndarray, "d bins"], int]:
    """Neighbouring columns as one, each entry the strongest of its bin with its sign.

    Args:
      matrix: `[d, r]`.
      most: at most this many columns come back.

    Returns:
      `[d, ceil(r / width)]`, and the width of a bin: 1 where nothing had to be put together.
    """
    d, r = matrix.shape
    width = max(1, -(-r // most))
    if width == 1:
        return matrix, 1
    bins = -(-r // width)
    padded = np.zeros((d, bins * width), matrix.dtype)
    padded[:, :r] = matrix
    grouped = padded.reshape(d, bins, width)
    strongest = np.abs(grouped).argmax(axis=2)
    return np.take_along_axis(grouped, strongest[..., None], axis=2)[..., 0], width
