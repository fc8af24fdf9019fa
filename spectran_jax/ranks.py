"""ranks.npz of a run: the rank of each user's target, for tests over users and slices that need no model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from spectran_jax.errors import InputError
from spectran_jax.npz import read_arrays


class Ranks(NamedTuple):
    """What the evaluation of a set found, a row for each target."""

    user: Int[np.ndarray, "U"]
    """int32 dense users, the same in every run on the same data and split."""
    item: Int[np.ndarray, "U"]
    """int32 dense ids of the targets."""
    rank: Int[np.ndarray, "U"]
    """int32, 0-based, among all items."""
    history: Int[np.ndarray, "U"]
    """int32 interactions before the target."""
    item_counts: Int[np.ndarray, "N"]
    """int32 training interactions of each item; 0 for a cold one."""


def read_ranks(path: Path, split: str = "test") -> Ranks:
    """Reads ranks.npz.

    Args:
      path: the file.
      split: `valid` or `test`.

    Raises:
      InputError: no such file, or the run did not read that set.
    """
    try:
        found = read_arrays(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a run writes it at its end.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no file of ranks: {error}.") from None
    if f"{split}_rank" not in found:
        raise InputError(f"{path} holds no ranks of the {split} set; run with --evaluate={split} or both.")
    names = [*(f"{split}_{name}" for name in ("user", "item", "rank", "history")), "item_counts"]
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path} is no file of ranks: it has no {missing[0]}.")
    return Ranks(*(found[name] for name in names))
