"""Search on validation, then several seeds of the chosen values: the procedure behind every comparison.

Trials run with `evaluate="valid"`, so the test set is read once, by the runs of the chosen values. Every trial and
every seed is a run of its own in a folder of its own; one that is there already is not run again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectran_jax.config import Config, fields
from spectran_jax.errors import Diverged, InputError, RunError, unknown_name
from spectran_jax.training.workdir import write_json

SELECTION_METRIC = "ndcg@20"


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a search may give to one configuration field."""

    name: str
    low: float
    high: float
    log: bool

    def at(self, point: float) -> float:
        """The value at a point in [0, 1], uniform or log-uniform, to three significant digits."""
        if self.log:
            value = math.exp(math.log(self.low) + point * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + point * (self.high - self.low)
        # Rounding must not lead out of the range.
        return min(max(float(f"{value:.3g}"), self.low), self.high)


def parse_space(text: str) -> list[Range]:
    """Reads `learning_rate=log:3e-4:3e-3,dropout=0.1:0.5`.

    Raises:
      InputError: for an unknown field, one that is not a float or stands twice, or a malformed range.
    """
    kinds = {field.name: type(field.default) for _, field in fields()}
    space: list[Range] = []
    for part in filter(None, text.split(",")):
        name, _, values = part.partition("=")
        if name not in kinds:
            raise unknown_name("field in --search:", name, [n for n, k in kinds.items() if k is float])
        if kinds[name] is not float:
            raise InputError(
                f"--search={part}: only real-valued fields are searched; {name} is {kinds[name].__name__}."
            )
        bounds = values.split(":")
        log = bounds[0] == "log"
        try:
            low, high = (float(v) for v in bounds[log:])
        except ValueError:
            raise InputError(f"--search={part}: write NAME=LOW:HIGH or NAME=log:LOW:HIGH.") from None
        if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (log and low <= 0):
            raise InputError(f"--search={part}: LOW must not be above HIGH, both finite, and above 0 where log.")
        if name in {r.name for r in space}:
            raise InputError(f"--search names {name} twice; give each field one range.")
        space.append(Range(name, low, high, log))
    return space


def design(space: Sequence[Range], trials: int, seed: int) -> list[dict[str, float]]:
    """The trials' values: a scrambled Sobol sequence (SciPy), so that few trials cover the space evenly.

    It depends on the space, the number of trials and the seed alone, so methods searched over the same space
    are given the same values.
    """
    from scipy.stats import qmc

    if not space:
        return [{}] * trials
    sampler = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(seed))
    points = sampler.random(1 << max(0, math.ceil(math.log2(trials))))[:trials]
    return [{r.name: r.at(p) for r, p in zip(space, point, strict=True)} for point in points.tolist()]


def sweep(
    config: Config,
    workdir: Path,
    *,
    space: Sequence[Range],
    trials: int,
    seeds: Sequence[int],
    run: Callable[[Config, Path], dict[str, Any]],
) -> dict[str, Any]:
    """Searches on validation, then runs the chosen values with each seed.

    Args:
      config: the values that are not searched.
      workdir: holds `trial-XX/`, `seed-X/` and, at the end, `sweep.json`.
      space: fields to search and their ranges.
      trials: how many points are tried, all with the configuration's own seed.
      seeds: seeds of the final runs, which read the test set; at least one, all different.
      run: trains a configuration in a folder and returns its metrics.json.

    Returns:
      What sweep.json holds: every trial's values and validation metrics, the chosen values, and the seeds' test
      metrics with mean, standard deviation (n - 1) and standard error.

    Raises:
      InputError: no trial, no seed or a seed that stands twice; and whatever `run` raises.
    """
    if trials < 1:
        raise InputError(f"--trials must be at least 1, got {trials}.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds={','.join(map(str, seeds))}: give at least one seed, and each only once.")
    found: list[dict[str, Any]] = []
    for index, values in enumerate(design(space, trials, config.training.seed)):
        try:
            metrics = run(config.replace(**values, evaluate="valid"), workdir / f"trial-{index:02d}")
        except Diverged as error:
            found.append({"values": values, "failed": str(error)})
            continue
        found.append({"values": values, "valid": metrics["valid"], "steps": metrics["train"]["steps"]})
    alive = [trial for trial in found if "valid" in trial]
    if not alive:
        raise RunError(f"All {trials} trials diverged, the last with: {found[-1]['failed']} Search smaller values.")
    best = max(alive, key=lambda trial: trial["valid"][SELECTION_METRIC])
    runs = []
    for seed in seeds:
        metrics = run(config.replace(**best["values"], seed=seed, evaluate="both"), workdir / f"seed-{seed}")
        runs.append(
            {
                "seed": seed,
                "valid": metrics["valid"],
                "test": metrics["test"],
                "train": metrics["train"],
                "protocol": metrics["protocol"],
            }
        )
    protocols = {run["protocol"] for run in runs}
    if len(protocols) > 1:
        raise InputError(
            f"{workdir}: its runs follow {len(protocols)} protocols and can't share a table; start a new folder."
        )
    names = [name for name, value in runs[0]["test"].items() if isinstance(value, int | float)]
    test = {name: spread([run["test"][name] for run in runs]) for name in names}
    result = {"config": config.to_dict(), "trials": found, "chosen": best["values"], "runs": runs, "test": test}
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "sweep.json", result)
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1; 0 for one value) and standard error of the mean."""
    array = np.asarray(values, np.float64)
    std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "std": std, "sem": std / math.sqrt(len(array))}
