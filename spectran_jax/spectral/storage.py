"""How spectral coordinates are stored: what a number costs, and what it loses.

    dtype      bytes an item and component   error
    float32    4                             relative, 2^-24
    bfloat16   2                             relative, 2^-8 at most: each number keeps 8 bits
    int8       1                             absolute, u_scale / 2 = absmax / 254 of the component

Coordinates have unit mean square over the items with text. Where the largest of a component is 5, as in a normal
distribution over a million items, int8 is off by 0.02 at most: a signal-to-noise ratio of 39 dB. A heavy tail
spends the 8 bits on itself, so int8 refuses a component whose largest coordinate is over 32 times its root mean
square: below that the typical item keeps 2 bits beside its sign.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Num

from spectran_jax.errors import InputError
from spectran_jax.npy import BFLOAT16

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": BFLOAT16,
    "int8": np.dtype(np.int8),
}
"""What `u` may be stored as, by the value of --spectrum_dtype."""

HEAVY_TAIL = 32.0
"""Largest coordinate of a component, in units of its root mean square, that int8 takes."""


def dequantise(
    u_rows: Num[jax.Array | np.ndarray, "*b r"], u_scale: Float[jax.Array | np.ndarray, "r"] | None
) -> Float[jax.Array | np.ndarray, "*b r"]:
    """Spectral coordinates as float32, from rows of `Spectrum.u` and `Spectrum.u_scale`; NumPy or under jit."""
    rows = u_rows.astype(np.float32)
    return rows if u_scale is None else rows * u_scale


def quantise(u: Float[np.ndarray, "N r"], u_scale: Float[np.ndarray, "r"]) -> Num[np.ndarray, "N r"]:
    """int8 codes of coordinates: u / u_scale, rounded half to even. `u_scale` is from `int8_scale`."""
    return np.rint(u / u_scale).astype(np.int8)


def int8_scale(absmax: Float[np.ndarray, "r"], rms: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """float32 absmax / 127: one scale a component, symmetric, so that zero stays zero.

    Args:
      absmax: largest magnitude in each component.
      rms: root mean square of each component over the items with text.

    Raises:
      InputError: NaN or inf, or a component whose largest coordinate leaves too few bits to the others.
    """
    ratio = absmax / rms
    bad = np.flatnonzero(~np.isfinite(ratio))
    if len(bad):
        raise InputError(f"Component {bad[0]} (counted from 0) of the spectrum holds NaN or inf; int8 can't store it.")
    worst = int(np.argmax(ratio))
    if ratio[worst] > HEAVY_TAIL:
        raise InputError(
            f"Component {worst} (counted from 0) of the spectrum has a coordinate {ratio[worst]:.1f} times its root "
            f"mean square; over {HEAVY_TAIL:.0f}, int8 leaves the other items less than 2 bits. Take "
            "--spectrum_dtype=bfloat16."
        )
    return (absmax / 127).astype(np.float32)
