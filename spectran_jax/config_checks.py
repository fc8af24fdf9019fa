"""Checks that need nothing but the configuration; run before anything is read or computed."""

from __future__ import annotations

import math
from pathlib import Path

from spectran_jax.config import Config, fields
from spectran_jax.errors import NOT_MOUNTED, InputError

_LARGEST = 2**31 - 1
"""Of whole numbers: what int32 holds."""

# Closed ranges [low, high] of numeric fields; None is no bound.
_RANGES: dict[str, tuple[float, float | None]] = {
    "seed": (0, 2**31 - 1),
    "k_core": (0, None),
    "holdout_items": (0, 0.9),
    "holdout_seed": (0, 2**31 - 1),
    "max_length": (1, None),
    "rtol": (0, 1),
    "max_rank": (0, None),
    "dimension": (1, None),
    "taylor_order": (0, 32),
    "attention_dimension": (1, None),
    "attention_energy": (0, None),
    "adapter_width": (1, None),
    "experts": (1, None),
    "whiten_groups": (1, None),
    "alignment_weight": (0, None),
    "semantic_scale": (0, None),
    "id_scale": (0, None),
    "blocks": (1, None),
    "heads": (1, None),
    "ffn_multiplier": (1, None),
    "negatives": (1, None),
    "popularity_power": (0, 2),
    "gbce_t": (0, 1),
    "learning_rate": (0, None),
    "spectral_lr_multiplier": (0, None),
    "spectral_epochs": (0, None),
    "weight_decay": (0, None),
    "warmup_steps": (0, None),
    "clip_norm": (0, None),
    "epochs": (1, None),
    "max_steps": (0, None),
    "batch_size": (1, None),
    "eval_every": (1, None),
    "patience": (0, None),
    "checkpoint_every": (1, None),
    "eval_batch_size": (1, None),
    "steps_per_dispatch": (1, None),
    "profile": (0, None),
}


def check(config: Config) -> None:
    """Raises an `InputError` that names the flag for any value out of its range or choices."""
    values = config.flat()
    for _, field in fields():
        value = values[field.name]
        kind = type(field.default)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"--{field.name} must be of type {kind.__name__}, got {value!r}.")
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise InputError(f"--{field.name} must be one of {', '.join(choices)}, got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            hint = " 0 does not clip." if field.name == "clip_norm" else ""
            raise InputError(f"--{field.name} must be a finite number, got {value}.{hint}")
        if kind is int and not -_LARGEST <= value <= _LARGEST:
            raise InputError(f"--{field.name} must be at most {_LARGEST}, got {value}.")
        if kind is str and "://" in value:
            raise InputError(f"--{field.name}={value}: {NOT_MOUNTED}")
        if kind is str and value.startswith("~"):
            try:
                Path(value).expanduser()
            except RuntimeError as error:  # ~NAME of nobody
                raise InputError(f"--{field.name}={value}: {error}") from None
        if field.name in _RANGES:
            low, high = _RANGES[field.name]
            if not low <= value <= (float("inf") if high is None else high):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise InputError(f"--{field.name} must be {bound}, got {value}.")
    if not 0 <= config.backbone.dropout < 1:
        raise InputError(f"--dropout must be at least 0 and below 1, got {config.backbone.dropout}.")
    check_heads(config.encoder.dimension, config.backbone.heads)
    if not 0 < config.backbone.mask_ratio < 1:
        raise InputError(f"--mask_ratio must lie between 0 and 1, got {config.backbone.mask_ratio}.")
    if not config.objective.temperature > 0:
        raise InputError(f"--temperature must be above 0, got {config.objective.temperature}.")
    for name in ("attention_live", "null_share"):
        share = getattr(config.encoder, name)
        if not 0 < share < 1:
            raise InputError(f"--{name} must lie between 0 and 1, got {share}.")
    if not config.encoder.alignment_temperature > 0:
        raise InputError(f"--alignment_temperature must be above 0, got {config.encoder.alignment_temperature}.")
    if config.spectrum.decomposition == "randomized" and not config.spectrum.max_rank:
        raise InputError(
            "--decomposition=randomized finds the leading components only: give their number with --max_rank."
        )
    optimizer = config.optimizer
    if optimizer.table_adam != "decayed" and (
        optimizer.optimizer not in ("adam", "adamw")
        or optimizer.table_optimizer != "same"
        or optimizer.table_updates != "sparse"
        or config.objective.loss == "softmax"
    ):
        raise InputError(
            f"--table_adam={optimizer.table_adam} is for Adam on sparse rows; take --optimizer=adam, "
            "--table_optimizer=same, --table_updates=sparse and a sampled loss with it, or leave it out."
        )
    if config.data.split != "temporal":
        for name in ("valid_time", "test_time"):
            if getattr(config.data, name):
                raise InputError(
                    f"--{name} cuts a temporal split; add --split=temporal, got --split={config.data.split}."
                )
    files = config.data.dataset == "files"
    for name, value in (("interactions", config.data.interactions), ("items", config.data.items)):
        if files and not value:
            hint = " A file with a column item_id alone will do for an --item_encoder without text." * (name == "items")
            raise InputError(f"--dataset=files needs --{name}=FILE.{hint}")
        if value and not files:
            raise InputError(f"--{name} goes with --dataset=files, got --dataset={config.data.dataset}.")


def check_heads(dimension: int, heads: int) -> None:
    """Raises an `InputError` for heads that do not divide the dimension."""
    if dimension % heads:
        raise InputError(
            f"--dimension={dimension} is not divisible by --heads={heads}; "
            f"take one of {', '.join(str(h) for h in range(1, dimension + 1) if dimension % h == 0)} heads."
        )
