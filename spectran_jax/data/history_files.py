"""Histories of one's own to recommend for: users and items that need not be those trained on, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectran_jax.data import files, tables
from spectran_jax.data.interactions import Dataset, Histories
from spectran_jax.errors import InputError

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_histories(path: Path, dataset: Dataset, unknown_items: str) -> tuple[list[Any], Histories]:
    """Original user ids, and their items as dense ids, oldest first.

    JSONL holds `{"user_id": ..., "items": [...]}` a line; TSV, CSV and Parquet hold interactions, whose timestamps,
    where there are any, come with the histories.

    Args:
      path: the file.
      dataset: whose items the histories name.
      unknown_items: "drop" leaves out items that the data set lacks, "error" refuses them.

    Raises:
      InputError: naming the file and the line, user or item.
    """
    if tables.content_suffix(path) in _JSON_SUFFIXES:
        users, rows = _read_jsonl(path)
        times = None
    else:
        users, rows, times = files.histories_by_user(files.read_interactions(path))
    if not rows:
        raise InputError(f"{path} holds no history.")
    dense = [dataset.dense_items(row) for row in rows]
    unknown = [
        item for row, ids in zip(rows, dense, strict=True) for item, known in zip(row, ids, strict=True) if known < 0
    ]
    if unknown and unknown_items == "error":
        names = ", ".join(repr(item) for item in list(dict.fromkeys(unknown))[:3])
        raise InputError(
            f"{path}: {len(unknown)} entries name items that the run does not know ({names}); leave them out, or "
            "pass over them with --unknown_items=drop."
        )
    kept = [ids[ids >= 0].tolist() for ids in dense]
    empty = next((user for user, ids in zip(users, kept, strict=True) if not ids), None)
    if empty is not None:
        raise InputError(f"{path}: no item of user {empty!r} is known to the run; leave this user out.")
    if times is not None:
        times = [
            [time for time, known in zip(row, ids >= 0, strict=True) if known]
            for row, ids in zip(times, dense, strict=True)
        ]
    return users, Histories.from_lists(kept, times)


def _read_jsonl(path: Path) -> tuple[list[Any], list[list[Any]]]:
    tables.require_file(path)
    users, rows = [], []
    for number, line in tables.text_lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            user, items = entry["user_id"], entry["items"]
        except (ValueError, KeyError, TypeError):
            user = items = None
        if not isinstance(items, list) or not items or not all(isinstance(item, str | int | float) for item in items):
            raise InputError(
                f'{path}, line {number}: write {{"user_id": ..., "items": [oldest, ..., newest]}} with an item or more.'
            )
        users.append(user)
        rows.append(items)
    return users, rows
