"""launch/local.sh for real: two processes train, one is told to stop, all save, start again and finish."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SETTINGS = {
    "PYTHON": sys.executable,
    "PROCESSES": "2",
    "DEVICES": "1",
    "RESTARTS": "1",
}


def children(pid: int) -> dict[int, str]:
    """The live processes that a process has started, with their command lines."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def test_sigterm_to_one_of_two_processes_saves_and_starts_both_again(tiny_flags, tmp_path):
    flags = {**tiny_flags, "item_encoder": "id", "epochs": 8, "eval_every": 8, "patience": 0, "checkpoint_every": 2}
    flags["workdir"] = tmp_path
    launcher = subprocess.Popen(
        [REPO / "launch" / "local.sh", *(f"--{name}={value}" for name, value in flags.items())],
        env={**os.environ, **SETTINGS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    first: dict[int, str] = {}
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "checkpoints" / "latest").glob("[0-9]*")):
            assert launcher.poll() is None, launcher.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint within four minutes"
            time.sleep(0.01)
        first = {pid: line for pid, line in children(launcher.pid).items() if "--process_id=" in line}
        assert len(first) == 2
        (second,) = [pid for pid, line in first.items() if "--process_id=1" in line]
        os.kill(second, signal.SIGTERM)
        _, told = launcher.communicate(timeout=240)
    finally:
        launcher.terminate()
        launcher.wait(timeout=150)
    assert launcher.returncode == 0, told
    assert "saved; starting again (1 left)" in told
    assert "SIGTERM" in told
    assert json.loads((tmp_path / "metrics.json").read_text())["train"]["epochs"] == 8
    assert not any(Path(f"/proc/{pid}").exists() for pid in first)
    assert not [name for name in os.listdir("/proc") if name.isdigit() and works_in(name, tmp_path)]


def works_in(pid: str, folder: Path) -> bool:
    try:
        return f"--workdir={folder}" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just left
        return False
