"""Shared fixtures: a tiny data set with structure to learn, and runs of the real command."""

import atexit
import contextlib
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compilation import compile_quickly

# Tests run hundreds of tiny programs: compile them quickly, and each of them once, in this process, in pytest's other
# workers and in the commands that they start.
compile_quickly()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="spectran-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Where each operation stands in the source is written into no program: it took a twentieth of the time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# The commands compile the modules of this project once, and not each for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Of pytest's workers and the commands: on matrices as small as these a second thread of BLAS waits more than it works.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Tracing makes millions of objects that stay: to look through them again and again took a fifteenth of the time.
gc.set_threshold(200_000, 50, 100)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

pytest_plugins = ["objective_cases", "eight_devices"]  # a second conftest.py would hide this one from imports

# They want eight devices: test_mesh.py runs them in a process that has them.
collect_ignore_glob = [] if "MESH_TESTS" in os.environ else ["mesh/test_*.py"]

REPO = Path(__file__).resolve().parents[1]


def write_tiny(folder: Path, *, users: int = 60, items: int = 40, seed: int = 0) -> dict[str, str]:
    """A catalogue in a ring: each user walks it by small steps, so the next item can be learnt from the last.

    Returns the flags that name its files. Item ids are strings, user ids sparse integers.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "items.jsonl").open("w") as file:
        for item in range(items):
            file.write(json.dumps({"item_id": f"item-{item}", "title": f"Thing number {item}"}) + "\n")
    with (folder / "interactions.tsv").open("w") as file:
        file.write("user_id\titem_id\ttimestamp\n")
        for user in range(users):
            here = int(rng.integers(items - 2))
            for event in range(int(rng.integers(5, 12))):
                file.write(f"{1000 + 7 * user}\titem-{here}\t{1_000_000 + 100 * event}\n")
                here = (here + 1 + int(rng.random() < 0.2)) % (items - 2)  # the last two items stay cold
    np.save(folder / "embeddings.npy", rng.normal(size=(items, 24)).astype(np.float32))
    return {
        "dataset": "files",
        "interactions": str(folder / "interactions.tsv"),
        "items": str(folder / "items.jsonl"),
        "embeddings": str(folder / "embeddings.npy"),
        "data_dir": str(folder / "cache"),
    }


TINY_MODEL = {
    "dimension": 16,
    "blocks": 1,
    "heads": 2,
    "max_length": 8,
    "negatives": 16,
    "batch_size": 16,
    "eval_batch_size": 32,
    "attention_dimension": 8,
    "warmup_steps": 2,
    "learning_rate": 0.01,
    "epochs": 3,
}


@pytest.fixture(scope="session")
def tiny_flags(tmp_path_factory) -> dict[str, object]:
    """Flags of a run on the tiny data set; a few seconds long."""
    return {**write_tiny(tmp_path_factory.mktemp("tiny")), **TINY_MODEL}


@pytest.fixture(scope="session")
def tiny_config(tiny_flags):
    from spectran_jax.config import Config

    return Config().replace(**tiny_flags)


def command(module: str, flags: dict[str, object]) -> list[str]:
    return [sys.executable, "-m", f"experiments.{module}", *(f"--{name}={value}" for name, value in flags.items())]


def cut_short(workdir: Path) -> None:
    """Half of the largest file of the newest checkpoint; what a killed process left of one has another name."""
    whole = (p for p in (workdir / "checkpoints" / "latest").iterdir() if p.name.isdigit())
    newest = max(whole, key=lambda p: int(p.name))
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)


@contextlib.contextmanager
def without_report():
    """Runs write an empty page: a real one takes seconds of plotting."""
    from spectran_jax.training import run_report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "write_run_report", lambda *arguments: arguments[-1] and arguments[-1].touch())
        yield


@pytest.fixture
def no_report():
    with without_report():
        yield


@pytest.fixture
def rng() -> random.Random:
    """For faults at moments of chance; what a test that fails prints repeats them."""
    seed = int(os.environ.get("SPECTRAN_TEST_SEED", time.time_ns()))
    print(f"SPECTRAN_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def run_command():
    """Runs `python -m experiments.MODULE --flag=value ...` and returns the finished process."""

    def call(module: str, flags: dict[str, object], **options) -> subprocess.CompletedProcess[str]:
        options.setdefault("timeout", 300)
        env = {**os.environ, "JAX_PLATFORMS": "cpu", **options.pop("env", {})}
        return subprocess.run(
            command(module, flags), cwd=REPO, env=env, capture_output=True, text=True, check=False, **options
        )

    return call


@pytest.fixture
def write(tmp_path):
    """Writes a file of this content, text or bytes, and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
