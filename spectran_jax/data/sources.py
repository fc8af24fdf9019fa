"""`load`: from a configuration to a `Dataset`, by way of prepared data that is keyed by the content of its inputs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectran_jax.config import Config, DataConfig
from spectran_jax.data import files, movielens
from spectran_jax.data.content import Content, assemble, to_dataset
from spectran_jax.data.interactions import Dataset
from spectran_jax.data.splits import LEAVE_ONE_OUT_MINIMUM
from spectran_jax.data.text_files import content_suffix, is_gzip, require_file
from spectran_jax.errors import DISK_FULL, InputError, RunError, first_line, unknown_name
from spectran_jax.file_state import FileState
from spectran_jax.writing import new_folder, write_errors

_LAYOUT_VERSION = 4
"""Goes up whenever prepared data of the same inputs would look different."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Inputs that were found: what identifies their content, and how to read them."""

    digest: str
    """SHA-256 of the content of the inputs."""
    read: Callable[[], tuple[files.Interactions, files.Items]]


_SOURCES: dict[str, Callable[[DataConfig, Path], Source]] = {}


def register(name: str, source: Callable[[DataConfig, Path], Source]) -> None:
    """Adds a data set: `source(data_config, data_dir)` finds its inputs."""
    _SOURCES[name] = source


def data_dir(config: Config) -> Path:
    """Where prepared data and caches live: `--data_dir`, or spectran_jax in the user's cache folder."""
    if config.data.data_dir:
        return Path(config.data.data_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spectran_jax"


def load(config: Config, digest: str = "") -> Dataset:
    """The data set that `config.data` names, with the text that `config.text` chooses.

    The inputs are read and filtered once; what comes out is kept as ArrayRecord under `data_dir(config)`, keyed by
    SHA-256 over the content of the inputs and the filters, so that a changed file is never served from an old copy.
    With `--split=leave_one_out`, users with fewer than three interactions are left out and counted. What was prepared
    before comes without a Python object for each id, and its text is read when it is asked for (`entries.Entries`).

    Args:
      config: of the run.
      digest: of the data set, where another process has prepared it just now; its inputs are not read again, to tell
        which they are.

    Raises:
      InputError: for bad input.
      RunError: where the prepared data can't be written.
    """
    name = config.data.dataset
    if name not in _SOURCES:
        raise unknown_name("data set", name, _SOURCES)
    folder = data_dir(config)

    @functools.cache
    def source() -> Source:
        return _SOURCES[name](config.data, folder)

    def place(digest: str) -> Path:
        return folder / "prepared" / f"{name}-{digest[:32]}"

    def content() -> Content:
        interactions, items = source().read()
        return assemble(interactions, items, **_filters(config.data))

    if not (digest and place(digest).is_dir()):  # or it is on another host's disk: then these files say what they are
        key = {"dataset": name, "inputs": source().digest, **_filters(config.data), "layout": _LAYOUT_VERSION}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    prepared = _prepared(name, place(digest), content)
    dataset = to_dataset(prepared, name=name, digest=digest, text_columns=config.text.text_columns)
    if config.data.split == "leave_one_out":
        dataset = dataset.without_short_histories(LEAVE_ONE_OUT_MINIMUM, config.data.interactions)
    return dataset


def _filters(config: DataConfig) -> dict[str, Any]:
    """Those of `assemble`, in what is prepared: by default as before there were duplicates, so that it serves on."""
    duplicates = {} if config.duplicates == "keep" else {"duplicates": config.duplicates}
    return {"k_core": config.k_core, "unknown_items": config.unknown_items, **duplicates}


def _movielens(config: DataConfig, folder: Path) -> Source:
    found = movielens.find(config.movielens, folder / "downloads")
    return Source(found.digest(), found.read)


def _files(config: DataConfig, folder: Path) -> Source:
    for flag, value in (("interactions", config.interactions), ("items", config.items)):
        if not value:
            raise InputError(f"--dataset=files needs --{flag}=FILE.")
    paths = [Path(path).expanduser() for path in (config.interactions, config.items)]
    digest = hashlib.sha256()
    for path in paths:
        require_file(path)
    before = [FileState.of(path) for path in paths]
    for path in paths:
        # The endings say how the bytes are read; what else a name says, other dots among it, does not matter.
        ending = content_suffix(path) + (path.suffix.lower() if is_gzip(path) else "")
        digest.update(os.fsencode(ending) + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())

    def read() -> tuple[files.Interactions, files.Items]:
        found = files.read_interactions(paths[0]), files.read_items(paths[1])
        for state in before:
            state.require_same()  # or what was read is not what the digest is of
        return found

    return Source(digest.hexdigest(), read)


def _prepared(name: str, folder: Path, content: Callable[[], Content]) -> Content:
    """What `folder` holds; prepares it first where it is missing or damaged."""
    from spectran_jax.data import builders  # imports TFDS

    builder = name if name in builders.BUILDERS else builders.Files.name
    damaged = folder.is_dir()
    if damaged:
        try:
            return builders.read(builder, folder)
        except Exception as error:  # whatever a damaged file makes TFDS or ArrayRecord raise
            _log.warning("%s is damaged (%s) and is made anew.", folder, error)
    made = content()
    if not damaged and folder.is_dir():  # another process has prepared the same meanwhile, and may be reading it
        return made
    try:
        with write_errors(folder.parent), new_folder(folder) as draft:
            builders.write(builder, made, draft)
    except RuntimeError as error:  # how ArrayRecord says that a write failed: STEP: STEP: CAUSE; writing DRAFT; at ...
        cause = first_line(error).partition(";")[0].rpartition(": ")[2]
        room = "make room, or " if any(os.strerror(code) in str(error) for code in DISK_FULL) else ""
        raise RunError(
            f"{folder.parent} can't be written ({cause}); {room}choose another folder with --data_dir."
        ) from error
    return made


register("movielens_100k", _movielens)
register("files", _files)
