"""Text files of one's own, gzipped or not: their lines, and the rows of TSV, CSV and JSON Lines with the lines they
begin on."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from spectran_jax.errors import InputError

DELIMITERS = {".tsv": "\t", ".inter": "\t", ".item": "\t", ".csv": ","}
"""Of columns, by the suffix of a file."""
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
"""Of files with one JSON object a line."""
_KINDS = ("token", "token_seq", "float", "float_seq")
"""Of RecBole's columns, written behind their names."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate without its other half, as cut text leaves it in JSON; UTF-8 has none."""
_GZIP = b"\x1f\x8b"
"""What a gzipped file begins with."""
csv.field_size_limit(2**31 - 1)


class NoRows(InputError):
    """A file without a row."""


def require_file(path: Path) -> None:
    """Raises InputError unless `path` is a file with content."""
    try:
        there = path.exists()
    except OSError as error:  # a folder that can't be looked into, a name that can't be
        raise InputError(f"{path}: {error.strerror}.") from None
    if not there:
        raise InputError(f"{path}: no such file.")
    if not path.is_file():
        raise InputError(f"{path}: is not a file.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: can't be read; check its permissions.")
    if path.stat().st_size == 0:
        raise NoRows(f"{path}: is empty.")


def content_suffix(path: Path) -> str:
    """The suffix that says what the file holds: `.tsv` for both a.tsv and a.tsv.gz."""
    return Path(path.stem if is_gzip(path) else path.name).suffix.lower()


def is_gzip(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() == ".gz"


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 text file, `.gz` or not, from 1 on.

    Raises:
      InputError: for the first line that is not UTF-8, or a damaged `.gz`.
    """
    with _open(path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    if number == 1 and line.startswith(_GZIP) and not is_gzip(path):
                        raise InputError(f"{path}: is compressed by gzip; name it {path.name}.gz.") from None
                    raise InputError(
                        f"{path}, line {number}: byte {error.start + 1} is not valid UTF-8; save the file as UTF-8."
                    ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: damaged .gz file ({error}).") from error


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, with the lines on which they stand; blank lines are left out.

    Raises:
      InputError: for the first line that is no object.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # The parser knows of one line, which it calls the first.
            why = f"{error.msg}: column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"{path}, line {number}: malformed JSON ({why}); each line must be one object.") from None
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number}: each line must be one JSON object, got {type(record).__name__} "
                "(pandas: to_json(..., orient='records', lines=True))."
            )
        yield number, record


def is_id(value: Any) -> bool:
    """Whether a value of JSON may be an id: a whole number or a string."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def require_id(path: Path, number: int, name: str, value: Any) -> None:
    """Raises InputError unless the value of key `name` in a line of JSON is an id that can be written."""
    if not is_id(value) or value == "":
        whole = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise InputError(f"{path}, line {number}: {name} {value!r} must be an integer or a string, not empty{whole}.")
    if isinstance(value, str) and HALF_CHARACTER.search(value):
        raise InputError(f"{path}, line {number}: {name} {value!r} holds half a character; write it whole.")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def separated_otherwise(names: Sequence[str], path: Path) -> str:
    """A hint where the one column of a text file looks like several, separated by another character."""
    marks = {",": "commas", "\t": "tabs", ";": "';'", "|": "'|'"}
    kind = content_suffix(path)
    own = DELIMITERS.get(kind)
    if own is None or len(names) != 1:
        return ""
    found = next((words for mark, words in marks.items() if mark != own and mark in names[0]), None)
    return f" It looks separated by {found}; columns of a {kind} file are separated by {marks[own]}." if found else ""


def plain_name(name: str) -> str:
    """A column's name without the `:type` suffix that RecBole's headers carry."""
    plain, _, kind = name.partition(":")
    return (plain if kind.strip() in _KINDS else name).strip()


def has_quotes(path: Path, delimiter: str) -> bool:
    """Whether quotes enclose cells: always in CSV; in TSV, where they are text by rule, if the header has them."""
    return delimiter == "," or next((line for _, line in text_lines(path)), "").startswith('"')


def lines(path: Path, delimiter: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the other rows with the number of the line on which each begins; blank lines are left out.

    Raises:
      InputError: for a file without rows, or, at its row, a quoted cell that only the end of the file closes.
    """
    last, ended = 0, False

    def source() -> Iterator[str]:
        nonlocal last, ended
        for number, line in text_lines(path):
            last = number
            yield line
        ended = True

    quoting = csv.QUOTE_MINIMAL if has_quotes(path, delimiter) else csv.QUOTE_NONE
    reader = csv.reader(source(), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]

    def rows() -> Iterator[tuple[int, list[str]]]:
        begin = last + 1
        try:
            for row in reader:
                if ended:  # other rows come before the reader asks for what is behind their last line
                    raise InputError(
                        f'{path}, line {begin}: a cell opens with a quote (") that nothing closes; close it, or leave '
                        "it out."
                    )
                if row:
                    yield begin, row
                begin = last + 1
        except csv.Error as error:
            raise InputError(f"{path}, line {last}: can't be read ({error}).") from error

    rest = rows()
    header = next(rest, None)
    if header is None:
        raise NoRows(f"{path}: is empty.")
    return header[1], rest


def line_numbers(path: Path) -> list[int] | None:
    """The line on which each row of a text file begins; None for a file without lines."""
    delimiter = DELIMITERS.get(content_suffix(path))
    return None if delimiter is None else [number for number, _ in lines(path, delimiter)[1]]
