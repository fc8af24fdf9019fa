"""Whose folder it is: an experiment's tables and page are not written over those of another one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from spectran_jax.errors import InputError
from spectran_jax.training.workdir import STUDY
from spectran_jax.writing import write_json

_FILES = ("result.json", STUDY)
"""What holds the command: of an experiment that came to its end, and of one that has begun."""


def refuse_another_study(workdir: Path, command: str) -> None:
    """Raises `InputError` for a folder that another experiment than that of `command` has begun or finished, or that is
    a training run's."""
    here = _experiment(command)
    if (workdir / "checkpoints").is_dir():
        raise InputError(f"--workdir={workdir} holds a training run; take another folder for experiments.{here}.")
    for name in _FILES:
        there = _experiment(_command_in(workdir / name))
        if there and here and there != here:
            what = "tables" if name == "result.json" else "runs"
            raise InputError(
                f"--workdir={workdir} holds the {what} of experiments.{there}; take another folder for "
                f"experiments.{here}."
            )


@contextlib.contextmanager
def claimed(workdir: Path, command: str) -> Iterator[None]:
    """Notes in study.json, before anything runs, which command the folder is for; a call from Python has none.

    Where the block is refused its input and no run has got anywhere, the note goes again.

    Raises:
      InputError: the folder is a file.
    """
    if not command:
        yield
        return
    if workdir.is_file():
        raise InputError(f"--workdir={workdir} is a file; name a folder.")
    note, made = workdir / STUDY, not workdir.exists()
    new = not note.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(note, {"command": command})
    try:
        yield
    except InputError:
        if new and not any(workdir.glob("runs/**/checkpoints")) and not any(workdir.glob("runs/**/metrics.json")):
            note.unlink()
            with contextlib.suppress(OSError):  # the failed runs' logs stay
                if made:
                    (workdir / ".lock").unlink(missing_ok=True)
                    workdir.rmdir()
        raise


def _command_in(path: Path) -> str:
    """The command that a file holds; empty where there is no such file, or it is another's."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _experiment(command: str) -> str:
    found = re.search(r"experiments\.(\w+)", command)
    return found[1] if found else ""
