"""Becomes a command: `python -P launch.py PARENT CORES COMMAND...`; the standard library alone, so that it is quick.

Before that, the process takes its cores, and has the kernel send it SIGTERM should the parent die: a child of a killed
experiment then saves and leaves. Both outlive the change of program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
STATUS_AGAIN = 75


def main(parent: int, cores: str, *command: str) -> None:
    """Takes the cores, ties this process to its parent and runs the command in its place."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it was asked for
            sys.exit(STATUS_AGAIN)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
