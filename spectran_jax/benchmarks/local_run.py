"""Real processes of one training run on this machine, joined over Gloo; none of them outlives its block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.benchmarks.probe import child_environment
from spectran_jax.errors import RunError

POLL_SECONDS = 0.005


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def latest_step(workdir: Path) -> int:
    """Of the newest full state that has its name; 0 where there is none."""
    steps = (int(p.name) for p in (workdir / "checkpoints" / "latest").glob("[0-9]*") if p.name.isdigit())
    return max(steps, default=0)


class LocalRun:
    """The processes of a run, and the folder of what they print."""

    def __init__(self, folder: Path, flags: Sequence[Mapping[str, Any]], devices: int, program: Sequence[str]) -> None:
        self.folder, self.each = folder, list[subprocess.Popen[bytes]]()
        self._flags, self._devices, self._program = flags, devices, program

    def start(self) -> None:
        """Starts them."""
        self.folder.mkdir(parents=True)
        devices = f"--xla_force_host_platform_device_count={self._devices}"
        env = child_environment(
            JAX_PLATFORMS="cpu",
            XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip(),
            # Restarts of process 0, which writes the cache, compile nothing anew.
            JAX_COMPILATION_CACHE_DIR=os.environ.get("JAX_COMPILATION_CACHE_DIR", str(self.folder.parent / "compiled")),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0",
        )
        for index, own in enumerate(self._flags):
            command = [sys.executable, *self._program, *(f"--{name}={own[name]}" for name in own)]
            with (self.folder / f"{index}.out").open("w") as out, (self.folder / f"{index}.err").open("w") as err:
                self.each.append(subprocess.Popen(command, env=env, stdout=out, stderr=err, start_new_session=True))

    def wait(self, seconds: float = 240) -> list[int]:
        """Their exit statuses.

        Raises:
          subprocess.TimeoutExpired: one of them is not done in that time.
        """
        deadline = time.monotonic() + seconds
        return [process.wait(max(0.0, deadline - time.monotonic())) for process in self.each]

    def out(self, index: int) -> str:
        """What a process printed."""
        return (self.folder / f"{index}.out").read_text()

    def err(self, index: int) -> str:
        """What a process told of its progress and its failures."""
        return (self.folder / f"{index}.err").read_text()

    def last_line(self, index: int) -> str:
        """Of what a process told."""
        return (self.err(index).strip().splitlines() or [""])[-1]

    def wait_for_step(self, workdir: Path, step: int, seconds: float = 240) -> None:
        """Returns once a checkpoint of this step, or a later one, is there.

        Raises:
          RunError: a process has left before, or it is not there in time.
        """
        deadline = time.monotonic() + seconds
        while latest_step(workdir) < step:
            ended = [index for index, process in enumerate(self.each) if process.poll() is not None]
            if ended:
                raise RunError(f"Process {ended[0]} left before step {step}: {self.err(ended[0])[-2000:]}")
            if time.monotonic() > deadline:
                raise RunError(f"There is no checkpoint of step {step} after {seconds:g} s: {self.err(0)[-2000:]}")
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """Kills what is left of them, with all that they started."""
        for process in self.each:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def started(
    folder: Path,
    count: int,
    flags: Mapping[str, Any],
    *,
    devices: int = 2,
    peer_timeout: float = 10,
    own: Mapping[str, Mapping[int, Any]] | None = None,
    program: Sequence[str] = ("-m", "experiments.train"),
) -> Iterator[LocalRun]:
    """`count` processes of one run.

    Args:
      folder: new; for what they print. Compiled programs are kept beside it, or where JAX is told to.
      count: processes.
      flags: of `experiments.train`.
      devices: fake CPU devices of each process.
      peer_timeout: seconds after which a process that is silent counts as lost.
      own: flags of single processes, by name and index.
      program: what Python runs.
    """
    flags = dict(flags)
    if count > 1:
        address = f"127.0.0.1:{free_port()}"
        flags |= {"coordinator": address, "num_processes": count, "peer_timeout": peer_timeout}
    each = [{**flags, **({"process_id": index} if count > 1 else {})} for index in range(count)]
    for name, values in (own or {}).items():
        for index, value in values.items():
            each[index][name] = value
    processes = LocalRun(folder, each, devices, program)
    try:
        processes.start()
        yield processes
    finally:
        processes.end()
