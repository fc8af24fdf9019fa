"""What JAX is told at the start of a command, in a process of its own: it is told once."""

import os
import subprocess
import sys

from conftest import REPO

PROGRAM = """
import sys
import warnings
from pathlib import Path

import jax

from spectran_jax.config import Config
from spectran_jax.flags import _warn_plainly
from spectran_jax.training.runtime import configure_jax

_warn_plainly()
configure_jax(Config().replace(data_dir=sys.argv[1]))
configure_jax(Config())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
folder = Path(sys.argv[1]) / "compiled"


def compute():
    return [jax.jit(lambda x, n=n: x * n + x)(2.0).item() for n in (3.0, 4.0)]


first = compute()
files = list(folder.glob("*-cache"))
assert len(files) > 1
for path in files:
    path.write_bytes(b"damaged")
jax.clear_caches()
assert compute() == first == [8.0, 10.0]
warnings.warn("something else", stacklevel=1)
"""


def test_damaged_programs_are_told_once(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    call = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(call, cwd=REPO, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told, *rest = done.stderr.splitlines()
    assert told.startswith(f"warning: {tmp_path}/compiled holds compiled programs that can't be read (")
    assert told.endswith("at every start until it is deleted.")
    assert "cache entry" not in done.stderr
    assert rest[0].endswith(": UserWarning: something else"), "other warnings are shown as before"
