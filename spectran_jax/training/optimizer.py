"""The optimiser: an Optax chain with warm-up, schedule, parameter groups and selective weight decay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spectran_jax.config import OptimizerConfig
from spectran_jax.training.catalogue import has_item_rows, path_names
from spectran_jax.training.row_optimizers import scale_by_row_adam, scale_by_rowwise_adagrad

SPECTRAL = ("query", "key", "threshold", "taylor")
"""Parameters of the spectral attention, the group of `--spectral_lr_multiplier`."""

_DECAYED_NDIM = 2


def is_decayed(params: Any) -> Any:
    """A tree of bools: True where weight decay applies, i.e. matrices other than position embeddings.

    Thresholds, Taylor coefficients, norms and biases have fewer axes.
    """

    def decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim >= _DECAYED_NDIM and not path_names(path)[-1].endswith("position_embedding")

    return jax.tree_util.tree_map_with_path(decayed, params)


def is_spectral(params: Any) -> Any:
    """A tree of bools: True for the parameters of the spectral attention."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "adapter" in path_names(path) and path_names(path)[-1] in SPECTRAL, params
    )


def is_adapter(params: Any, item_params: Collection[str]) -> Any:
    """A tree of bools: True for the item encoder's parameters other than item tables and the spectral attention."""

    def adapter(path: tuple[Any, ...], spectral: bool) -> bool:
        return "item_encoder" in path_names(path) and not has_item_rows(path, item_params) and not spectral

    return jax.tree_util.tree_map_with_path(adapter, is_spectral(params))


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, or cosine to 0 at `total_steps`.

    The first of W steps of warm-up has 1 / W of the peak, so that it moves already; step W has the peak.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup))
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def clip(grads: Any, norm: Float[Array, ""], limit: float) -> Any:
    """Gradients whose global norm is `norm`, scaled to `limit` where it is larger; 0 does not clip."""
    if limit <= 0:
        return grads
    factor = limit / jnp.maximum(norm, limit)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)


def build_optimizer(
    config: OptimizerConfig, total_steps: int, item_params: Sequence[str] = (), *, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The rule, decoupled weight decay (AdamW, Loshchilov and Hutter, ICLR 2019), groups, schedule.

    Clipping comes before it, by the step, which knows the norm of all gradients (`clip`).

    Args:
      config: the optimiser section.
      total_steps: where a cosine schedule ends.
      item_params: names of the item encoder's parameters that have one row an item, which may have a rule of their own
        (see `row_optimizers.py`).
      steps_per_epoch: what `spectral_epochs` is counted in.
    """
    parts = [_rule(config, item_params)]
    if config.weight_decay > 0:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=is_decayed))
    if config.spectral_epochs > 0:
        steps = max(1, round(config.spectral_epochs * steps_per_epoch))
        falling = optax.cosine_decay_schedule(config.spectral_lr_multiplier, steps)
        parts.append(optax.masked(optax.scale_by_schedule(falling), is_spectral))
    elif config.spectral_lr_multiplier != 1.0:
        parts.append(optax.masked(optax.scale(config.spectral_lr_multiplier), is_spectral))
    if config.adapter_lr_multiplier != 1.0:
        mask = functools.partial(is_adapter, item_params=item_params)
        parts.append(optax.masked(optax.scale(config.adapter_lr_multiplier), mask))
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps)))
    return optax.chain(*parts)


def _rule(config: OptimizerConfig, item_params: Sequence[str]) -> optax.GradientTransformation:
    rules: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adam": optax.scale_by_adam,
        "adamw": optax.scale_by_adam,
        "adagrad": optax.scale_by_rss,
        "sgd": optax.identity,
    }
    everywhere = rules[config.optimizer]()
    if config.table_optimizer == "rowwise_adagrad":
        items = scale_by_rowwise_adagrad()
    elif config.table_updates == "sparse" and config.table_adam != "lazy" and config.optimizer in ("adam", "adamw"):
        items = scale_by_row_adam(config.table_adam)
    else:
        return everywhere

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "items" if has_item_rows(path, item_params) else "rest", params
        )

    return optax.partition({"items": items, "rest": everywhere}, labels)
