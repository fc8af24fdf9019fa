"""Orbax checkpoints of a run: the latest states to resume from, and the best parameters to keep.

A checkpoint holds the training state, and a record (JSON) with the data iterator's state, the early-stopping
record, the names and shapes of the state's arrays and a checksum of them. One whose files are torn, or whose numbers
differ from the checksum, is put aside with a warning, and the one before it is taken; where the system can't read it,
it stays, and the run ends. The frozen spectrum is in no checkpoint.

Where several processes train, each writes and reads its own parts of the arrays, and calls every method at the same
place. Orbax gives a checkpoint its name when the last of them has written: one that a crash tore has none. A
checkpoint fits any mesh and any number of processes.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from spectran_jax.errors import DISK_FULL, Diverged, InputError, Interrupted, RunError, first_line
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.integrity import inspect
from spectran_jax.training.storage_faults import fault_of_the_system, system_code

_log = logging.getLogger(__name__)

KEEP_LATEST = 2
"""How many of a kind are kept: the latest, and the one before it in case the latest is damaged."""

_SAVE_SECONDS = 24 * 3600
"""How long a save may take: terabytes do. That it hangs is noticed elsewhere, by files that don't change any more."""


class OtherInputs(InputError):
    """A run whose files hold other data than it was trained on."""

    def __init__(self, workdir: Path) -> None:
        super().__init__(
            f"--workdir={workdir} was trained on other data than its files hold now; bring the old files back, or "
            "train in another folder."
        )


class _Series:
    """Checkpoints of one kind in one folder, by step."""

    def __init__(self, directory: Path, cluster: Cluster, create: bool = True) -> None:
        self.directory, self._cluster, self._asked = directory, cluster, 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP_LATEST,
            enable_async_checkpointing=True,
            create=create,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
            # Two series save at the same time: without names of their own, they meet in each other's barriers.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=directory.name),
        )
        self.manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, tree: Any, record: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays may be donated. A failure surfaces here or in `wait`."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record))
        try:
            self.manager.wait_until_finished()
            if step in self.manager.all_steps():
                self.manager.delete(step)
            self.manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def steps(self) -> list[int]:
        """Of the checkpoints there are, as process 0 sees them, the newest first."""
        self._asked += 1
        key = f"checkpoints/{self.directory.name}/{self._asked}"
        found: list[int] = self._cluster.of_first(key, lambda: sorted(self.manager.all_steps(), reverse=True))
        return found

    def restore(
        self, abstract: Any, data: str, only: int | None = None, put_aside: bool = True
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest sound checkpoint, or that of step `only` if it is sound, as (step, tree, record), or None.

        `abstract` gives shapes and shardings.
        """
        for step in self.steps():
            if only is not None and step != only:
                continue
            try:
                return step, *self._read(step, abstract, data)
            except InputError:
                raise
            except Exception as error:
                self._pass_over(step, error, put_aside)
        return None

    def _read(self, step: int, abstract: Any, data: str) -> tuple[Any, dict[str, Any]]:
        """The tree and the record of a step; any error but an `InputError` says that it can't be had."""
        record = self.manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        # Before the state: of other data it has other shapes, which would pass for damage.
        if record["data"] != data:
            raise OtherInputs(self.directory.parents[1])
        # Of the same configuration, so that it takes another version to have others.
        wanted, held = _shapes(abstract), record.get("shapes")
        if held is None:  # of a version that did not note them
            stored = ocp.PyTreeCheckpointHandler().metadata(self.directory / str(step) / "state").tree
            wanted, held = map(_by_plain_name, (wanted, _shapes(stored)))
        if differing := [name for name in sorted({*held, *wanted}) if held.get(name) != wanted.get(name)]:
            raise InputError(
                f"--workdir={self.directory.parents[1]} holds a run of another version of this library, whose "
                f"parameters differ ({_difference(differing[0], held, wanted)}); go on with that version, or train in "
                "another folder."
            )
        tree = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        if inspect(tree)[0] != record.get("checksum"):
            raise ValueError("its numbers do not match its checksum")
        return tree, record

    def _pass_over(self, step: int, error: Exception, put_aside: bool) -> None:
        """Returns where the checkpoint before this one may be tried: where it is damaged, and no process waits."""
        self._cluster.settle()
        folder = self.directory / str(step)
        if reason := fault_of_the_system(error):
            other = ", or move its folder away to go on from the one before" if put_aside else ""
            message = f"Could not read checkpoint {folder}: {reason}. Mend that and start again{other}."
            raise RunError(message) from error
        reason = first_line(error, 200)
        _log.warning("Checkpoint %s is damaged and is skipped: %s", folder, reason)
        if put_aside:
            self._put_aside(step)
        if self._cluster.alone:
            return
        # The others may have read their parts, and wait for this one.
        if put_aside:
            raise Interrupted(f"Checkpoint {folder} is damaged; start again.") from None
        raise RunError(f"Checkpoint {folder} is damaged ({reason}); train in a new folder.") from None

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        later = [found for found in self.steps() if found > step]
        if later:
            self.manager.reload()  # as process 0 has just seen them
        for each in later:
            try:
                self.manager.delete(each)
            except Exception as error:
                raise RunError(
                    f"Could not remove checkpoint {self.directory / str(each)}: {first_line(error, 300)}."
                ) from error

    def _put_aside(self, step: int) -> None:
        folder = self.directory / str(step)
        target = self.directory.parent / f"damaged-{self.directory.name}-{step}"
        count = 0
        while target.exists():
            count += 1
            target = target.with_name(f"damaged-{self.directory.name}-{step}.{count}")
        try:
            folder.rename(target)
        except FileNotFoundError:  # another process did it
            if folder.exists() or self._cluster.alone:
                raise
        self.manager.reload()

    def _failed(self, error: Exception) -> RunError:
        code = system_code(error)
        reason = os.strerror(code) if code else first_line(error, 300)
        sound = sorted(int(p.name) for p in self.directory.glob("[0-9]*") if p.name.isdigit())
        kept = f"the checkpoint of step {sound[-1]} is kept" if sound else "there is no earlier checkpoint"
        advice = "Free some space and start again" if code in DISK_FULL else "Mend that and start again"
        return RunError(f"Could not write a checkpoint to {self.directory}: {reason}. {advice}; {kept}.")

    def remove_torn(self) -> None:
        """Deletes what saves left that a crash broke off. For the owner of the folder, before it saves."""
        for torn in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(torn, ignore_errors=True)


def _shapes(tree: Any) -> dict[str, list[int]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in leaves}


def _by_plain_name(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """With names such as params.w: what Orbax reads without being told of its type has dictionaries for all else."""
    return {".".join(re.findall(r"\w+", name)): shape for name, shape in shapes.items()}


def _difference(name: str, held: dict[str, list[int]], wanted: dict[str, list[int]]) -> str:
    if name in held and name in wanted:
        return f"{name} is {held[name]} there and {wanted[name]} here"
    return name


class Checkpoints:
    """The checkpoints of a work directory."""

    def __init__(self, directory: Path, cluster: Cluster | None = None) -> None:
        directory, cluster = directory.absolute(), cluster or Cluster()
        self._cluster = cluster
        self._latest = _Series(directory / "latest", cluster)
        self._best = _Series(directory / "best", cluster)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Saves a full training state with its record (JSON values only).

        Not before the best parameters that the record speaks of are on disk: a kill in between must not lose them.
        """
        self._best.wait()
        self._save(self._latest, step, state, record)

    def save_best(self, step: int, params: Any, record: dict[str, Any]) -> None:
        """Saves the parameters that are best on validation so far."""
        self._save(self._best, step, params, record)

    def drop_best_after(self, step: int) -> None:
        """Deletes best parameters of later steps."""
        self._best.drop_after(step)

    def _save(self, series: _Series, step: int, tree: Any, record: dict[str, Any]) -> None:
        checksum, broken = inspect(tree)
        if broken is not None:  # though its loss was still finite
            self.wait()
            raise Diverged(
                f"After step {step} {broken} is no longer finite: the update overflowed. Lower --learning_rate; "
                f"{self.kept()}."
            )
        series.save(step, tree, {**record, "shapes": _shapes(tree), "checksum": checksum})

    def restore(self, abstract_state: Any, data: str) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest sound training state as (step, state, record), or None in a new work directory.

        For the owner of the folder: what a crash left half-written is deleted, what is damaged is put aside, and best
        parameters of later steps, which a crash left before their state was on disk, are deleted: the run will come
        to them again.

        Args:
          abstract_state: shapes, dtypes and shardings.
          data: digest of the run's inputs, which must be the record's entry "data".

        Raises:
          InputError: for a checkpoint of other data or of another version; it stays where it is.
          RunError: where all there were are damaged, or the system can't read one.
        """
        folder = self._latest.directory.parent
        if self._cluster.is_first:
            for series in (self._latest, self._best):
                series.remove_torn()
        found = self._latest.restore(abstract_state, data)
        if found is None and any(folder.glob("damaged-latest-*")):
            raise RunError(
                f"All checkpoints in {folder} are damaged and were put aside (damaged-latest-*). Remove these to train "
                "from the start, or train in another folder."
            )
        self._best.drop_after(0 if found is None else found[0])
        return found

    def restore_best(
        self, abstract_params: Any, data: str, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The best parameters, of that step if one is named, as (step, params, record); else as `restore`.

        Changes nothing on disk.
        """
        return self._best.restore(abstract_params, data, step, put_aside=False)

    def kept(self) -> str:
        """Which checkpoint there is to go on from, in words."""
        step = self._latest.manager.latest_step()
        return "there is no checkpoint yet" if step is None else f"the checkpoint of step {step} is kept"

    def wait(self) -> None:
        """Returns when every save under way is on disk; raises `RunError` where one failed."""
        self._latest.wait()
        self._best.wait()

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._latest.manager.close()
        self._best.manager.close()


def read_best(directory: Path, abstract_params: Any, data: str) -> tuple[int, Any, dict[str, Any]] | None:
    """`Checkpoints.restore_best` of a run that another process may be training, or that may not be written to."""
    best = _Series(directory.absolute() / "best", Cluster(), create=False)
    try:
        return best.restore(abstract_params, data, put_aside=False)
    finally:
        best.manager.close()
