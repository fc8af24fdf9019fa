"""How programs of the tests are compiled: quickly, and as users get them where a test reads what comes out."""

import mmap
import os
from pathlib import Path

import jaxlib

EMITTERS = "xla_cpu_use_fusion_emitters"
"""XLA's newer code generator on CPU, which takes twice as long to compile as the one before."""

PARTS = "xla_cpu_parallel_codegen_split_count"
"""Into how many parts XLA cuts a program for LLVM, for cores that the tests do not have: one takes a tenth less."""

AS_USERS_DO: dict[str, bool] = {}
"""For `Lowered.compile`: HLO and memory as users get them, whatever `compile_quickly` did. Machine code may be another:
XLA's own passes do not look at what JAX_DISABLE_MOST_OPTIMIZATIONS turns off, which is LLVM's work."""


def compile_quickly() -> None:
    """For this process, as long as it has not begun to compile, and for those that it starts."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    flags = os.environ.get("XLA_FLAGS", "")
    for name, value in ((EMITTERS, "false"), (PARTS, "1")):
        if name not in flags and xla_knows(name):
            flags = f"{flags} --{name}={value}".strip()
            os.environ["XLA_FLAGS"] = flags
    if EMITTERS in flags:
        AS_USERS_DO[EMITTERS] = True


def xla_knows(flag: str) -> bool:
    """Whether a flag is one of this version of XLA, which ends a process for one that it does not know."""
    for library in Path(jaxlib.__file__).parent.glob("*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(flag.encode()) >= 0:
                return True
    return False
