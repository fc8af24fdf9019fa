"""Child processes, some at a time, each on its share of the cores; none is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""XLA takes a step's temporary memory from the system anew each time; in pages of 2 MiB the kernel has less to do."""


@dataclasses.dataclass
class Child:
    """A process that runs, or ran, in a folder of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    cores: frozenset[int]
    said_before: int
    """Bytes of log.txt from earlier attempts."""
    status: int = 0
    """What it left with, once it has ended."""

    def failure(self) -> str:
        """Why a run failed: the last line of its log, without the label that commands put before it."""
        if self.status < 0:
            name = signal.Signals(-self.status).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"Ended by {name}{hint}; see {self.folder / 'log.txt'}."
        said = (self.folder / "log.txt").read_bytes()[self.said_before :]
        lines = said.decode("utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return last.removeprefix("error: ") or f"It ended with status {self.status} and said nothing."


class Children:
    """The processes under way, each on cores of its own."""

    def __init__(self, parallel: int) -> None:
        self.running: list[Child] = []
        self._shares = core_shares(parallel)
        self._parallel = parallel

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves no child behind, whatever happened: those that are still there did not heed a request to leave."""
        for child in self.running:
            child.process.kill()
            child.process.wait()

    @property
    def free(self) -> int:
        """Children that may be started now."""
        return self._parallel - len(self.running)

    def start(self, folder: Path, command: list[str]) -> None:
        """Starts a command on the share of the cores that the fewest running children have; what it says goes to
        log.txt in the folder."""
        in_use = [child.cores for child in self.running]
        cores = min(self._shares, key=in_use.count)
        launch = [sys.executable, "-P", "-S", str(LAUNCH), str(os.getpid()), ",".join(map(str, sorted(cores)))]
        with (folder / "log.txt").open("ab") as log:
            said_before = log.tell()
            process = subprocess.Popen(
                [*launch, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_defaults(self._parallel) | os.environ,
                start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone, which passes it on
            )
        self.running.append(Child(folder, process, cores, said_before))

    def ended(self) -> list[Child]:
        """The children that have ended since the last call."""
        over = [child for child in self.running if child.process.poll() is not None]
        self.running = [child for child in self.running if child not in over]  # asked twice, one could be in neither
        for child in over:
            child.status = child.process.returncode
        return over

    def leave(self) -> None:
        """Asks all children to save and leave, and waits for them."""
        for child in self.running:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        for child in self.running:
            child.process.wait()
        self.running = []


def child_defaults(parallel: int) -> dict[str, str]:
    """Variables of a child's environment where the user sets none."""
    # On a GPU the first of several would otherwise take three quarters of its memory for itself.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if parallel > 1 else {}
    return {"GLIBC_TUNABLES": HUGE_PAGES} | shared


def core_shares(parallel: int) -> list[frozenset[int]]:
    """The cores of this process in `parallel` parts of about one size, each core in one; one core each where short."""
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()]
    cores = sorted(os.sched_getaffinity(0))
    parts = min(parallel, len(cores))
    return [frozenset(cores[part::parts]) for part in range(parts)]
