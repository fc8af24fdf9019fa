"""From checked columns to what is stored: filters, dense ids, histories in order of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from spectran_jax.data.entries import Entries
from spectran_jax.data.files import Interactions, Items
from spectran_jax.data.interactions import Dataset, Histories, OriginalId
from spectran_jax.data.spelling import listed, remedy
from spectran_jax.errors import InputError, nearest
from spectran_jax.report import words


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """A data set before the choice of text columns: what the builders write and read back."""

    user_ids: Sequence[OriginalId]
    item_ids: Sequence[OriginalId]
    histories: Histories
    items_row: Int[np.ndarray, "N"]
    columns: Mapping[str, Sequence[str]]
    """Text of each item, by column."""
    text_columns: tuple[str, ...]
    """The columns that are encoded where none are chosen."""
    dropped: dict[str, int]


def assemble(
    interactions: Interactions,
    items: Items,
    *,
    k_core: int = 0,
    unknown_items: str = "error",
    duplicates: str = "keep",
) -> Content:
    """Maps ids to dense ones, filters, and orders each history (by time, then position, then file order).

    Dense items follow the items file; dense users follow their first appearance. Items without interactions stay,
    unless `k_core` filters them out.

    Args:
      interactions: who interacted with what.
      items: the catalogue.
      k_core: keep users and items with at least this many interactions, repeatedly; 0 keeps all.
      unknown_items: "drop" leaves out interactions with items that the catalogue lacks, "error" refuses them.
      duplicates: "drop" takes interactions of the same user, item, time and position once, "keep" as often as they are.

    Raises:
      InputError: for unknown items, or where nothing is left.
    """
    dropped: dict[str, int] = {}
    # Ids are compared as written, so that the string "12" of one file finds the integer 12 of the other.
    catalogue = pa.array([str(item) for item in items.ids], pa.string())
    found = pc.fill_null(pc.index_in(interactions.items.values, value_set=catalogue), -1).to_numpy()
    user, item = interactions.users.codes, found[interactions.items.codes].astype(np.int64)
    keep = item >= 0
    if not keep.all():
        unknown = int((~keep).sum())
        if unknown_items != "drop" or not keep.any():
            different, first = np.unique(interactions.items.codes[~keep], return_index=True)
            names = interactions.items.values.take(pa.array(different[np.argsort(first)])).to_pylist()
            known = catalogue.to_pylist()
            if unknown_items == "drop":
                raise nothing_left(interactions.path, k_core, unknown_items, names, known)
            raise unknown_items_error(interactions.path, items.path, unknown, len(different), names, known)
        dropped["unknown_items"] = unknown
    if duplicates == "drop":
        again = interactions.again()
        dropped["duplicates"] = int((again & keep).sum())
        keep &= ~again
    users_before = int((np.bincount(user) > 0).sum())
    keep_items = np.ones(len(items.ids), bool)
    if k_core > 0:
        keep, keep_items = core(user, item, keep, num_items=len(items.ids), k=k_core)
        dropped["k_core_items"] = int((~keep_items).sum())
    if not keep.any():
        raise nothing_left(interactions.path, k_core, unknown_items)
    kept_users = np.bincount(user[keep], minlength=len(interactions.users.values)) > 0
    gone = users_before - int(kept_users.sum())
    if gone:
        dropped["k_core_users" if k_core > 0 else "users_of_unknown_items_only"] = gone

    dense_user, dense_item = np.cumsum(kept_users) - 1, np.cumsum(keep_items) - 1
    order = interactions.order()
    order = order[keep[order]]
    lengths = np.bincount(dense_user[user[order]])
    histories = Histories(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        dense_item[item[order]].astype(np.int32),
        None if interactions.timestamps is None else interactions.timestamps[order],
        _placed(interactions, order),
    )
    user_ids = interactions.users.originals()
    rows = np.flatnonzero(keep_items)
    return Content(
        user_ids=[user_ids[u] for u in np.flatnonzero(kept_users)],
        item_ids=[items.ids[row] for row in rows],
        histories=histories,
        items_row=rows.astype(np.int32),
        columns={name: [values[row] for row in rows] for name, values in items.columns.items()},
        text_columns=items.text_columns,
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _placed(interactions: Interactions, order: Int[np.ndarray, "nnz"]) -> Bool[np.ndarray, "nnz"] | None:
    """`Histories.placed` of the rows in this order."""
    finer = [key for key in (interactions.nanoseconds, interactions.positions) if key is not None]
    if interactions.timestamps is None or not finer:
        return None
    return np.concatenate([[True], np.any([np.diff(key[order]) != 0 for key in finer], axis=0)])


def core(
    user: Int[np.ndarray, "n"], item: Int[np.ndarray, "n"], keep: Bool[np.ndarray, "n"], *, num_items: int, k: int
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "N"]]:
    """The k-core: the largest part in which every user and every item has at least k interactions.

    Returns:
      Which interactions and which items belong to it.
    """
    index = np.flatnonzero(keep)
    num_users = int(user.max(initial=-1)) + 1
    while True:
        users = np.bincount(user[index], minlength=num_users) >= k
        items = np.bincount(item[index], minlength=num_items) >= k
        stay = users[user[index]] & items[item[index]]
        if stay.all():
            break
        index = index[stay]
    inside = np.zeros(len(user), bool)
    inside[index] = True
    return inside, items


def to_dataset(content: Content, *, name: str, digest: str, text_columns: str = "") -> Dataset:
    """The data set, with the text that an encoder reads: the chosen columns in the order chosen, joined by ". ".

    Args:
      content: what the builders store.
      name: of the data set.
      digest: SHA-256 of inputs and filters.
      text_columns: comma-separated columns; all that hold text if empty.

    Raises:
      InputError: for a column that the items do not have.
    """
    chosen = tuple(column.strip() for column in text_columns.split(",") if column.strip()) or content.text_columns
    for column in chosen:
        if column not in content.columns:
            near = nearest(column, content.columns)
            hint = f" Did you mean {near!r}?" if near else ""
            raise InputError(
                f"--text_columns names {column!r}, which the items do not have; columns found: "
                f"{listed(content.columns)}.{hint}"
            )
    text = text_of(content.columns, chosen) if chosen else _blank(len(content.item_ids))
    return Dataset(
        name=name,
        digest=digest,
        user_ids=content.user_ids,
        item_ids=content.item_ids,
        histories=content.histories,
        item_text=text,
        item_titles=_titles(content),
        text_columns=chosen,
        items_row=content.items_row,
        dropped=dict(content.dropped),
    )


def text_of(columns: Mapping[str, Sequence[str]], chosen: Sequence[str]) -> Sequence[str]:
    """What an encoder reads of each item: the chosen columns, at least one, in the order chosen; joined when asked
    for."""
    parts = [columns[column] for column in chosen]

    def read(start: int, stop: int) -> list[str]:
        return [join_text(entry) for entry in zip(*(part[start:stop] for part in parts), strict=True)]

    return Entries(read, len(parts[0]))


def join_text(parts: tuple[str, ...]) -> str:
    """Joins the parts that are not empty by ". ", without doubling a full stop."""
    kept = [part for part in parts if part]
    return " ".join([part if part.endswith((".", "!", "?")) else part + "." for part in kept[:-1]] + kept[-1:])


def _titles(content: Content) -> Sequence[str]:
    """A short name of each item: its title or name, else its first text, else its id; read when asked for."""
    named = [name for name in ("title", "item_title", "movie_title", "name") if name in content.columns]
    column, ids = next(iter([*named, *content.text_columns]), None), content.item_ids
    texts = content.columns[column] if column else _blank(len(ids))

    def read(start: int, stop: int) -> list[str]:
        return [text or str(item) for text, item in zip(texts[start:stop], ids[start:stop], strict=True)]

    return Entries(read, len(ids))


def _blank(items: int) -> Sequence[str]:
    return Entries(lambda start, stop: [""] * (stop - start), items)


def nothing_left(
    source: object,
    k_core: int,
    unknown_items: str,
    names: Sequence[str] = (),
    known: Sequence[str] = (),
    different: int = 0,
) -> InputError:
    """The error for filters that leave no interaction of `source`; as in `unknown_items_error`, `names` are those of
    `different` items that are not among the `known`."""
    todo = remedy(names, known, "lower --k_core, or check that the item ids match", different)
    return InputError(
        f"{source}: no interactions are left after the filters (k_core={k_core}, unknown_items={unknown_items}); "
        f"{todo}."
    )


def unknown_items_error(
    source: object, catalogue: object, count: int, different: int, names: Sequence[str], known: Sequence[str] = ()
) -> InputError:
    """The error for `count` interactions of `source` with so many `different` items that the catalogue lacks.

    Args:
      source: of the interactions.
      catalogue: where items are looked for.
      count: interactions.
      different: items.
      names: these, as written, or the first of them.
      known: the items of the catalogue, as written, or those of them that are like `names`.
    """
    shown = ", ".join(map(repr, names[:3])) + (", ..." if different > 3 else "")
    todo = remedy(names, known, "add them, or leave these interactions out with --unknown_items=drop", different)
    return InputError(
        f"{source}: {words.count(count, 'interaction')} of {words.count(different, 'item')} that {catalogue} does "
        f"not have ({shown}); {todo}."
    )
