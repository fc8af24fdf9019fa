"""Real processes of one run on this machine, over Gloo; none of them outlives its block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import REPO, command

PEER_TIMEOUT = 10


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Processes:
    """The processes of a run, and the folder of what they print."""

    def __init__(self, folder: Path, flags: list[dict], devices: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            # Restarts compile nothing anew.
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self.each = []
        for index, own in enumerate(flags):
            with (folder / f"{index}.out").open("w") as out, (folder / f"{index}.err").open("w") as err:
                self.each.append(
                    subprocess.Popen(
                        command("train", own), cwd=REPO, env=env, stdout=out, stderr=err, start_new_session=True
                    )
                )

    def wait(self, seconds: float = 240) -> list[int]:
        """Their exit statuses."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(0.0, deadline - time.monotonic())) for process in self.each]

    def out(self, index: int) -> str:
        return (self.folder / f"{index}.out").read_text()

    def err(self, index: int) -> str:
        return (self.folder / f"{index}.err").read_text()

    def last_line(self, index: int) -> str:
        return (self.err(index).strip().splitlines() or [""])[-1]

    def wait_for_step(self, workdir: Path, step: int, seconds: float = 240) -> None:
        """Returns once a checkpoint of this step, or a later one, is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if latest_step(workdir) >= step:
                return
            ended = [index for index, process in enumerate(self.each) if process.poll() is not None]
            assert not ended, [self.err(index)[-2000:] for index in ended]
            time.sleep(0.005)
        raise AssertionError(f"no checkpoint of step {step} in time: {self.err(0)[-2000:]}")

    def end(self) -> None:
        for process in self.each:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def started(folder: Path, count: int, flags: dict, devices: int = 2, **own: dict[int, object]) -> Iterator[Processes]:
    """`count` processes of one run; `own` are flags of single processes, by index."""
    flags = dict(flags)
    if count > 1:
        address = f"127.0.0.1:{free_port()}"
        flags |= {"coordinator": address, "num_processes": count, "peer_timeout": PEER_TIMEOUT}
    each = []
    for index in range(count):
        each.append({**flags, **({"process_id": index} if count > 1 else {})})
        each[-1] |= {name: values[index] for name, values in own.items() if index in values}
    processes = Processes(folder, each, devices)
    try:
        yield processes
    finally:
        processes.end()


def latest_step(workdir: Path) -> int:
    """Of the newest checkpoint that has its name; 0 where there is none."""
    return max(
        (int(p.name) for p in (workdir / "checkpoints" / "latest").glob("[0-9]*") if p.name.isdigit()), default=0
    )
