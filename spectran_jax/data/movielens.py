"""MovieLens-100K: where it comes from, and what its files say.

The source is the wheel `recbole==1.2.1`, which carries the data and is fetched but never installed, or GroupLens'
own archive. GroupLens' terms of use hold for the data: research use, with citation (F. M. Harper and J. A. Konstan,
The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015).
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from spectran_jax.data import tables
from spectran_jax.data.files import Interactions, Items
from spectran_jax.errors import InputError
from spectran_jax.writing import write_errors

WHEEL_REQUIREMENT = "recbole==1.2.1"
WHEEL_NAME = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ARCHIVE_NAME = "ml-100k.zip"
ARCHIVE_MD5 = "0e33842e24a9c977be4e0107933c0723"
_PIP_SECONDS = 180
_URL_SECONDS = 15
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclasses.dataclass(frozen=True)
class Form:
    """One of the two forms in which the data is passed around."""

    interactions: str
    items: str
    header: bool
    delimiter: str
    encoding: str


RECBOLE = Form("ml-100k.inter", "ml-100k.item", True, "\t", "utf-8")
GROUPLENS = Form("u.data", "u.item", False, "|", "latin-1")


@dataclasses.dataclass(frozen=True)
class Source:
    """The two files of MovieLens-100K, as bytes, and where they were found."""

    path: Path
    form: Form
    interactions: bytes
    items: bytes

    def digest(self) -> str:
        """SHA-256 of the content, 64 hex digits."""
        parts = (hashlib.sha256(part).digest() for part in (self.interactions, self.items))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def read(self) -> tuple[Interactions, Items]:
        """Parses both files.

        Raises:
          InputError: for a line that is not as MovieLens-100K has it.
        """
        return _parse_interactions(self), _parse_items(self)


def find(copy: str, downloads: Path) -> Source:
    """MovieLens-100K from a copy on disk, from an earlier download, or fetched now.

    Args:
      copy: a wheel, zip archive or folder; empty to fetch.
      downloads: folder that keeps what is fetched.

    Raises:
      InputError: where the copy is not what it should be, nothing can be fetched, or `downloads` can't be written to.
      RunError: the disk is full.
    """
    if copy:
        return _open_copy(Path(copy).expanduser())
    for name in (WHEEL_NAME, ARCHIVE_NAME):
        path = downloads / name
        if path.exists() and _checksum_matches(path):
            return _open_archive(path)
    failures = []
    for fetch in (_fetch_wheel, _fetch_archive):
        try:
            return _open_archive(_fetch_checked(fetch, downloads))
        except _FetchError as error:
            failures.append(str(error))
    raise InputError(
        f"MovieLens-100K can't be had: {'; '.join(failures)}. Fetch {WHEEL_NAME} or {ARCHIVE_NAME} by other means and "
        "pass it (or a folder with its files) with --movielens=PATH."
    )


class _FetchError(Exception):
    """One way of fetching failed; says which and why."""


def _open_copy(path: Path) -> Source:
    if not path.exists():
        raise InputError(f"--movielens={path}: no such file or folder.")
    if not path.is_dir():
        if not _checksum_matches(path):
            raise InputError(
                f"--movielens={path}: neither the wheel of {WHEEL_REQUIREMENT} (SHA-256 {WHEEL_SHA256}) nor GroupLens' "
                f"{ARCHIVE_NAME} (MD5 {ARCHIVE_MD5}); the file is damaged or another one."
            )
        return _open_archive(path)
    for folder in (path, path / "ml-100k"):
        for form in (RECBOLE, GROUPLENS):
            interactions, items = folder / form.interactions, folder / form.items
            if interactions.is_file() and items.is_file():
                return Source(interactions, form, interactions.read_bytes(), items.read_bytes())
    for name in (WHEEL_NAME, ARCHIVE_NAME):
        if (path / name).is_file():
            return _open_copy(path / name)
    raise InputError(
        f"--movielens={path}: the folder holds neither {RECBOLE.interactions} and {RECBOLE.items}, nor "
        f"{GROUPLENS.interactions} and {GROUPLENS.items}, nor {WHEEL_NAME}, nor {ARCHIVE_NAME}."
    )


def _open_archive(path: Path) -> Source:
    """Reads the members of an archive whose checksum is known to match."""
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).name: name for name in archive.namelist() if Path(name).parent.name == "ml-100k"}
        for form in (RECBOLE, GROUPLENS):
            if form.interactions in members and form.items in members:
                interactions, items = (archive.read(members[name]) for name in (form.interactions, form.items))
                return Source(path, form, interactions, items)
    raise InputError(f"{path}: holds no ml-100k folder with {RECBOLE.interactions} or {GROUPLENS.interactions}.")


def _checksum_matches(path: Path) -> bool:
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() == WHEEL_SHA256:
            return True
        stream.seek(0)
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == ARCHIVE_MD5


def _fetch_checked(fetch: Callable[[Path], Path], downloads: Path) -> Path:
    """Fetches into a scratch folder, and moves the file to its place only once its checksum is right."""
    with write_errors(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=downloads) as scratch:
            path = fetch(Path(scratch))
            if not _checksum_matches(path):
                raise _FetchError(f"{path.name} was fetched, but its checksum is wrong")
            return path.replace(downloads / path.name)


def _fetch_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={folder}", WHEEL_REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _FetchError(f"pip download {WHEEL_REQUIREMENT} failed ({error})") from error
    path = folder / WHEEL_NAME
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise _FetchError(f"pip download {WHEEL_REQUIREMENT} failed ({reason})")
    return path


def _fetch_archive(folder: Path) -> Path:
    path = folder / ARCHIVE_NAME
    try:
        with urllib.request.urlopen(ARCHIVE_URL, timeout=_URL_SECONDS) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _FetchError(f"{ARCHIVE_URL} can't be fetched ({error})") from error
    path.write_bytes(content)
    return path


def _rows(source: Source, content: bytes, name: str, delimiter: str, columns: int) -> list[list[str]]:
    """The cells of each line; every line must have at least `columns` of them."""
    rows = []
    try:
        lines = content.decode(source.form.encoding).splitlines()
    except UnicodeDecodeError:
        raise InputError(
            f"{source.path}: {name} is not {source.form.encoding.upper()}; take the file as it was."
        ) from None
    for number, line in enumerate(lines[source.form.header :], 1):
        if not line:
            continue
        cells = line.split(delimiter)
        if len(cells) < columns:
            raise InputError(
                f"{source.path}, {name}, line {number + source.form.header}: too few columns, {len(cells)} where "
                f"{columns} are needed."
            )
        rows.append(cells)
    if not rows:
        raise InputError(f"{source.path}: {name} is empty.")
    return rows


def _parse_interactions(source: Source) -> Interactions:
    name = source.form.interactions
    rows = _rows(source, source.interactions, name, "\t", 4)
    try:
        numbers = np.array([(row[0], row[1], row[3].partition(".")[0]) for row in rows]).astype(np.int64)
    except ValueError as error:
        raise InputError(f"{source.path}: {name} must hold whole numbers only ({error}).") from error
    return Interactions(source.path, _integer_ids(numbers[:, 0]), _integer_ids(numbers[:, 1]), numbers[:, 2], None)


def _integer_ids(values: np.ndarray) -> tables.Ids:
    """Ids in order of appearance."""
    encoded = pa.array(values).dictionary_encode()
    return tables.Ids(encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.cast(pa.string()), integers=True)


def _parse_items(source: Source) -> Items:
    form = source.form
    ids, titles, genres = [], [], []
    for row in _rows(source, source.items, form.items, form.delimiter, 4 if form.header else 5 + len(_GENRES)):
        if not row[0].isdecimal():
            raise InputError(f"{source.path}: {form.items} has the item id {row[0]!r}, which must be a whole number.")
        ids.append(int(row[0]))
        if form.header:
            title, year, kinds = row[1], row[2], row[3].split()
            titles.append(f"{title} ({year})" if year and not title.endswith(f"({year})") else title)
        else:
            titles.append(row[1])
            kinds = [kind for kind, flag in zip(_GENRES, row[5:], strict=False) if flag == "1"]
        genres.append(", ".join(kinds))
    return Items(source.path, list(ids), {"title": titles, "genres": genres}, ("title", "genres"))
