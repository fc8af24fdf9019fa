"""Bars of the step's cost against the size of the catalogue, and its curves over items, positions and dimension."""

from __future__ import annotations

import gc
from typing import Any

from spectran_jax.benchmarks.local_run import free_port
from spectran_jax.benchmarks.probe import run_probe, run_probes
from spectran_jax.benchmarks.rows import Curves, Measured, Settings, bar
from spectran_jax.benchmarks.sessions import Steps, synthetic
from spectran_jax.benchmarks.timing import Ratio, alternate

SMALL = 10_000
BATCHES = 8
PEAK_GIB = 20.0
PROCESSES = 4
_TEN_MILLION: dict[str, Any] = {"rank": 128, "spectrum_dtype": "int8"}


@bar("scaling_1m", "Step time, 1,000,000 items over 10,000 (d 64, r 384, InfoNCE 512)", at_most=1.15)
def scaling_1m(settings: Settings) -> Measured:
    """Both in one process, in turn; then the curves."""
    ratio, small, large = _pair(1_000_000, settings.repeats, rank=384)
    curves: Curves = {}
    items = {f"{n}": Point(n, rank=384) for n in (10_000, 30_000, 100_000, 300_000, 1_000_000)}
    _curve(curves, "items", "Items N", items, "r 384, float32")
    positions = {f"{b}": Point(100_000, rank=384, batch_size=b) for b in (64, 128, 256, 512, 1024)}
    _curve(curves, "positions", "Positions a step", positions, "100,000 items", by_positions=True)
    widths = {f"{d}": Point(100_000, rank=384, dimension=d) for d in (16, 32, 64, 128, 256)}
    _curve(curves, "dimension", "Dimension d", widths, "100,000 items")
    return Measured(ratio.median, large, small, (ratio.low, ratio.high), "ms a step", curves=curves)


@bar(
    "scaling_10m",
    "Step time, 10,000,000 items over 10,000 (d 64, u int8 r 128); peak memory under 20 GiB",
    at_most=1.3,
    quick=False,
)
def scaling_10m(settings: Settings) -> Measured:
    """The peak is that of a process of its own, which holds the large catalogue alone."""
    peak = run_probe("step", items=10_000_000, **_TEN_MILLION)["peak_gib"]
    ratio, small, large = _pair(10_000_000, settings.repeats, **_TEN_MILLION)
    curves: Curves = {}
    items = {f"{n}": Point(n, **_TEN_MILLION) for n in (10_000, 100_000, 1_000_000, 10_000_000)}
    _curve(curves, "items_int8", "Items N", items, "r 128, int8")
    note = f"ms a step; peak resident memory {peak:.1f} GiB of {PEAK_GIB:g} allowed"
    return Measured(ratio.median, large, small, (ratio.low, ratio.high), note, peak < PEAK_GIB, curves)


@bar(
    "shared_10m",
    "Peak memory of a process at start, 4 processes x 2 devices, 10,000,000 items (d 64, u int8 r 128), over its share "
    "of the item tables and what an empty run takes",
    at_most=1.3,
    quick=False,
)
def shared_10m(settings: Settings) -> Measured:
    """The largest of the four; an empty run has 10,000 items."""
    empty, large = (_shared(items) for items in (SMALL, 10_000_000))
    base = max(found["peak_gib"] for found in empty)
    share = max(found["share_gib"] for found in large)
    peak = max(found["peak_gib"] for found in large)
    note = f"GiB: peak less an empty run's {base:.2f}, and the share"
    return Measured((peak - base) / share, peak - base, share, note=note)


def _shared(items: int) -> list[dict[str, Any]]:
    address = f"127.0.0.1:{free_port()}"
    each = [
        {"items": items, "coordinator": address, "num_processes": PROCESSES, "process_id": index, **_TEN_MILLION}
        for index in range(PROCESSES)
    ]
    flags = "--xla_force_host_platform_device_count=2"
    return run_probes("share", each, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


class Point:
    """Steps on a synthetic catalogue, made when they are needed and not before: large ones do not fit side by side."""

    def __init__(self, items: int, **options: Any) -> None:
        self.items, self.options = items, options

    def make(self) -> Steps:
        """The steps, with their batches on the device."""
        users = 4 * self.options.get("batch_size", 256)
        return Steps(synthetic(self.items, users=users, **self.options), BATCHES)


def _pair(items: int, repeats: int, **options: Any) -> tuple[Ratio, float, float]:
    """Large over small, and the milliseconds of a step of both, small first."""
    small, large = (Point(n, **options).make() for n in (SMALL, items))
    # The two differ by tens of percent at most: more and shorter turns than elsewhere keep a busy machine out.
    paired = alternate({"small": small, "large": large}, 4 * repeats, calls=2)
    ratio = paired.ratio("large", "small")
    del small, large
    gc.collect()
    return ratio, *(1e3 * paired.median(name) / BATCHES for name in ("small", "large"))  # type: ignore[return-value]


def _curve(
    curves: Curves, name: str, xlabel: str, points: dict[str, Point], label: str, by_positions: bool = False
) -> None:
    """Step time and the compiled step's memory over one size, a point at a time, into `curves`."""
    times, memory = [], []
    for x, point in points.items():
        steps = point.make()
        plan = steps.setup.plan
        at = plan.positions / plan.steps_per_epoch if by_positions else float(x)
        seconds = alternate({"step": steps}, 3, calls=2).median("step") / BATCHES
        times.append([at, 1e3 * seconds])
        memory.append([at, steps.memory() / 2**20])
        del steps
        gc.collect()
    curves[f"time_{name}"] = {
        "title": "Step time", "xlabel": xlabel, "ylabel": "Milliseconds a step", "series": {label: times},
    }  # fmt: skip
    curves[f"memory_{name}"] = {
        "title": "Memory of the step", "xlabel": xlabel, "ylabel": "MiB", "series": {label: memory},
    }  # fmt: skip
