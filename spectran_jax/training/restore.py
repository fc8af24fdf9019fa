"""A trained model from its work directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectran_jax import item_encoders
from spectran_jax.errors import InputError
from spectran_jax.flags import read_config
from spectran_jax.progress import print_line, stderr_console
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.programs import build_programs
from spectran_jax.training.runtime import configure_jax
from spectran_jax.training.setup import Setup, prepare
from spectran_jax.training.workdir import read_metrics


def config_of_run(workdir: Path) -> Path:
    """The config.json of a work directory; raises `InputError` where it holds no run."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"--workdir={workdir} holds no run (no config.json). Train one with experiments.train.")
    return path


def tell_of_end(workdir: Path) -> None:
    """Says so on stderr where a run has not come to its end."""
    if read_metrics(workdir) is None:
        note = f"--workdir={workdir} has not come to its end: these are its best parameters so far."
        print_line(stderr_console(), note)


def load_run(workdir: Path) -> tuple[Setup, Any]:
    """The set-up of a run and its best parameters, on the devices.

    Raises:
      InputError: where the folder holds no trained run, or its data can no longer be read or has changed.
    """
    # The mesh is that of the machine at hand, whatever the run was trained on.
    config = read_config(config_of_run(workdir)).replace(mesh="auto")
    encoder = item_encoders.lookup(config.encoder.item_encoder)
    reads_text = encoder.needs_spectrum or encoder.needs_text
    embeddings = config.text.embeddings if reads_text else ""
    for path in (config.data.interactions, config.data.items, embeddings):
        file = Path(path).expanduser()
        if path and not file.is_absolute() and not file.exists():
            raise InputError(
                f"--workdir={workdir} was trained on {path}, and there is no such file from {Path.cwd()}: start "
                "from the folder that the run was started in."
            )
    configure_jax(config)
    if not (workdir / "checkpoints" / "best").is_dir():
        raise InputError(f"--workdir={workdir} holds no trained model yet. Go on with experiments.train.")
    setup = prepare(config)
    programs = build_programs(setup, total_steps=1)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        best = checkpoints.restore_best(programs.state.params, setup.inputs_digest)
    finally:
        checkpoints.close()
    if best is None:
        raise InputError(f"--workdir={workdir} holds no sound checkpoint. Go on with experiments.train.")
    return setup, best[1]
