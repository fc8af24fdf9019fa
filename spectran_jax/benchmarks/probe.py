"""Measurements that need a process of their own, for its memory: `python -m spectran_jax.benchmarks.probe JSON`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.errors import RunError

SAMPLE_SECONDS = 0.01


def run_probe(name: str, **options: Any) -> dict[str, Any]:
    """Runs a probe in a process of its own and returns what it found.

    Raises:
      RunError: where it fails.
    """
    return run_probes(name, [options])[0]


def child_environment(**variables: str) -> dict[str, str]:
    """That of this process and these variables; children import what this process can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path])), **variables}


def run_probes(name: str, each: Sequence[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """Runs a probe in several processes at once, one for each of these options, and returns what they found.

    Raises:
      RunError: where one fails; the others are ended.
    """
    found: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        # To files: a pipe that nobody reads yet would hold up a process on which the others wait.
        told = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in each]
        running = []
        for options, err in zip(each, told, strict=True):
            asked = json.dumps({"name": name, "options": options})
            process = subprocess.Popen(
                [sys.executable, "-m", "spectran_jax.benchmarks.probe", asked],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=child_environment(**environment),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(process)
        for process, err in zip(running, told, strict=True):
            out, _ = process.communicate()
            if process.returncode:
                err.seek(0)
                last = (err.read().strip().splitlines() or ["no message"])[-1]
                raise RunError(f"The process that measures {name} ended with status {process.returncode}: {last}")
            found.append(dict(json.loads(out.splitlines()[-1])))
    return found


def step(items: int, **options: Any) -> dict[str, Any]:
    """Trains a few steps on a synthetic catalogue; the peak of resident memory."""
    import jax

    from spectran_jax.benchmarks.sessions import Steps, synthetic

    steps = Steps(synthetic(items, **options), 4)
    for _ in range(3):
        jax.block_until_ready(steps())
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def share(items: int, coordinator: str, num_processes: int, process_id: int, **options: Any) -> dict[str, Any]:
    """Starts a run over a synthetic catalogue as one of several processes, and takes a step; its peak of memory
    and the bytes of the item tables that are its part."""
    import jax

    from spectran_jax.benchmarks.sessions import Steps, synthetic
    from spectran_jax.cluster_flags import ClusterOptions
    from spectran_jax.training.join import joined

    with joined(ClusterOptions(coordinator, num_processes, process_id)):
        steps = Steps(synthetic(items, repeated=True, **options), 1)
        jax.block_until_ready(steps())
        own = sum(part.data.nbytes for leaf in jax.tree.leaves((steps.state, steps.frozen)) for part in _parts(leaf))
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "share_gib": own / 2**30}


def _parts(leaf: Any) -> Any:
    """What this process holds of an array that is cut over devices."""
    return [] if leaf.sharding.is_fully_replicated else leaf.addressable_shards


def decompose(source: str, out: str, **options: Any) -> dict[str, Any]:
    """Decomposes a .npy file to disk; the peak of anonymous memory, without pages of files."""
    import numpy as np

    from spectran_jax.spectral import decompose_to

    peak = AnonymousPeak()
    with peak:
        spectrum, _ = decompose_to(Path(out), np.load(source, mmap_mode="r"), **options)
    return {"peak_mib": peak.kib / 2**10, "rank": spectrum.rank}


class AnonymousPeak:
    """Samples the process' anonymous resident memory while it is entered; Linux."""

    def __init__(self) -> None:
        self.kib = anonymous_kib()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.kib = max(self.kib, anonymous_kib())

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def anonymous_kib() -> int:
    """RssAnon of this process, in KiB; 0 where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon:")), 0)


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"step": step, "share": share, "decompose": decompose}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(PROBES[asked["name"]](**asked["options"])))
