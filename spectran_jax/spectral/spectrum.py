"""What a decomposition gives."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Float, Int, Num

Array = jax.Array | np.ndarray

VERSION = 3
"""Raised whenever the same embeddings would give another spectrum, so that no cache serves the old one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The thin SVD of a catalogue's text embeddings; a pytree. n of the N items have text.

    `decompose` gives NumPy arrays. `basis`, `mean` and `scale` stay float64, so that `project` gives an old
    item its old coordinates; they are for the host. A model needs `u`, `u_scale` and `sigma` only.
    """

    u: Num[Array, "N r"]
    """sqrt(n) U: spectral coordinates of unit variance; zero rows for items without text. float32, bfloat16 or int8
    (see `storage`): `dequantise(u_rows, u_scale)` gives rows as float32."""
    sigma: Float[Array, "r"]
    """float32, S / S[0]: 1 = sigma_1 >= sigma_2 >= ... > 0."""
    basis: Float[Array, "m r"]
    """float64, V: orthonormal columns; the largest entry of each is positive."""
    mean: Float[Array, "m"]
    """float64, what was subtracted from each row; zeros where rows were not centred."""
    scale: Float[Array, ""]
    """float64, S[0]."""
    count: Int[Array, ""]
    """int64, n: the items that took part."""
    u_scale: Float[Array, "r"] | None = None
    """float32, what each component of an int8 `u` is multiplied by; None where `u` holds the coordinates themselves."""

    @property
    def num_items(self) -> int:
        """N, with and without text."""
        return int(self.u.shape[0])

    @property
    def rank(self) -> int:
        """r, the number of components kept."""
        return int(self.sigma.shape[0])
