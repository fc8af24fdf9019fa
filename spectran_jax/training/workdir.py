"""The work directory of a run: one owner at a time, one configuration, files that are never half-written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from spectran_jax.config import LENGTH, Config
from spectran_jax.errors import InputError, RunError
from spectran_jax.flags import read_config
from spectran_jax.training.tensorboard import Summaries
from spectran_jax.writing import write_text

RESULTS = ("metrics.json", "ranks.npz", "report.html")
"""What a run writes at its end, of its best parameters. The first says that the run is finished: written last, it goes
first."""
_OWN = (*RESULTS, "config.json", "metrics.jsonl", "checkpoints", "profile", "tensorboard", ".lock", ".cluster")
"""What a run writes into its folder."""
STUDY = "study.json"
"""What a study notes its command in, in a folder of its own."""
EXPORT = "export.json"
"""What an export says of itself, in a folder that is replaced as a whole."""
_TRIES = 10
"""Times that a folder is made which another process, which had made it before, takes away again."""


@contextlib.contextmanager
def locked(workdir: Path, patience: float = 0.0, *, keep: bool = True, called: str = "") -> Iterator[None]:
    """Creates the work directory and holds it for this process.

    A folder that was made here goes again where the block leaves nothing in it: a command that was refused leaves no
    trace.

    Args:
      workdir: the folder.
      patience: seconds to wait for another process that holds it.
      keep: leave the file that is locked in the folder.
      called: the folder in messages; `--workdir=` and its name if empty.

    Raises:
      InputError: where another live process holds it, or it can't be created or written.
    """
    deadline, called = time.monotonic() + patience, called or f"--workdir={workdir}"
    for tries in itertools.count(1):
        made, file = _open_lock(workdir, called)
        with file:
            _take(file, called, deadline)
            # Its owner took it away, so that no other process would find it locked; or files have no numbers that stay.
            if not _is(file, workdir / ".lock") and tries < _TRIES:
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                if _is(file, workdir / ".lock"):  # nobody else may take it away
                    _remove_empty(made)
                    if not keep:
                        (workdir / ".lock").unlink(missing_ok=True)
            return


def _open_lock(workdir: Path, called: str) -> tuple[list[Path], IO[str]]:
    """Folders that had to be made, the innermost first, and the file that is locked."""
    tries = 0
    while True:
        tries += 1
        try:
            if workdir.is_file():
                raise InputError(f"{called} is a file; name a folder.")
            made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
            workdir.mkdir(parents=True, exist_ok=True)
            return made, (workdir / ".lock").open("a+")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and tries < _TRIES:
                continue
            raise InputError(f"{called} can't be used: {error.strerror}.") from None


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _remove_empty(made: list[Path]) -> None:
    """Removes folders, the innermost first, as long as they hold nothing but the lock, which this process holds."""
    with contextlib.suppress(OSError):  # not empty, among others
        if made and {path.name for path in made[0].iterdir()} <= {".lock", ".cluster"}:
            for name in (".cluster", ".lock"):
                (made[0] / name).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()


def _take(file: IO[str], called: str, deadline: float) -> None:
    """Locks the file, or says why not."""
    try:
        _lock(file, deadline)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise InputError(
            f"{called} is in use by another live process (pid {owner}). Wait for it, or take another folder."
        ) from None
    except OSError as error:
        raise InputError(
            f"{called} can't be locked ({error.strerror}): mount its file system with locks (Lustre: "
            "-o flock), or take another folder."
        ) from None


def _lock(file: IO[str], deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)
        else:
            return


def is_locked(workdir: Path) -> bool:
    """Whether a live process holds the work directory now."""
    try:
        with (workdir / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        return False  # a file system without locks, where nobody can hold one
    return False


def refuse_other_folder(workdir: Path) -> None:
    """Checks, before anything is written there, that the work directory is no study's and no export's.

    Raises:
      InputError: saying whose it is.
    """
    if (workdir / STUDY).is_file():
        raise InputError(f"--workdir={workdir} is the folder of a study, whose runs lie in runs/; take another folder.")
    if (workdir / EXPORT).is_file():
        raise InputError(f"--workdir={workdir} holds an export, which the next one replaces; take another folder.")


def refuse_other_run(workdir: Path, config: Config) -> None:
    """Checks that the work directory holds no run or one of this configuration.

    Files may have other names than they had: `refuse_other_files` looks at their content once it is known. A folder
    without a checkpoint or results holds no run: a command that failed before it trained does not bind the next one. A
    cosine schedule ends with the run, so that a longer one is another from its first steps on.

    Raises:
      InputError: naming the fields that differ.
    """
    other = _run_in(workdir)
    if other is not None:
        differences = config.naming_files_as(other).differences(
            other, ("epochs", "max_steps") if config.optimizer.schedule == "cosine" else ()
        )
        if differences:
            raise InputError(
                f"--workdir={workdir} holds a run of another configuration ({'; '.join(differences)}; yours != its). "
                "Take another folder, or the same values."
            )


def refuse_other_files(workdir: Path, config: Config, inputs: str) -> None:
    """Checks that files which have other names than the run's hold what those held.

    Args:
      workdir: the folder, which `refuse_other_run` has passed.
      config: of this start.
      inputs: digest of its inputs.

    Raises:
      InputError: naming the fields that differ.
    """
    other = _run_in(workdir)
    if other is None or config.naming_files_as(other) == config:
        return
    metrics = read_metrics(workdir)
    if metrics is None:
        return  # a checkpoint of other inputs is refused where it is read
    if metrics.get("inputs") != inputs:
        raise InputError(
            f"--workdir={workdir} holds a run of files with other content, or another ending "
            f"({'; '.join(config.differences(other))}; yours != its). Take another folder, or the same files."
        )


def refuse_other_run_of_study(workdir: Path, config: Config) -> None:
    """Checks that the folder of a study's run holds none with other values, the epochs and steps that it was given
    among them: gone on with, it would stand in one table with runs of another budget.

    Files may have other names than they had: the run itself looks at their content.

    Raises:
      InputError: naming the run and the fields that differ.
    """
    other = _run_in(workdir)
    if other is not None:
        differences = config.naming_files_as(other).differences(other, LENGTH)
        if differences:
            raise InputError(
                f"The run in {workdir} has other values ({'; '.join(differences)}; yours != its). "
                "Take another --workdir, or the same values."
            )


def read_metrics(workdir: Path) -> dict[str, Any] | None:
    """The content of metrics.json; None where there is none or a damaged one: a run that has not come to its end."""
    try:
        metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) and isinstance(metrics.get("config"), dict) else None


def remove_results(workdir: Path) -> None:
    """Removes what an earlier end left, before training goes beyond it: it would be told of other parameters.

    Raises:
      RunError: where the system refuses.
    """
    for name in RESULTS:
        try:
            (workdir / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"Could not remove {workdir / name}, which training goes beyond: {error.strerror}."
            ) from None


def _run_in(workdir: Path) -> Config | None:
    """The configuration of the run that the folder holds."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    held = (workdir / "metrics.json").exists() or any((workdir / "checkpoints").glob("*/[0-9]*/*"))
    return read_config(path) if held else None


def refuse_own(workdir: Path, output: Path) -> None:
    """Checks that an output takes the place of nothing that the run itself writes.

    Raises:
      InputError: naming it.
    """
    folder, place = (Path(os.path.realpath(path)) for path in (workdir, output))
    if folder in place.parents and place.relative_to(folder).parts[0] in _OWN:
        raise InputError(f"--output={output} is what the run itself writes; write to another place.")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each with its "kind" and "step"; what a crash or a disk damaged is left out.

    Raises:
      OSError: where it can't be read.
    """
    lines = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "kind" in entry and isinstance(entry.get("step"), int):
                lines.append(entry)
    return lines


class MetricsLog:
    """metrics.jsonl: one JSON object a line, readable while the run goes on.

    On resume, lines after the step that is resumed from are cut off, so that none stands twice.
    """

    def __init__(self, path: Path, resume_step: int, also: Summaries | None = None, *, writes: bool = True) -> None:
        """Opens the log.

        Args:
          path: the file.
          resume_step: lines of later steps are dropped; so is what `read_log` leaves out.
          also: gets every new entry too.
          writes: False where another process does: the file is neither read nor written.
        """
        self._also = also
        self.lines: list[dict[str, Any]] = []
        self._file = None
        if not writes:
            return
        if path.exists():
            self.lines = [line for line in read_log(path) if line["step"] <= resume_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Appends one entry; it must hold its "step"."""
        self.lines.append(dict(entry))
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"Could not write {self._file.name}: {error.strerror}.") from None
        if self._also is not None:
            self._also.write(entry)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
        if self._also is not None:
            self._also.close()
