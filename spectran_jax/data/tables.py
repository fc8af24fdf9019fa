"""Typed columns of a table: ids, whole numbers and times, and the row to blame where an entry is none of these."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from spectran_jax.data import text_files
from spectran_jax.data.interactions import OriginalId
from spectran_jax.errors import InputError, first_line

_DATED = re.compile(r"\s*[0-9]{4}-[0-9]{2}-[0-9]{2}")
"""How ISO 8601 times begin."""
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_LARGEST = 2.0**62
_EMPTY = "is empty; every row needs one"
_PARTS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Of a second, by the units of Arrow."""
_LATEST_SECONDS = 10**11
"""Of the year 5138; in milliseconds it is 1973."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ids:
    """A column of ids: the different ones in order of appearance, and for each row which one it is."""

    codes: Int[np.ndarray, "n"]
    """int64 index into `values`."""
    values: pa.Array
    """The different ids in written form, strings."""
    integers: bool
    """The source column holds integers."""

    def originals(self) -> list[OriginalId]:
        """The different ids as the source has them."""
        values: list[OriginalId] = self.values.to_pylist()
        return [int(value) for value in values] if self.integers else values


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file, by name without the `:type` suffix that RecBole's headers carry."""

    path: Path
    columns: dict[str, pa.ChunkedArray]
    delimiter: str | None
    """None for Parquet and JSON, whose columns are typed; else all columns are strings."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def ids(self, name: str) -> Ids:
        """A column of ids; a text file's ids count as integers where all are written as such (7, not 007).

        Raises:
          InputError: for an empty id, or a column of Parquet or JSON that holds neither integers nor strings.
        """
        column = self.columns[name]
        kind = _value_type(column)
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            told = ""
            if pa.types.is_floating(kind):
                # As pandas makes of whole numbers where a row has none.
                numbers = column.cast(kind)
                if numbers.null_count or pc.any(pc.is_nan(numbers)).as_py():
                    self.blame(name, lambda cell: cell not in ("", "nan"), _EMPTY)
                if pc.all(pc.equal(pc.floor(numbers), numbers)).as_py():
                    told = "; write whole numbers without .0 (pandas: .astype('int64'))"
            raise InputError(f"{self.path}: column {name!r} has type {kind}; ids must be integers or strings{told}.")
        if self.delimiter is None:
            # The categories of a Parquet file need not all occur, and each row group may have its own.
            column = column.cast(kind).dictionary_encode()
        encoded = column.unify_dictionaries().combine_chunks()
        values = pc.cast(encoded.dictionary, pa.string())
        if encoded.null_count or pc.any(pc.equal(values, "")).as_py():
            self.blame(name, lambda cell: cell != "", _EMPTY)
        integers = pa.types.is_integer(kind) or (self.delimiter is not None and _written_as_integers(values))
        return Ids(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), values, integers)

    def whole_numbers(self, name: str) -> Int[np.ndarray, "n"]:
        """A column of whole numbers as int64, also where they are written as 3.0.

        Raises:
          InputError: for the first entry that is no number or has a fraction, with its line.
        """
        whole, rest = self._numbers(name, "number", "give whole numbers")
        if rest is not None and rest.any():
            self.blame(name, lambda cell: _is_number(cell) and float(cell).is_integer(), "is not a whole number")
        return whole

    def times(self, name: str) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"] | None]:
        """A column of Unix seconds, of times in ISO 8601, or of Parquet's times and dates, as int64 seconds and int64
        nanoseconds after them.

        The latter are None where all times are whole seconds. Written times without a zone are UTC.

        Raises:
          InputError: for the first entry that is no time, or too large a number, with its line.
        """
        if _is_dated(self.columns[name]):
            return dataclasses.replace(self, columns={name: self._dates(name)}).times(name)
        seconds, nanoseconds = self._numbers(name, "time", "give Unix seconds, or ISO 8601 like 2026-01-31T12:00:00")
        if nanoseconds is not None and not nanoseconds.any():
            nanoseconds = None
        if not pa.types.is_temporal(_value_type(self.columns[name])):
            far = (seconds > _LATEST_SECONDS) | (seconds < -_LATEST_SECONDS)
            if far.any():
                late = "looks like milliseconds or a written date; times are Unix seconds"
                self.blame(name, lambda cell: abs(float(cell)) <= _LATEST_SECONDS, late)
            if nanoseconds is None and _are_days(seconds):
                day = "is a date without dashes, as all of this column; write 2026-01-31, or Unix seconds"
                self.blame(name, lambda _: False, day)
        return seconds, nanoseconds

    def _dates(self, name: str) -> pa.ChunkedArray:
        """A column of ISO 8601 times as Arrow's."""
        column = pc.utf8_trim_whitespace(self.columns[name].cast(pa.string()))
        for unit in ("ns", "us"):  # nanoseconds end in 2262
            for zone in (None, "UTC"):
                try:
                    return column.cast(pa.timestamp(unit, zone))
                except pa.ArrowInvalid:
                    continue
        zoned = _zone_read(column[0].as_py())
        self.blame(name, lambda cell: _zone_read(cell) == zoned and zoned is not None, _why_no_date)

    def _numbers(self, name: str, kind: str, right: str) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"] | None]:
        """A column of numbers, of times in seconds: the whole part, rounded down, and the rest in 1e-9, both int64; no
        rest where the column's type has none. For a message, `kind` is what an entry must be, `right` how to give it.
        """
        column = self.columns[name].cast(_value_type(self.columns[name]))
        parts = 1
        try:
            if pa.types.is_boolean(column.type):
                raise pa.ArrowInvalid("boolean")  # which a cast would take for 0 and 1
            if pa.types.is_timestamp(column.type):
                parts = _PARTS[column.type.unit]
                column = column.cast(pa.int64())
            elif pa.types.is_temporal(column.type):
                column = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column = pc.utf8_trim_whitespace(column)
                if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
                    raise pa.ArrowInvalid("hexadecimal")  # which a cast would read
            try:
                numbers = column.cast(pa.int64())
            except pa.ArrowInvalid:
                numbers = column.cast(pa.float64())
            if numbers.null_count:
                self.blame(name, lambda cell: cell != "", _EMPTY)
            values = numbers.to_numpy()
            if values.dtype == np.int64:
                if parts == 1:
                    return values, None
                whole, rest = np.divmod(values, parts)
                return whole, rest * (_PARTS["ns"] // parts)
            if not np.all(np.abs(values) < _LARGEST):
                raise pa.ArrowInvalid("not finite")
            whole = np.floor(values)
            rest = np.minimum(np.rint((values - whole) * _PARTS["ns"]), _PARTS["ns"] - 1)
            return whole.astype(np.int64), rest.astype(np.int64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self.blame(name, _is_number, lambda cell: _why_no_number(cell, kind, right))

    def entries(self, name: str) -> list[Any]:
        """The entries of a column as Python has them, None where there is none; times as `Written`.

        Python has no times as fine, as far or of such zones as Arrow's.

        Raises:
          InputError: for a list or an object that holds such a time.
        """
        column = self.columns[name]
        kind = _value_type(column)
        if not pa.types.is_temporal(kind):
            try:
                return column.to_pylist()
            except (ValueError, OverflowError, LookupError) as error:
                raise InputError(
                    f"{self.path}: column {name!r} holds a time within {kind} that can't be read "
                    f"({first_line(error, 200)}); write it as text, or leave the column out."
                ) from None
        plain = column.cast(kind)
        try:
            written = plain.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            written = plain.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.string())
        return [None if entry is None else Written(entry) for entry in written.to_pylist()]

    def blame(self, name: str, is_good: Callable[[str], bool], complaint: str | Callable[[str], str]) -> NoReturn:
        """Raises the error for the first entry of column `name` that is not `is_good`, a test of its written form.

        Args:
          name: of the column.
          is_good: whether an entry has no fault.
          complaint: what is said of one that has.
        """
        say = (lambda cell: complaint) if isinstance(complaint, str) else complaint
        where, cells = "line", self._lines_of(name)
        if cells is None:
            where, cells = "row", enumerate(self.entries(name), 1)
        for number, entry in cells:
            cell = "" if entry is None else str(entry)
            if not is_good(cell):
                shown = f" {cell!r}" if cell else ""
                told = say(cell) if cell.strip() else _EMPTY
                raise InputError(f"{self.path}, {where} {number}: {name}{shown} {told}.")
        raise InputError(f"{self.path}: an entry of column {name!r} {say('')}.")

    def _lines_of(self, name: str) -> Iterator[tuple[int, Any]] | None:
        """The entries of a column as the file has them, with their lines; None for a file without lines."""
        if self.delimiter is not None:
            names, lines = text_files.lines(self.path, self.delimiter)
            at = [text_files.plain_name(column) for column in names].index(name)
            return ((number, row[at]) for number, row in lines if at < len(row))
        if text_files.content_suffix(self.path) in text_files.JSON_SUFFIXES:
            return ((number, record.get(name)) for number, record in text_files.json_objects(self.path))
        return None


class Written(str):
    """A time, a date or a duration as it is written."""


def _value_type(column: pa.ChunkedArray) -> pa.DataType:
    """The type of the entries, be they categories or not."""
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _is_dated(column: pa.ChunkedArray) -> bool:
    """Whether text begins, in its first entry, as a date does."""
    kind = _value_type(column)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or not len(column):
        return False
    return _DATED.match(column[0].as_py() or "") is not None


def _are_days(numbers: Int[np.ndarray, "n"]) -> bool:
    """Whether all numbers read as days of 1990 to 2100, like 20260131.

    As Unix seconds they would all lie between 19 August and 1 September 1970: the only real times that can clash.
    """
    if not len(numbers) or numbers.min() < 19900101 or numbers.max() > 21001231:
        return False
    month, day = numbers // 100 % 100, numbers % 100
    if not np.all((month >= 1) & (month <= 12)):
        return False
    start = ((numbers // 10000 - 1970) * 12 + month - 1).astype("datetime64[M]")
    length = (start + 1).astype("datetime64[D]") - start.astype("datetime64[D]")
    return bool(np.all((day >= 1) & (day <= length.astype(np.int64))))


def _has_zone(cell: str) -> bool | None:
    """Whether a time in ISO 8601 says its zone; None for what is no such time."""
    try:
        return datetime.datetime.fromisoformat(cell.strip()).tzinfo is not None
    except ValueError:
        return None


def _zone_read(cell: str) -> bool | None:
    """The same of a time that Arrow reads: it knows fewer ways to write one than Python."""
    zoned = _has_zone(cell)
    try:
        pa.array([cell.strip()]).cast(pa.timestamp("us", "UTC" if zoned else None))
    except pa.ArrowInvalid:
        return None
    return zoned


def _why_no_date(cell: str) -> str:
    if _is_number(cell):
        return "is a number in a column of written times; the two can't be mixed"
    zoned = _zone_read(cell)
    if zoned is None:
        return "is no time like 2026-01-31T12:00:00, with a zone (Z, +02:00) on all of them or none"
    unlike = "a zone, and those before it have none" if zoned else "no zone, and those before it have one"
    return f"has {unlike}; write a zone (Z, +02:00) on all of them or none"


def _why_no_number(cell: str, kind: str, right: str) -> str:
    if _has_zone(cell) is not None:
        if kind == "time" and _DATED.match(cell):
            return "is a written time in a column of numbers; the two can't be mixed"
        return f"is a date or time in another form; {right}"
    return f"is {'too large' if _NUMBER.fullmatch(cell) else f'no {kind}'}; {right}"


def _written_as_integers(values: pa.Array) -> bool:
    try:
        numbers = pc.cast(values, pa.int64())
    except pa.ArrowInvalid:
        return False
    return bool(pc.all(pc.equal(pc.cast(numbers, pa.string()), values)).as_py())


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and abs(float(cell)) < _LARGEST
