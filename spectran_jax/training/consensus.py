"""What the processes of a run must agree on: configuration, code, inputs, the work directory, and when to stop."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from spectran_jax.config import Config
from spectran_jax.digest import code_digest
from spectran_jax.errors import InputError
from spectran_jax.signals import StopRequest
from spectran_jax.training.cluster import Cluster
from spectran_jax.writing import write_text

logger = logging.getLogger(__name__)

_OWN = ("data_dir", "movielens")
"""Fields that may differ between hosts: where each of them keeps copies of the same data."""
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SHARED_SECONDS = 20.0
"""How long a file may take to be seen on another host: network file systems remember what was not there."""
_CACHE_SECONDS = 5.0
"""The same, where it is no fault if it is not."""


def require_agreement(cluster: Cluster, what: str, values: Mapping[str, Any]) -> None:
    """Compares JSON values with those of process 0.

    Args:
      cluster: the processes; each calls this.
      what: names the set of values; serves once.
      values: by name; all processes have the same names.

    Raises:
      InputError: naming the first value that differs, and both processes' values.
    """
    expected = cluster.of_first(f"agree/{what}", lambda: dict(values))
    for name, theirs in expected.items():
        mine = json.loads(json.dumps(values.get(name)))
        if mine != theirs:
            raise InputError(
                f"The processes disagree on {name}: {mine!r} for process {cluster.index} on {socket.gethostname()}, "
                f"{theirs!r} for process 0. Start all of them with the same command, code and input files."
            )


def require_same_run(cluster: Cluster, config: Config) -> None:
    """Compares what decides a run, field by field, and the code that runs it.

    Raises:
      InputError: naming the field or package that differs.
    """
    values = {f"--{name}": value for name, value in config.flat().items() if name not in _OWN}
    values |= {f"the version of {name}": importlib.metadata.version(name) for name in _PACKAGES}
    values["the code of spectran_jax (a digest)"] = code_digest()
    require_agreement(cluster, "run", values)


def require_shared(cluster: Cluster, workdir: Path) -> None:
    """Checks that the work directory, which process 0 holds, is one folder for all hosts.

    Raises:
      InputError: naming the host that does not see it.
    """
    if cluster.alone:
        return
    path = workdir / ".cluster"

    def write() -> str:
        token = secrets.token_hex(16)
        write_text(path, token)
        return token

    if not _comes_to_hold(path, cluster.of_first("workdir", write), _SHARED_SECONDS):
        raise InputError(
            f"--workdir={workdir} is not shared between the hosts: process {cluster.index} on "
            f"{socket.gethostname()} does not see what process 0 writes there. Name a folder on a file system that "
            "all of them mount."
        )
    cluster.gather("workdir seen", True)


def share_compiled(cluster: Cluster) -> None:
    """Does without JAX's folder of compiled programs where it is not one for all hosts.

    JAX lets process 0 alone write there. On hosts with a folder each it would find what the others compile anew, which
    helps nobody, and on GPUs they might wait for it: their compiler shares its tuning among all processes.
    """
    if cluster.alone:
        return
    folder = jax.config.values["jax_compilation_cache_dir"]
    bucket = folder is not None and "://" in folder
    path = None if folder is None or bucket else Path(folder)

    def write() -> str | None:
        token = secrets.token_hex(16)
        with contextlib.suppress(OSError):
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
                write_text(path / f".{token}", token)  # a name of its own: another run may start just now
                return token
        return None

    token = cluster.of_first("compiled", write)
    here = path is not None and token is not None and _comes_to_hold(path / f".{token}", token, _CACHE_SECONDS)
    shared = all(cluster.gather("compiled seen", bucket or here))
    if cluster.is_first and path is not None and token is not None:
        (path / f".{token}").unlink(missing_ok=True)
    if not shared:
        if cluster.is_first and folder is not None:
            logger.warning("%s is not one folder for all hosts: programs are compiled anew at every start.", folder)
        jax.config.update("jax_compilation_cache_dir", None)


def _comes_to_hold(path: Path, token: str, seconds: float) -> bool:
    """Whether this host sees the token within some time."""
    deadline = time.monotonic() + seconds
    while not _holds(path, token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            next(iter(path.parent.iterdir()), None)  # asks a network file system for the folder anew
    return True


def _holds(path: Path, token: str) -> bool:
    """Whether this host sees the token: not while the file is being replaced, or its server is slow."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") == token
    return False


class StopVote:
    """Lets a signal on any process stop all of them after the same step.

    The processes run ahead of each other, since none waits for its devices at every step. So the first that is asked to
    stop says so; a thread of each process answers with the step that it is committed to, and all go on to the furthest
    of these, which needs no step that some process will not make. Between the answer and the count nobody commits to
    more: to ask whether to stop and to commit to what follows is one act. This is what
    `multihost_utils.reached_preemption_sync_point` does, for signals that Python handles.

    Args:
      cluster: the processes.
      stop: what asks this process to stop.
      committed: the step at which the first work ends that this process hands to the devices.
    """

    def __init__(self, cluster: Cluster, stop: StopRequest, committed: int) -> None:
        self._cluster, self._stop = cluster, stop
        self._changed = threading.Condition()
        self._committed = committed
        self._asked = self._answered = False
        self._target: int | None = None
        self._reason: str | None = None
        if not cluster.alone:
            cluster.on_news.append(self._listen)

    def reached(self, step: int, following: int) -> str | None:
        """Why all processes stop after this step; None where they go on, by the `following` steps if by any."""
        if self._cluster.alone:
            return self._stop.requested
        with self._changed:
            while self._answered and self._target is None:
                self._changed.wait(0.1)
            if self._target is not None and step >= self._target:
                return self._reason
            self._committed = step + following
        return None

    def _listen(self, news: dict[str, str]) -> None:
        """Called by the cluster's thread with the news, twice a second."""
        if self._stop.deferred and self._stop.requested and not self._asked:
            self._asked = True
            self._cluster.tell("news/stop", f"{self._stop.requested} on process {self._cluster.index}")
        if "stop" not in news or self._target is not None:
            return
        if not self._answered:
            with self._changed:
                self._answered = True
                self._cluster.tell(f"each/stop/{self._cluster.index}", json.dumps(self._committed))
        answers = self._cluster.read_all("each/stop")
        if len(answers) == self._cluster.count:
            with self._changed:
                self._reason = news["stop"]
                self._target = max(json.loads(answer) for answer in answers.values())
                self._changed.notify_all()
