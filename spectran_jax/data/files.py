"""The user's own data: a file of interactions and a file of items, read into columns and checked."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from spectran_jax.data import table_files, tables, text_files
from spectran_jax.data.interactions import OriginalId
from spectran_jax.data.spelling import columns_found, listed
from spectran_jax.errors import InputError
from spectran_jax.report.words import count

ORDER_COLUMNS = ("timestamp", "position")
_MANY_KEYS = 1000
"""Different keys of a JSON Lines file of items beyond which it must be told from one whose keys are values."""
_RARE = 0.01
"""Share of the items that have a key, on average, below which keys are values."""


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """Who interacted with what, in file order."""

    path: Path
    users: tables.Ids
    items: tables.Ids
    timestamps: Int[np.ndarray, "n"] | None
    """int64 Unix seconds."""
    positions: Int[np.ndarray, "n"] | None
    """int64; where in the history of its user a row stands, 0 the oldest; breaks ties in time."""
    nanoseconds: Int[np.ndarray, "n"] | None = None
    """int64; what is left of each time after its whole seconds; None where nothing is."""

    def order(self) -> Int[np.ndarray, "n"]:
        """The rows user by user, each from the oldest on: by time, then position, then file order; int64."""
        # The last key of lexsort counts first, and equal keys keep file order.
        return np.lexsort([*self._age(), self.users.codes])

    def again(self) -> Bool[np.ndarray, "n"]:
        """Whether a row says what one before it in the file said: the same user, item, time and position."""
        keys = [self.items.codes, *self._age(), self.users.codes]
        order = np.lexsort(keys)  # which keeps file order among equals
        same = np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0)
        again = np.zeros(len(order), bool)
        again[order[1:]] = same
        return again

    def _age(self) -> list[Int[np.ndarray, "n"]]:
        return [key for key in (self.positions, self.nanoseconds, self.timestamps) if key is not None]


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """The catalogue, in file order."""

    path: Path
    ids: list[OriginalId]
    columns: dict[str, list[str]]
    """The other columns as text, "" where an item has no entry."""
    text_columns: tuple[str, ...]
    """Those of them that hold more than numbers."""


def read_interactions(path: Path) -> Interactions:
    """Reads TSV, CSV, JSONL or Parquet with `user_id`, `item_id` and `timestamp` or `position` (both are fine).

    Raises:
      InputError: for bad input; names the file and, where there is one, the line.
    """
    wanted = ("user_id", "item_id", *ORDER_COLUMNS)
    table = table_files.read_table(path, required=("user_id", "item_id"), wanted=wanted)
    if not any(name in table.columns for name in ORDER_COLUMNS):
        found = columns_found(ORDER_COLUMNS, table_files.column_names(path), wanted)
        raise InputError(f"{path}: no column timestamp or position to order by; {found}")
    seconds, nanoseconds = table.times("timestamp") if "timestamp" in table.columns else (None, None)
    positions = table.whole_numbers("position") if "position" in table.columns else None
    return Interactions(path, table.ids("user_id"), table.ids("item_id"), seconds, positions, nanoseconds)


def histories_by_user(
    interactions: Interactions, duplicates: str = "keep"
) -> tuple[list[OriginalId], list[list[OriginalId]], list[list[int]] | None]:
    """Original ids of the users, by first appearance, of the items of each, oldest first, and their timestamps.

    Args:
      interactions: who interacted with what.
      duplicates: "drop" takes interactions of the same user, item, time and position once, "keep" as often as they are.
    """
    order = interactions.order()
    if duplicates == "drop":
        order = order[~interactions.again()[order]]
    items, users = interactions.items.originals(), interactions.users.originals()
    ends = np.cumsum(np.bincount(interactions.users.codes[order], minlength=len(users)))[:-1]
    rows = [[items[code] for code in part.tolist()] for part in np.split(interactions.items.codes[order], ends)]
    here = [index for index, row in enumerate(rows) if row]
    times = None
    if interactions.timestamps is not None:
        split = np.split(interactions.timestamps[order], ends)
        times = [split[index].tolist() for index in here]
    return [users[index] for index in here], [rows[index] for index in here], times


def read_items(path: Path) -> Items:
    """Reads JSONL, CSV, TSV or Parquet with `item_id` and any other columns.

    Lists of strings (categories) are joined by commas. A column counts as text unless all its entries are
    numbers, lists of numbers, times or bytes.

    Raises:
      InputError: for bad input, duplicate ids among it; names the file and, where there is one, the line.
    """
    if text_files.content_suffix(path) in text_files.JSON_SUFFIXES:
        ids, raw, lines = _read_jsonl(path)
    else:
        ids, raw = _read_item_table(path)
        lines = None
    _refuse_duplicates(path, ids, lines, list(raw))
    try:
        columns = {name: [_as_text(value) for value in values] for name, values in raw.items()}
        textual = tuple(name for name, values in raw.items() if not all(_is_numeric(value) for value in values))
    except RecursionError:
        raise InputError(f"{path}: an entry holds lists within lists hundreds of times over; write it flat.") from None
    return Items(path, ids, columns, textual)


def _read_item_table(path: Path) -> tuple[list[OriginalId], dict[str, list[Any]]]:
    table = table_files.read_table(path, required=("item_id",))
    encoded = table.ids("item_id")
    originals = encoded.originals()
    columns = {name: table.entries(name) for name in table.columns if name != "item_id"}
    return [originals[code] for code in encoded.codes], columns


def _read_jsonl(path: Path) -> tuple[list[OriginalId], dict[str, list[Any]], list[int]]:
    text_files.require_file(path)
    ids: list[Any] = []
    lines: list[int] = []
    columns: dict[str, list[Any]] = {}
    entries = known = 0
    for number, record in text_files.json_objects(path):
        if "item_id" not in record:
            raise InputError(f"{path}, line {number}: no item_id; {columns_found(['item_id'], record)}")
        item = record.pop("item_id")
        text_files.require_id(path, number, "item_id", item)
        for name, value in record.items():
            column = columns.setdefault(name, [])
            column.extend([None] * (len(ids) - len(column)))
            column.append(value)
        entries += len(record)
        if len(columns) > max(known, _MANY_KEYS):
            known = len(columns)
            if entries < _RARE * known * len(ids):  # a column each would take thousands of times the file's size
                raise InputError(
                    f"{path}, line {number}: this is the {known:,}th different key, and most items have few of them "
                    f"({entries / len(ids):.1f} on average). Keys are columns; write what differs from item to item as "
                    'values, such as {"item_id": ..., "attributes": ["...", "..."]}.'
                )
        ids.append(item)
        lines.append(number)
    if not ids:
        raise InputError(f"{path}: has no items.")
    for column in columns.values():
        column.extend([None] * (len(ids) - len(column)))
    return ids if all(isinstance(item, int) for item in ids) else [str(item) for item in ids], columns, lines


def _refuse_duplicates(path: Path, ids: list[OriginalId], lines: list[int] | None, others: list[str]) -> None:
    written = [str(item) for item in ids]
    if len(set(written)) == len(written):
        return
    if "user_id" in others:
        raise InputError(
            f"{path}: these seem to be interactions, by their columns item_id, {listed(others)}; here a file of items "
            "is needed, one row for each."
        )
    first: dict[str, int] = {}
    twice: dict[str, tuple[int, int]] = {}
    for row, item in enumerate(written):
        if item in first:
            twice.setdefault(item, (first[item], row))
        else:
            first[item] = row
    item, (one, other) = next(iter(twice.items()))
    lines = text_files.line_numbers(path) if lines is None else lines
    where = f"rows {one + 1} and {other + 1}" if lines is None else f"lines {lines[one]} and {lines[other]}"
    raise InputError(
        f"{path}: {count(len(twice), 'duplicate item id')}, the first {item!r} in {where}; each item must have one row."
    )


def _as_text(value: Any) -> str:
    """One entry as text: nothing and NaN are "", lists are joined, objects are written as JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        value = str(value)  # no longer one of a kind
        return text_files.HALF_CHARACTER.sub("\ufffd", value.strip())
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(_as_text, value)))
    if isinstance(value, Mapping):
        # Parquet has dates and decimals in objects too.
        return text_files.HALF_CHARACTER.sub("\ufffd", json.dumps(value, ensure_ascii=False, default=str))
    return str(value)


def _is_numeric(value: Any) -> bool:
    """Whether an entry is no text: a number, one in writing, a list of numbers, a time, bytes, or nothing."""
    if value is None or isinstance(value, int | float | decimal.Decimal | datetime.date | datetime.time | bytes):
        return True
    if isinstance(value, list | tuple):
        return all(not isinstance(each, str) and _is_numeric(each) for each in value)
    if not isinstance(value, str):
        return False
    if isinstance(value, tables.Written):
        return True
    try:
        float(value or 0)
    except ValueError:
        return False
    return True
