"""The steps of a reduction as Beam transforms: rows of files, of known items, of a k-core, and histories.

What is passed on are rows and small facts, as collections like any other: Beam's own counters need not be exact, and
not every runner has them. Values of a key are read one by one, twice where need be, and never held: a popular item has
more rows than a worker has memory.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from spectran_jax.data import files
from spectran_jax.data.tables import Ids
from spectran_jax.data.text_files import NoRows
from spectran_jax.errors import InputError

ROW_BITS = 32
"""The order of all rows: the number of a row's file, then this many bits for its number in the file."""
IDS = ("user_id", "item_id")
ROW_SCHEMA = pa.schema(
    [(name, pa.string()) for name in IDS]
    + [(name, pa.int64()) for name in (*files.ORDER_COLUMNS, "nanosecond", "order")]
)
ID_TYPES = ("int64", "uint64", "string")
"""Of PyArrow, the first that holds all ids being the one they are written in."""
Row = dict[str, Any]
"""With the columns of `ROW_SCHEMA`; ids as written, None for what the source lacks."""


def read_rows(pipeline: Any, sources: list[str]) -> tuple[Any, Any]:
    """The rows of all files, and a summary of each: {path, error} or {path, the columns it has, types for its ids}."""
    numbered = pipeline | "interactions" >> beam.Create(list(enumerate(sources))) | beam.Reshuffle()
    read = numbered | beam.FlatMap(_rows_of).with_outputs("summary", main="rows")
    return read.rows, read.summary


def _rows_of(numbered: tuple[int, str]) -> Iterator[Any]:
    number, path = numbered
    try:
        with local_copy(path) as local:
            table = files.read_interactions(local)
    except NoRows:
        yield _summary(path)
        return
    except InputError as error:
        yield _summary(path, error=str(error))
        return
    order = dict(zip(files.ORDER_COLUMNS, (table.timestamps, table.positions), strict=True))
    age = {**order, "nanosecond": table.nanoseconds}
    types = dict(zip(IDS, map(_types, (table.users, table.items)), strict=True))
    yield _summary(path, columns=[name for name, column in order.items() if column is not None], types=types)
    users, items = table.users.values.to_pylist(), table.items.values.to_pylist()
    for row, (user, item) in enumerate(zip(table.users.codes.tolist(), table.items.codes.tolist(), strict=True)):
        at = {name: None if column is None else int(column[row]) for name, column in age.items()}
        yield {"user_id": users[user], "item_id": items[item], **at, "order": (number << ROW_BITS) + row}


def _types(ids: Ids) -> list[str]:
    """Those of `ID_TYPES` that can hold the ids."""
    if not ids.integers:
        return ["string"]
    numbers = [int(value) for value in ids.originals()]
    low, high = min(numbers), max(numbers)
    return [name for name in ID_TYPES[:2] if np.iinfo(name).min <= low and high <= np.iinfo(name).max] + ["string"]


def read_items(pipeline: Any, paths: list[str]) -> tuple[Any, Any]:
    """The item ids of the catalogue, as written, and a summary of each file that can't be read."""
    spread = pipeline | "items" >> beam.Create(paths) | "spread items" >> beam.Reshuffle()
    read = spread | beam.FlatMap(_items_of).with_outputs("summary", main="items")
    return read["items"], read.summary


def _items_of(path: str) -> Iterator[Any]:
    try:
        with local_copy(path) as local:
            yield from map(str, files.read_items(local).ids)
    except NoRows:
        return
    except InputError as error:
        yield _summary(path, error=str(error))


def _summary(path: str, **found: Any) -> Any:
    return beam.pvalue.TaggedOutput("summary", {"path": path, "error": None, **found})


def known_rows(rows: Any, items: Any) -> tuple[Any, Any]:
    """The rows of items that are listed once, and facts of the others:

    ["unknown", [[order, id], ...]], the three that come first, ["repeated", [[id, times]]], the first of them, and the
    counts ["unknown_interactions", n] and ["unknown_ids", n].
    """
    listed = items | "listed" >> beam.Map(lambda item: (item, None))
    together = (rows | _by("item_id"), listed) | "rows and items" >> beam.Flatten() | "by item" >> beam.GroupByKey()
    checked = together | beam.FlatMap(_known).with_outputs("unknown", "repeated", "counts", main="rows")
    first = checked.unknown | beam.combiners.Top.Smallest(3) | beam.Map(lambda found: ("unknown", found))
    twice = checked.repeated | "twice" >> beam.combiners.Top.Smallest(1) | beam.Map(lambda found: ("repeated", found))
    facts = (first, twice, checked.counts | beam.CombinePerKey(sum)) | "facts" >> beam.Flatten()
    return checked.rows, facts


def _known(grouped: tuple[str, Iterable[Row | None]]) -> Iterator[Any]:
    item, found = grouped
    listed = sum(row is None for row in found)
    if listed == 1:
        yield from (row for row in found if row is not None)
    elif listed:
        yield beam.pvalue.TaggedOutput("repeated", (item, listed))
    else:
        count = first = 0
        for row in found:
            assert row is not None
            first = min(first, row["order"]) if count else row["order"]
            count += 1
        yield beam.pvalue.TaggedOutput("unknown", (first, item))
        yield beam.pvalue.TaggedOutput("counts", ("unknown_interactions", count))
        yield beam.pvalue.TaggedOutput("counts", ("unknown_ids", 1))


def distinct_rows(rows: Any) -> tuple[Any, Any]:
    """The rows, of those of the same user, item, time and position only the first; and ["duplicates", n]."""
    said = rows | "by all it says" >> beam.Map(lambda row: (json.dumps([row["user_id"], *_said(row)]), row))
    kept = said | "group same" >> beam.GroupByKey() | beam.FlatMap(_first).with_outputs("counts", main="rows")
    return kept.rows, kept.counts | "duplicates" >> beam.CombinePerKey(sum)


def _first(grouped: tuple[str, Iterable[Row]]) -> Iterator[Any]:
    _, rows = grouped
    again = sum(1 for _ in rows) - 1
    yield min(rows, key=_age)
    if again:
        yield beam.pvalue.TaggedOutput("counts", ("duplicates", again))


def core_round(rows: Any, k: int) -> tuple[Any, Any]:
    """The rows without those of users, and then of items, that have fewer than k; and ["dropped", n]."""
    counts = []
    for column in IDS:
        grouped = rows | f"by {column}" >> _by(column) | f"group {column}" >> beam.GroupByKey()
        kept = grouped | f"keep {column}" >> beam.FlatMap(_at_least, k).with_outputs("counts", main="rows")
        rows = kept.rows
        counts.append(kept.counts)
    return rows, counts | beam.Flatten() | beam.CombinePerKey(sum)


def _at_least(grouped: tuple[str, Iterable[Row]], k: int) -> Iterator[Any]:
    _, rows = grouped
    few = sum(1 for _ in itertools.islice(rows, k))
    if few == k:
        yield from rows
    else:
        yield beam.pvalue.TaggedOutput("counts", ("dropped", few))


def histories(rows: Any, newest: int, integers: dict[str, bool]) -> tuple[Any, Any]:
    """The rows as they are written, each with its position in the history of its user, and counts:

    ["users", n], ["interactions", n], ["older", n], those before the `newest` of a user, ["tied", n], those that
    nothing but the order of files and rows puts after the one before, and ["again", n], those that say what another
    said.
    """
    made = (
        rows
        | _by("user_id")
        | beam.GroupByKey()
        | beam.FlatMap(_history, newest, integers).with_outputs("counts", main="rows")
    )
    return made.rows, made.counts | beam.CombinePerKey(sum)


def _history(grouped: tuple[str, Iterable[Row]], newest: int, integers: dict[str, bool]) -> Iterator[Any]:
    _, rows = grouped
    total = sum(1 for _ in rows)
    kept = heapq.nlargest(newest or total, rows, key=_age)[::-1]
    tied = sum(_age(one)[:-1] == _age(other)[:-1] for one, other in itertools.pairwise(kept))
    again = len(kept) - len(set(map(_said, kept)))
    counts = {"users": 1, "interactions": len(kept), "older": total - len(kept), "tied": tied, "again": again}
    for name, count in counts.items():
        yield beam.pvalue.TaggedOutput("counts", (name, count))
    for position, row in enumerate(kept):
        ids = {name: int(row[name]) if whole else row[name] for name, whole in integers.items()}
        time = {} if row["timestamp"] is None else {"timestamp": row["timestamp"]}
        yield {**ids, **time, "position": position}


def _age(row: Row) -> tuple[int, int, int, int]:
    return row["timestamp"] or 0, row["nanosecond"] or 0, row["position"] or 0, row["order"]


def _said(row: Row) -> tuple[str, int, int, int]:
    """What a row says of its user."""
    return row["item_id"], *_age(row)[:-1]


def _by(column: str) -> Any:
    return beam.Map(lambda row: (row[column], row))


def write_facts(facts: Any, name: str) -> None:
    """Writes facts as lines of JSON, in files that begin with `name`."""
    lines = facts | f"lines of {Path(name).name}" >> beam.Map(json.dumps)
    lines | f"write {Path(name).name}" >> beam.io.WriteToText(name)


def read_facts(name: str) -> list[Any]:
    """What `write_facts` wrote."""
    facts = []
    for match in FileSystems.match([f"{name}-*"]):
        for file in match.metadata_list:
            with FileSystems.open(file.path) as stream:
                facts += [json.loads(line) for line in stream.read().decode().splitlines()]
    return facts


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file of any file system as one of this machine; messages name the source."""
    if Path(path).is_file():
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        with FileSystems.open(path, compression_type="uncompressed") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        try:
            yield copy
        except InputError as error:
            raise type(error)(str(error).replace(str(copy), path)) from error
