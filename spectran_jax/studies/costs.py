"""The study of what item encoders cost: measured once, kept in its folder, and published."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.signals import StopRequest
from spectran_jax.studies.curves import dots
from spectran_jax.studies.flags import check_names, refuse_given
from spectran_jax.studies.ownership import claimed
from spectran_jax.studies.publish import Result, publish
from spectran_jax.studies.results_md import refresh
from spectran_jax.studies.tables import Cell, Spread, Table

COLUMNS = {
    "parameters": "Parameters",
    "adapter": "Adapter",
    "step_flops": "MFLOP a step",
    "item_flops": "kFLOP an item",
    "temporary_bytes": "Temporary MiB",
    "peak_bytes": "Peak MiB",
    "step_seconds": "Step ms",
    "evaluation_seconds": "Evaluation ms",
}
_UNITS = {
    "step_flops": 1e6,
    "item_flops": 1e3,
    "temporary_bytes": 2**20,
    "peak_bytes": 2**20,
    "step_seconds": 1e-3,
    "evaluation_seconds": 1e-3,
}

OF_DATA = (
    "dataset", "interactions", "items", "embeddings", "movielens", "k_core", "unknown_items", "duplicates",
    "text_encoder", "text_columns", "decomposition", "decomposition_precision",
)  # fmt: skip
"""Fields that random data does not follow; the config.json of a run may hold some."""

OF_A_SPECTRUM = ("rtol", "spectrum_dtype", "max_rank")
"""Fields that would change what an encoder costs, and that random coordinates do not follow."""

TEXT = """
Random text and random histories: what a method costs does not depend on what it learns. The adapter is the item
encoder without what has one row an item. FLOPs and bytes are the compiler's account of the training step; products in
a loop, of which it counts one run, count as often as they run, but for those that are calls of a library, as on a GPU.
Peak is arguments, results and temporaries together. FLOPs of an item are those of encoding one more: what a step does
once for all items, such as building W, is in the step's. Times are medians over repetitions in which the encoders take
turns; an evaluation makes the item table and ranks every user's target.

The second table is the size of SpecTran's adapter at the text width of LLaMA-3-8B. It does not depend on the number of
items once there are as many as text dimensions.
"""


def run(
    config: Config,
    workdir: Path,
    encoders: Sequence[str],
    *,
    items: int,
    width: int,
    users: int,
    repeats: int,
    given: Collection[str] = (),
    command: str,
    results: Path | None = None,
    section: str = "",
) -> Result:
    """Measures, unless the folder holds the figures of these very settings, code and machine, and publishes; also to
    `results`, a RESULTS.md, as its section `efficiency`, or `efficiency-SECTION`.

    Args:
      config: everything but the item encoder.
      workdir: of the experiment.
      encoders: of the registry; all of them if empty.
      items: as `width`, `users` and `repeats`, see `efficiency.measure`.
      width: m.
      users: who are trained on and evaluated.
      repeats: figures of each encoder.
      given: fields that the command line names.
      command: for the page.
      results: RESULTS.md, if any.
      section: of its section's name.

    Raises:
      InputError: a configuration out of range, a field that is not read, an unknown encoder or one that stands twice;
        and see `efficiency.measure`.
      Interrupted: on SIGTERM or Ctrl-C; nothing of what was measured is kept.
    """
    refuse_given(given, ("item_encoder",), "Costs are of several")
    _refuse_unread(config, given)
    check(config)
    from spectran_jax.item_encoders import REGISTRY
    from spectran_jax.machine import describe_machine
    from spectran_jax.studies import efficiency
    from spectran_jax.training.runtime import configure_jax
    from spectran_jax.training.workdir import locked
    from spectran_jax.writing import write_json

    encoders = check_names("item_encoders", "item encoder", encoders, REGISTRY)
    configure_jax(config)
    settings = {
        "machine": describe_machine(),
        "config": config.to_dict(),
        "encoders": encoders,
        "items": items,
        "width": width,
        "users": users,
        "repeats": repeats,
    }
    path = workdir / "figures.json"
    with StopRequest(goes_on=""), locked(workdir):
        kept = _read(path)
        if kept is None or kept.get("settings") != settings:
            with claimed(workdir, command):
                kept = {
                    "settings": settings,
                    "rows": efficiency.measure(
                        config, encoders, items=items, width=width, users=users, repeats=repeats
                    ),
                    "adapters": efficiency.paper_adapters(config),
                }
            write_json(path, kept)
    found = result(kept["rows"], kept["adapters"], efficiency.ADAPTER_BAR, title(config, items, width), command)
    publish(found, workdir)
    if results is not None:
        refresh(results, f"efficiency-{section}" if section else "efficiency", found)
    return found


def _refuse_unread(config: Config, given: Collection[str]) -> None:
    """Raises `InputError` for a field that nothing here reads."""
    if named := [name for name in OF_DATA if name in given]:
        raise InputError(f"Costs are measured on random data: --{named[0]} is not read; leave it out.")
    for name in OF_A_SPECTRUM:
        if config.get(name) != Config().get(name):
            raise InputError(
                f"Costs are measured on random coordinates in float32, all that the sizes allow: --{name}="
                f"{config.get(name)} is not read; leave it out."
            )


def title(config: Config, items: int, width: int) -> str:
    """The sizes that the figures hold for."""
    return f"Cost with N = {items:,} items, m = {width:,}, d = {config.encoder.dimension}"


def result(
    rows: Mapping[str, Mapping[str, float]], adapters: Sequence[Mapping[str, int]], bar: int, heading: str, command: str
) -> Result:
    """The tables of figures: `rows` by encoder (see `efficiency.measure`), `adapters` by size."""
    cells: list[list[Cell]] = [
        [name, *(row[key] / _UNITS[key] if key in _UNITS else int(row[key]) for key in COLUMNS)]
        for name, row in rows.items()
    ]
    sizes: list[list[Cell]] = [
        [a["width"], a["dimension"], a["k"], a["items"], a["parameters"], "yes" if a["parameters"] <= bar else "no"]
        for a in adapters
    ]
    note = (
        f"At sizes of its own, whatever those above are; the paper's has 2.21 M parameters, this one may have {bar:,}."
    )
    columns = ["m", "d", "k", "Items N", "Parameters", f"At most {bar:,}"]
    plots = [
        dots(
            key.replace("_", "-"),
            label,
            f"{heading}; smaller is better.",
            {name: Spread(row[key] / _UNITS[key], None) for name, row in rows.items()},
            xlabel=label,
            reference=0.0,
        )
        for key, label in COLUMNS.items()
        if key in ("step_seconds", "peak_bytes", "step_flops")
    ]
    return Result(
        "Cost of item encoders",
        [
            Table(heading, ["Encoder", *COLUMNS.values()], cells),
            *([Table("Adapter of spectran", columns, sizes, note=note)] if "spectran" in rows else []),
        ],
        plots,
        TEXT,
        command,
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None
