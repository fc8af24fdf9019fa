"""Histories of one's own to recommend for: users and items that need not be those trained on, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectran_jax.data import files, text_files
from spectran_jax.data.interactions import Dataset, Histories
from spectran_jax.data.spelling import listed, remedy
from spectran_jax.errors import InputError
from spectran_jax.report.words import count


def read_histories(
    path: Path, dataset: Dataset, unknown_items: str, duplicates: str = "keep"
) -> tuple[list[Any], Histories, int, int]:
    """Original user ids, their items as dense ids, oldest first, and how many users and entries were left out.

    JSONL holds `{"user_id": ..., "items": [...]}` a line; TSV, CSV and Parquet hold interactions, whose timestamps,
    where there are any, come with the histories.

    Args:
      path: the file.
      dataset: whose items the histories name.
      unknown_items: "drop" leaves out items that the data set lacks, and users who have no other, "error" refuses them.
      duplicates: "drop" takes interactions of the same user, item, time and position once; the lists of JSONL have no
        times, and stay as they are.

    Raises:
      InputError: naming the file and the line, user or item.
    """
    if text_files.content_suffix(path) in text_files.JSON_SUFFIXES:
        users, rows = _read_jsonl(path)
        times = None
    else:
        users, rows, times = files.histories_by_user(files.read_interactions(path), duplicates)
    if not rows:
        raise InputError(f"{path} holds no history.")
    dense = [dataset.dense_items(row) for row in rows]
    unknown = [
        item for row, ids in zip(rows, dense, strict=True) for item, known in zip(row, ids, strict=True) if known < 0
    ]
    if unknown and unknown_items == "error":
        different = list(dict.fromkeys(unknown))
        names = ", ".join(map(repr, different[:3])) + (", ..." if len(different) > 3 else "")
        otherwise = "leave out what it does not know, or pass over it with --unknown_items=drop"
        todo = remedy(list(map(str, different)), dataset.item_index, otherwise)
        raise InputError(f"{path}: names {count(len(different), 'item')} that the run does not know ({names}); {todo}.")
    here = [index for index, ids in enumerate(dense) if (ids >= 0).any()]
    if not here:
        todo = remedy(list(map(str, dict.fromkeys(unknown))), dataset.item_index, "take the run of these items")
        raise InputError(f"{path}: the run knows no item of these histories; {todo}.")
    kept = [dense[index][dense[index] >= 0].tolist() for index in here]
    if times is not None:
        times = [[time for time, known in zip(times[index], dense[index] >= 0, strict=True) if known] for index in here]
    return [users[index] for index in here], Histories.from_lists(kept, times), len(users) - len(here), len(unknown)


def _is_item(value: Any) -> bool:
    """Whether a value of JSON may stand for an item: 7.0 may, as some write whole numbers so."""
    return text_files.is_id(value) or (isinstance(value, float) and value.is_integer())


def _fault(record: dict[str, Any]) -> str:
    """What is wrong with an object that is no history; "" for one."""
    for name in ("user_id", "items"):
        if name not in record:
            return f"{name} is missing (found: {listed(record)})"
    items = record["items"]
    if not isinstance(items, list):
        kind = "a string" if isinstance(items, str) else "an object" if isinstance(items, dict) else json.dumps(items)
        return f"items is {kind}, not a list"
    for place, item in enumerate(items, 1):
        if not _is_item(item):
            return f"entry {place} of items is neither an integer nor a string"
    return "" if items else "items is empty"


def _read_jsonl(path: Path) -> tuple[list[Any], list[list[Any]]]:
    text_files.require_file(path)
    users: list[Any] = []
    rows: list[list[Any]] = []
    lines: dict[Any, int] = {}
    for number, record in text_files.json_objects(path):
        user = record.get("user_id")
        if not (user is None or text_files.is_id(user)) or text_files.HALF_CHARACTER.search(str(user)):
            raise InputError(f"{path}, line {number}: user_id must be an integer or a string of whole characters.")
        if fault := _fault(record):
            raise InputError(
                f'{path}, line {number}: {fault}; write {{"user_id": ..., "items": [oldest, ..., newest]}} with an '
                "item or more."
            )
        if user is not None and lines.setdefault((type(user), user), number) != number:
            raise InputError(
                f"{path}, line {number}: user {user!r} stands in line {lines[type(user), user]}, too; one line a user."
            )
        users.append(user)
        rows.append(record["items"])
    return users, rows
