"""Runs tests/mesh on eight CPU devices, in a process of its own."""

import os
import subprocess
import sys

from conftest import REPO

FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()


def run(*command: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPO,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "PYTHONPATH": str(REPO), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_on_eight_devices():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/mesh", MESH_TESTS="1")


def test_nothing_that_travels_and_no_temporary_follows_the_catalogue():
    run("tests/mesh/compiled.py", JAX_DISABLE_MOST_OPTIMIZATIONS="0")
