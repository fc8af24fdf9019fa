"""What a report shows, as plain data: filled in by the run, read by the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from spectran_jax.errors import InputError

Parameter = tuple[str, tuple[int, ...], str, int, str]
"""Name, shape, dtype, number of elements, sharding."""


class Recommended(NamedTuple):
    """One recommended item."""

    title: str
    score: float
    hit: bool = False
    """Whether this is the target."""


@dataclasses.dataclass(frozen=True)
class UserExample:
    """One user in words."""

    user: str
    history: Sequence[str]
    """Titles of the newest items of the history, oldest first."""
    target: str
    """Title of the item that came next."""
    rank: int
    """Rank of the target in the whole catalogue, 1 for the first place."""
    recommendations: Sequence[Recommended]
    """The top items, best first."""


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Everything a report shows. What is None or empty is left out of the page.

    Arrays are NumPy, of any floating type; d is the dimension of the item vectors, r the number of
    spectral components, P the order of the Taylor map.

    Raises:
      InputError: where two arrays disagree about d or r.
    """

    title: str
    command: str
    """The command that makes this run again."""
    config: Mapping[str, Mapping[str, Any]]
    """`Config.to_dict()`."""
    dataset: Mapping[str, Any]
    """Users, items, interactions, and whatever else is worth counting, by name."""
    history: Sequence[Mapping[str, Any]] = ()
    """The lines of metrics.jsonl: `kind` is train or valid, `step` the abscissa."""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The content of metrics.json."""
    parameters: Sequence[Parameter] = ()
    examples: Sequence[UserExample] = ()
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds by phase."""
    text_singular_values: Float[np.ndarray, "r"] | None = None
    """Of the text, descending, in any unit."""
    item_singular_values: Float[np.ndarray, "d"] | None = None
    """Of the learned, centred item vectors."""
    initial_item_singular_values: Float[np.ndarray, "d"] | None = None
    """The same before training."""
    attention: Float[np.ndarray, "d r"] | None = None
    """phi(Z), exactly 0 where dead."""
    diagonal: Float[np.ndarray, "n"] | None = None
    """p(sigma) of the first n = min(d, r) components, as learned."""
    weights: Float[np.ndarray, "d r"] | None = None
    """W, as it multiplies u."""
    sigma: Float[np.ndarray, "r"] | None = None
    """Normalised singular values, descending from 1."""
    taylor: Float[np.ndarray, "P1"] | None = None
    """Coefficients c of p(s) = sum_j c_j s^j."""
    threshold: float | None = None
    """lambda of the Softshrink."""

    def __post_init__(self) -> None:
        d: int | None = None
        r: int | None = None
        if self.attention is not None:
            if self.attention.ndim != 2:
                raise InputError(f"Report: attention must be [d, r], got the shape {self.attention.shape}.")
            d, r = self.attention.shape
        _expect("weights", self.weights, (d, r))
        _expect("diagonal", self.diagonal, (d if d is None or r is None else min(d, r),))
        _expect("sigma", self.sigma, (r,))
        for name in ("text_singular_values", "item_singular_values", "initial_item_singular_values", "taylor"):
            _expect(name, getattr(self, name), (None,))


def _expect(name: str, array: np.ndarray | None, shape: tuple[int | None, ...]) -> None:
    """Refuses an array of another shape; None in `shape` stands for any length."""
    if array is None:
        return
    fits = array.ndim == len(shape) and all(e is None or e == a for e, a in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if e is None else str(e) for e in shape)
        raise InputError(f"Report: {name} must have the shape [{wanted}], to agree with attention, got {array.shape}.")
