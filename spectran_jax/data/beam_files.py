"""The files that a reduction reads and writes, on any file system that Beam knows: found, and checked beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from apache_beam.io.filesystems import FileSystems

from spectran_jax.errors import InputError
from spectran_jax.writing import is_abandoned


def matching(patterns: Sequence[str], flag: str) -> list[str]:
    """The files that the patterns match, in the order of their names; local ones with their whole path."""
    paths: set[str] = set()
    for pattern in patterns:
        found = [file.path for match in FileSystems.match([_whole(pattern)]) for file in match.metadata_list]
        found = [path for path in found if "://" in path or not Path(path).is_dir()]
        if not found:
            raise InputError(f"--{flag}={pattern}: no such file; patterns such as logs/part-*.tsv name several.")
        paths |= set(found)
    return sorted(paths)


def checked_output(output: str, sources: Sequence[str]) -> str:
    """The whole path of a Parquet file to write, which is none of the sources and in a folder that is there."""
    whole = _whole(output)
    if not output.endswith(".parquet") or any(letter in output for letter in "*?["):
        raise InputError(f"--output={output}: name one Parquet file, like reduced.parquet.")
    if whole in sources:
        raise InputError(f"--output={output} is one of the files to read; write to another place.")
    if Path(whole).is_dir():
        raise InputError(f"--output={output} is a folder; name a file.")
    folder = FileSystems.split(whole)[0]
    if FileSystems.get_filesystem(whole).has_dirs() and not FileSystems.exists(folder):
        raise InputError(f"--output={output}: there is no folder {folder}; make it first.")
    return whole


def _whole(path: str) -> str:
    """A local path from the root on; others as they are."""
    try:
        return path if "://" in path else str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # ~NAME of nobody
        raise InputError(f"{path}: {error}") from None


def remove_abandoned(output: str) -> None:
    """Removes what killed reductions left beside a local output, but for a result that could not be published."""
    if "://" not in output:
        for folder in Path(output).parent.glob(f"{Path(output).name}.tmp-*"):
            if is_abandoned(folder) and not (folder / "histories.parquet").exists():
                shutil.rmtree(folder, ignore_errors=True)
