"""Data: from files to batches. `load` -> `Dataset`, `split` -> `Split`, `train_iterator` and `EvalBatches`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spectran_jax.data.interactions import Dataset, Histories
from spectran_jax.data.splits import Split, Targets, split

if TYPE_CHECKING:
    from spectran_jax.data.pipeline import EvalBatches, TrainIterator, train_iterator
    from spectran_jax.data.sources import data_dir, load, register

__all__ = [
    "Dataset",
    "EvalBatches",
    "Histories",
    "Split",
    "Targets",
    "TrainIterator",
    "data_dir",
    "load",
    "register",
    "split",
    "train_iterator",
]

_LAZY = {
    "EvalBatches": "pipeline",
    "TrainIterator": "pipeline",
    "data_dir": "sources",
    "load": "sources",
    "register": "sources",
    "train_iterator": "pipeline",
}
"""Names whose modules import Grain or PyArrow: brought in when first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
