"""Bars of quality: what saves time or memory must not cost ranking quality, in paired runs over seeds on Office."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectran_jax.benchmarks.rows import Measured, Settings, bar
from spectran_jax.benchmarks.sessions import dataset_config
from spectran_jax.digest import code_digest
from spectran_jax.statistics import Interval, t_interval
from spectran_jax.training.run import train_and_report

SEEDS = range(8)
EPOCHS, PATIENCE = 40, 8
METRIC = "ndcg@10"
WORST = -0.03

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "dense": {"table_updates": "dense"},
    "padded": {"packing": False},
    "int8": {"spectrum_dtype": "int8"},
    "bfloat16": {"spectrum_dtype": "bfloat16"},
    "precision": {"precision": "bfloat16"},
}


def trained(settings: Settings, variant: str) -> list[float]:
    """The test metric of each seed. A run that this very code finished in --workdir is not run again."""
    values = []
    for seed in SEEDS:
        config = dataset_config(settings, "office", epochs=EPOCHS, patience=PATIENCE, seed=seed, **VARIANTS[variant])
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            metrics = train_and_report(config, settings.workdir / "quality" / code_digest()[:8] / f"{variant}-{seed}")
        values.append(float(metrics["test"][METRIC]))
    return values


def interval(ours: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean and two-sided 95 % Student interval of the paired differences ours - other, over the mean of other."""
    return t_interval((np.asarray(ours) - np.asarray(other)) / np.mean(other))


def compared(settings: Settings, ours: str, other: str) -> Measured:
    """The lower end of the interval is what the limit holds for."""
    settings.dataset("office")
    a, b = trained(settings, ours), trained(settings, other)
    mean, low, high = interval(a, b)
    note = f"mean difference {100 * mean:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}] over {len(a)} seeds"
    return Measured(low, float(np.mean(a)), float(np.mean(b)), (low, high), note)


for _name, _ours, _other, _title in (
    ("sparse", "base", "dense", "sparse row updates over dense Adam"),
    ("packed", "base", "padded", "packed over one history a row"),
    ("int8", "int8", "base", "u in int8 over float32"),
    ("bfloat16", "bfloat16", "base", "u in bfloat16 over float32"),
    ("precision", "precision", "base", "activations in bfloat16 over float32"),
):
    bar(
        f"quality_{_name}",
        f"Relative NDCG@10 on Office, {_title}: lower end of the 95 % interval",
        at_least=WORST,
        quick=False,
    )(lambda settings, ours=_ours, other=_other: compared(settings, ours, other))  # type: ignore[misc]
