"""Lists the experiments, each with the first line of its own file."""

import ast
import sys
from pathlib import Path

from spectran_jax.errors import InputError, exit_with_message


def main() -> None:
    """Prints the names to start, without importing any of them."""
    if unknown := [argument for argument in sys.argv[1:] if argument not in ("--help", "-h")]:
        raise InputError(f"Unexpected argument {unknown[0]!r}: an experiment is python -m experiments.NAME.")
    print("python -m experiments.NAME starts an experiment, and with --help says more of it:\n")
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        told = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        print(f"  {path.stem:<12} {told.partition(chr(10))[0]}")


if __name__ == "__main__":
    exit_with_message(main)
