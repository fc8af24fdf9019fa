"""Becomes a command: `python -P launch.py PARENT CORES COMMAND...`; the standard library alone, so that it is quick.

Before that, the process takes its cores, asks for huge pages, and has the kernel send it SIGTERM should the parent die:
a child of a killed experiment then saves and leaves. All three outlive the change of program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
STATUS_AGAIN = 75
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""XLA takes a step's temporary memory from the system anew each time; in pages of 2 MiB the kernel has less to do."""


def main(parent: int, cores: str, *command: str) -> None:
    """Takes the cores, ties this process to its parent and runs the command in its place."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it was asked for
            sys.exit(STATUS_AGAIN)
    os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
