"""`experiments.plan`: one slice, or growing ones with a constant share of the job a chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.planning import compiler, report, topologies
from spectran_jax.planning.account import Account, account
from spectran_jax.planning.job import Sizes, build
from spectran_jax.planning.roofline import Roofline
from spectran_jax.planning.topologies import Topology
from spectran_jax.progress import print_line, stderr_console
from spectran_jax.report.terminal import print_table
from spectran_jax.training import partitioning
from spectran_jax.writing import write_json


def share(config: Config, sizes: Sizes, part: Topology, whole: Topology) -> tuple[Config, Sizes]:
    """The job of a smaller slice: the same items and users a chip as on `whole`.

    Raises:
      InputError: where the chips of `whole` don't share its batch evenly.
    """
    if part != whole and config.training.batch_size % whole.chips:
        raise InputError(
            f"--batch_size={config.training.batch_size} is not shared evenly by the {whole.chips} chips of "
            f"{whole.name}: {part.name} has no equal share; take a multiple of {whole.chips}."
        )
    users = config.training.batch_size * part.chips // whole.chips
    items = max(sizes.num_items * part.chips // whole.chips, 1)
    return config.replace(batch_size=users), Sizes(items, sizes.rank, sizes.text_dimension)


def fitted(config: Config, devices: Sequence[Any]) -> Config:
    """The configuration with evaluation batches rounded up to a multiple of the devices."""
    users = -(-config.training.eval_batch_size // len(devices)) * len(devices)
    return config.replace(eval_batch_size=users)


def plan_slice(config: Config, sizes: Sizes, topology: Topology, *, everything: bool = True) -> Account:
    """The account of a job on a slice; an evaluation batch is rounded up to a multiple of its devices.

    Raises:
      InputError: no compiler, or a configuration that does not fit.
    """
    console, devices = stderr_console(), topologies.devices(topology)
    asked, config = config.training.eval_batch_size, fitted(config, devices)
    if (users := config.training.eval_batch_size) != asked:
        print_line(
            console,
            f"{topology.name}: planned with --eval_batch_size={users}, as training refuses {asked} on {len(devices)} "
            "devices.",
        )
    job = build(config, sizes, devices)
    order = list(job.setup.mesh.devices.flat)
    roofline = Roofline(topology, topologies.coordinates(order))

    def announce(name: str) -> None:
        print_line(console, f"Compiling for {topology.name}: {name} ...")

    return account(job, roofline, everything=everything, announce=announce)


def run(config: Config, sizes: Sizes, names: Sequence[str], workdir: Path, *, everything: bool = True) -> None:
    """Plans, prints, and writes plan.json and, for several slices, plan.png.

    Args:
      config: of the job on the largest slice.
      sizes: of its catalogue.
      names: slices such as v5e:16x16; all but the largest get their share of it.
      workdir: where plan.json goes.
      everything: compile the programs of an evaluation and a decomposition too.

    Raises:
      InputError: an unknown slice, no compiler, or a configuration that does not fit.
    """
    slices = sorted({topologies.parse(name) for name in names}, key=lambda slice_: slice_.chips)
    if not slices:
        raise InputError("Name a slice: --topology=v5e:16x16, or several, comma-separated.")
    if len({slice_.chip for slice_ in slices}) > 1:
        raise InputError("--topology: slices of different chips have no common scale; plan each kind by itself.")
    parts = [share(config, sizes, slice_, slices[-1]) for slice_ in slices]
    for slice_, (job_config, _) in zip(slices, parts, strict=True):  # before any of them is compiled for minutes
        devices = topologies.devices(slice_)
        partitioning.training_mesh(fitted(job_config, devices).training, devices)
    if told := compiler.mismatch():
        print_line(stderr_console(), told)
    workdir.mkdir(parents=True, exist_ok=True)
    plans: list[Account] = []
    for slice_, part in zip(slices, parts, strict=True):
        plans.append(plan_slice(*part, slice_, everything=everything))
        for table in report.tables(plans[-1]):
            print_table(table)
        print("\n".join(report.sentences(plans[-1])))
        _write(config, sizes, plans, workdir)  # a compilation takes minutes: what is there is kept
    rows = report.weak_scaling(plans)
    if len(rows) > 1:
        print_table(report.scaling_table(rows))
        report.plot(rows).savefig(workdir / "plan.png", dpi=144)
    print(f"plan: {workdir / 'plan.json'}")


def _write(config: Config, sizes: Sizes, plans: Sequence[Account], workdir: Path) -> None:
    rows = report.weak_scaling(plans)
    job = {"config": config.to_dict(), "sizes": dataclasses.asdict(sizes), "compiler": compiler.versions()}
    content = job | {"plans": list(plans), "weak_scaling": rows}
    write_json(workdir / "plan.json", content)
