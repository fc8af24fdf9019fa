"""Measurements that need a process of their own, for its memory: `python -m spectran_jax.benchmarks.probe JSON`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectran_jax.errors import RunError

SAMPLE_SECONDS = 0.01


def run_probe(name: str, **options: Any) -> dict[str, Any]:
    """Runs a probe in a process of its own and returns what it found.

    Raises:
      RunError: where it fails.
    """
    command = [sys.executable, "-m", "spectran_jax.benchmarks.probe", json.dumps({"name": name, "options": options})]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"The process that measures {name} ended with status {done.returncode}: {last}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def step(items: int, **options: Any) -> dict[str, Any]:
    """Trains a few steps on a synthetic catalogue; the peak of resident memory."""
    import jax

    from spectran_jax.benchmarks.sessions import Steps, synthetic

    steps = Steps(synthetic(items, **options), 4)
    for _ in range(3):
        jax.block_until_ready(steps())
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


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


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"step": step, "decompose": decompose}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(PROBES[asked["name"]](**asked["options"])))
