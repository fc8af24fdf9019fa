"""Checks that need nothing but the configuration; run before anything is read or computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectran_jax.config import Config, fields
from spectran_jax.errors import NOT_MOUNTED, InputError

_LARGEST = 2**31 - 1
"""Of whole numbers: what int32 holds."""


def check(config: Config) -> None:
    """Raises an `InputError` that names the flag for a value that can't be, or that does not go with another."""
    values = config.flat()
    for _, field in fields():
        _check_value(field, values[field.name])
    for together in _TOGETHER:
        together(config)


def _check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Type, choices and bounds of one field."""
    flag, kind = f"--{field.name}", type(field.default)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{flag} must be of type {kind.__name__}, got {value!r}.")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise InputError(f"{flag} must be one of {', '.join(choices)}, got {value!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        hint = " 0 does not clip." if field.name == "clip_norm" else ""
        raise InputError(f"{flag} must be a finite number, got {value}.{hint}")
    if kind is int and not -_LARGEST <= value <= _LARGEST:
        raise InputError(f"{flag} must be at most {_LARGEST}, got {value}.")
    if kind in (int, float) and not field.metadata["bounds"].hold(value):
        raise InputError(f"{flag} must {field.metadata['bounds']}, got {value}.")
    if kind is str and "://" in value:
        raise InputError(f"{flag}={value}: {NOT_MOUNTED}")
    if kind is str and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError as error:  # ~NAME of nobody
            raise InputError(f"{flag}={value}: {error}") from None


def _heads(config: Config) -> None:
    check_heads(config.encoder.dimension, config.backbone.heads)


SCORES_BELOW_ZERO = ("bce", "gbce")
"""Losses whose scores are below 0 for the most part, the best of a list too: logits of small probabilities."""


def _cold_scale(config: Config) -> None:
    if config.objective.cold_scale != 1 and config.objective.loss in SCORES_BELOW_ZERO:
        raise InputError(
            f"--cold_scale={config.objective.cold_scale} with --loss={config.objective.loss}: its scores are logits of "
            "small probabilities, below 0 for the most part, and a factor moves those the other way. Take another "
            "loss, or leave the flag out."
        )


def _randomized(config: Config) -> None:
    check_rank(config.spectrum.decomposition, config.spectrum.max_rank)


def _sparse_moments(config: Config) -> None:
    optimizer = config.optimizer
    if optimizer.table_adam != "decayed" and (
        optimizer.optimizer not in ("adam", "adamw") or optimizer.table_optimizer != "same" or _touches_all(config)
    ):
        raise InputError(
            f"--table_adam={optimizer.table_adam} is for Adam on sparse rows; take --optimizer=adam, "
            "--table_optimizer=same, --table_updates=sparse and a sampled loss with it, or leave it out."
        )


def _rows_ahead(config: Config) -> None:
    memory, training = config.spectrum.spectrum_memory, config.training
    if memory == "device":
        return
    if _touches_all(config):
        raise InputError(
            f"--spectrum_memory={memory} reads the rows that a step touches, and --loss={config.objective.loss} with "
            f"--table_updates={config.optimizer.table_updates} touches all; take --spectrum_memory=device, or a "
            "sampled loss with sparse updates."
        )
    if training.parallelism == "pmap":
        raise InputError(f"--spectrum_memory={memory} is for --parallelism=jit; take it, or --spectrum_memory=device.")


def _micro_batches(config: Config) -> None:
    if config.training.micro_batches == 1:
        return
    without = {
        f"--loss={config.objective.loss}": config.objective.loss == "softmax",
        f"--table_updates={config.optimizer.table_updates}": _touches_all(config),
        f"--spectrum_memory={config.spectrum.spectrum_memory}": config.spectrum.spectrum_memory != "device",
        f"--parallelism={config.training.parallelism}": config.training.parallelism == "pmap",
    }
    if flag := next((flag for flag, holds in without.items() if holds), None):
        raise no_exchange(config, flag)


def no_exchange(config: Config, flag: str) -> InputError:
    """What refuses micro-batches beside `flag`."""
    return InputError(
        f"--micro_batches={config.training.micro_batches} cuts the exchange of item rows, and {flag} has none; leave "
        "one of them out."
    )


def _touches_all(config: Config) -> bool:
    """Whether a step reads and writes the rows of all items."""
    return config.objective.loss == "softmax" or config.optimizer.table_updates == "dense"


def _cuts(config: Config) -> None:
    if config.data.split == "temporal":
        return
    for name in ("valid_time", "test_time"):
        if getattr(config.data, name):
            raise InputError(f"--{name} cuts a temporal split; add --split=temporal, got --split={config.data.split}.")


def _files(config: Config) -> None:
    files = config.data.dataset == "files"
    for name, value in (("interactions", config.data.interactions), ("items", config.data.items)):
        if files and not value:
            hint = " A file with a column item_id alone will do for an --item_encoder without text." * (name == "items")
            raise InputError(f"--dataset=files needs --{name}=FILE.{hint}")
        if value and not files:
            raise InputError(f"--{name} goes with --dataset=files, got --dataset={config.data.dataset}.")


_TOGETHER: tuple[Callable[[Config], None], ...] = (
    _heads,
    _cold_scale,
    _randomized,
    _sparse_moments,
    _rows_ahead,
    _micro_batches,
    _cuts,
    _files,
)
"""What fields must be to each other."""


def check_heads(dimension: int, heads: int) -> None:
    """Raises an `InputError` for heads that do not divide the dimension."""
    if dimension % heads:
        raise InputError(
            f"--dimension={dimension} is not divisible by --heads={heads}; "
            f"take one of {', '.join(str(h) for h in range(1, dimension + 1) if dimension % h == 0)} heads."
        )


def check_rank(decomposition: str, max_rank: int) -> None:
    """Raises an `InputError` for the route that finds as many components as it is told, and is told none."""
    if decomposition == "randomized" and not max_rank:
        raise InputError(
            "--decomposition=randomized finds the leading components only: give their number with --max_rank."
        )
