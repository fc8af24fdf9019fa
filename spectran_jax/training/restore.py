"""A trained model from its work directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectran_jax import item_encoders
from spectran_jax.config import FILES, Config
from spectran_jax.config_checks import check
from spectran_jax.data.text_files import require_file
from spectran_jax.errors import InputError
from spectran_jax.flags import read_config
from spectran_jax.progress import print_line, stderr_console
from spectran_jax.training import partitioning
from spectran_jax.training.checkpoints import OtherInputs, read_best
from spectran_jax.training.programs import build_programs
from spectran_jax.training.runtime import configure_jax
from spectran_jax.training.setup import Setup, prepare
from spectran_jax.training.workdir import read_metrics


def tell_of_end(workdir: Path) -> None:
    """Says so on stderr where a run has not come to its end."""
    if read_metrics(workdir) is None:
        note = f"--workdir={workdir} has not come to its end: these are its best parameters so far."
        print_line(stderr_console(), note)


def read_run(workdir: Path, files: Mapping[str, Path] | None = None) -> Config:
    """The configuration of a run, with the names that its files have now.

    Args:
      workdir: its folder.
      files: by field, those of `FILES` that lie elsewhere than the run says; and `data_dir`, for caches elsewhere.

    Raises:
      InputError: where the folder holds no run, the run reads no such file, or there is none of that name.
    """
    if not (workdir / "config.json").exists():
        raise InputError(f"--workdir={workdir} holds no run (no config.json). Train one with experiments.train.")
    config = read_config(workdir / "config.json")
    for name in FILES:
        if files and name in files:
            if not config.get(name):
                raise InputError(
                    f"--{name}={files[name]}: the run in {workdir} was trained without such a file; leave it out."
                )
            require_file(files[name])
    return config.replace(**{name: str(path) for name, path in (files or {}).items()})


def load_run(
    workdir: Path, files: Mapping[str, Path] | None = None, cold_scale: float | None = None
) -> tuple[Setup, Any]:
    """The set-up of a run and its best parameters, on the devices.

    Args:
      workdir: its folder.
      files: see `read_run`; they must hold what the run's own held.
      cold_scale: of the item table, instead of the run's.

    Raises:
      InputError: where the folder holds no trained run, its data can no longer be read or has changed, or for a factor
        that its encoder, its loss or the range does not allow.
    """
    # The mesh is that of the machine at hand, whatever the run was trained on.
    config = read_run(workdir, files).replace(mesh="auto")
    if cold_scale is not None:
        config = config.replace(cold_scale=cold_scale)
        check(config)
    encoder = item_encoders.lookup(config.encoder.item_encoder)
    reads_text = encoder.needs_spectrum or encoder.needs_text
    for name in FILES if reads_text else FILES[:2]:
        path = config.get(name)
        if path and name not in (files or {}) and not Path(path).expanduser().exists():
            raise InputError(
                f"--workdir={workdir} was trained on {path}, and there is no such file from {Path.cwd()}: start "
                f"from the folder that the run was started in, or say where it lies now, --{name}=FILE."
            )
    configure_jax(config)
    if not (workdir / "checkpoints" / "best").is_dir():
        raise InputError(f"--workdir={workdir} holds no trained model yet. Go on with experiments.train.")
    trained_on = (read_metrics(workdir) or {}).get("inputs")

    def accept(digest: str) -> None:  # a run that has not come to its end says in its checkpoint alone what it is of
        if trained_on not in (None, digest):
            raise OtherInputs(workdir)

    # Not `training_mesh`: it may share the batches of that training unevenly.
    mesh = partitioning.build_mesh(config.training.mesh, config.training.parallelism)
    try:
        setup = prepare(config, mesh, accept=accept)
        programs = build_programs(setup, total_steps=1)
        best = read_best(workdir / "checkpoints", programs.state.params, setup.inputs_digest)
    except OtherInputs:
        given = [f"--{name}={path}" for name, path in (files or {}).items() if name in FILES]
        if not given:
            raise
        raise InputError(
            f"With {' and '.join(given)}, the data are not those that the run in {workdir} was trained on: give the "
            "files of that run, with the content and the endings that they had."
        ) from None
    if best is None:
        if any((workdir / "checkpoints" / "best").glob("[0-9]*")):  # a finished run would not be trained again
            raise InputError(f"--workdir={workdir}: its best parameters are damaged; train in a new folder.")
        raise InputError(f"--workdir={workdir} holds no trained model yet. Go on with experiments.train.")
    return setup, best[1]
