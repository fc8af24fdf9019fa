"""Histories of users and the data set around them, as plain arrays in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from spectran_jax.data.entries import picked
from spectran_jax.errors import InputError

OriginalId = int | str
"""An id as the user's own files have it."""


def ragged_indices(starts: Int[np.ndarray, "S"], lengths: Int[np.ndarray, "S"]) -> Int[np.ndarray, "T"]:
    """The indices `starts[i], ..., starts[i] + lengths[i] - 1` for every i, one after the other, int64.

    This is how runs of different length are gathered from a flat array without a loop over the runs.
    """
    lengths = np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(np.asarray(starts, np.int64) - (ends - lengths), lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """What each user did, oldest first, in compressed rows: user u owns `items[offsets[u]:offsets[u + 1]]`."""

    offsets: Int[np.ndarray, "U_plus_1"]
    """int64, from 0 to the number of interactions."""
    items: Int[np.ndarray, "nnz"]
    """int32 dense item ids."""
    timestamps: Int[np.ndarray, "nnz"] | None = None
    """int64 Unix seconds, or None where the data has none."""
    placed: Bool[np.ndarray, "nnz"] | None = None
    """Whether an interaction has another position, or another part of a second, than the one before it, so that file
    order does not decide a tie in time; None where the data has neither, or no times, and where some interactions were
    left out."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[np.ndarray, "U"]:
        """int64 number of interactions of each user."""
        return np.diff(self.offsets)

    def __getitem__(self, user: int) -> Int[np.ndarray, "n"]:
        """The items of one user, oldest first (a view)."""
        if not -len(self) <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        user %= len(self)
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def slices(self, starts: Int[np.ndarray, "n"], lengths: Int[np.ndarray, "n"]) -> Histories:
        """New histories: row i is the run of `lengths[i]` interactions from flat index `starts[i]` on."""
        index = ragged_indices(starts, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        columns = (None if column is None else column[index] for column in (self.timestamps, self.placed))
        return Histories(offsets, self.items[index], *columns)

    def take(self, users: Int[np.ndarray, "n"]) -> Histories:
        """The histories of some users, in the order given."""
        users = np.asarray(users, np.int64)
        return self.slices(self.offsets[users], self.lengths[users])

    def where(self, keep: Bool[np.ndarray, "nnz"]) -> Histories:
        """The histories without the interactions that `keep` is False for; a user may be left with none."""
        offsets = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])[self.offsets]
        return Histories(offsets, self.items[keep], None if self.timestamps is None else self.timestamps[keep])

    def distinct(self) -> Histories:
        """The histories with each item of a user once, where it stands first."""
        users = np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)
        pairs = users * (int(self.items.max(initial=0)) + 1) + self.items
        first = np.zeros(len(pairs), bool)
        first[np.unique(pairs, return_index=True)[1]] = True
        return self.where(first)

    @property
    def repeats(self) -> int:
        """Interactions with an item that the same user had before."""
        return len(self.items) - len(self.distinct().items)

    @property
    def doubled(self) -> int:
        """Interactions with the item of the one before them, of the same user and time; 0 where there are no times."""
        if self.timestamps is None:
            return 0
        same = (self.items[1:] == self.items[:-1]) & (self.timestamps[1:] == self.timestamps[:-1])
        if self.placed is not None:
            same &= ~self.placed[1:]
        starts = self.offsets[1:-1]
        same[starts[(starts > 0) & (starts < len(self.items))] - 1] = False  # two users
        return int(same.sum())

    @functools.cached_property
    def most_items(self) -> int:
        """Different items of the user who has most of them."""
        most, lengths = 0, self.lengths
        for user in np.argsort(-lengths):  # nobody has more of them than interactions, so the first few settle it
            if lengths[user] <= most:
                break
            most = max(most, len(np.unique(self[int(user)])))
        return most

    @classmethod
    def from_lists(cls, items: Sequence[Sequence[int]], timestamps: Sequence[Sequence[int]] | None = None) -> Histories:
        """Histories from one list of dense item ids a user (and, if given, one list of timestamps a user)."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
        flat = np.concatenate([np.asarray(row, np.int32) for row in items]) if len(items) else np.zeros(0, np.int32)
        times = None
        if timestamps is not None:
            if [len(row) for row in timestamps] != [len(row) for row in items]:
                raise ValueError("timestamps must have one entry an item")
            times = np.concatenate([np.asarray(row, np.int64) for row in timestamps]) if len(items) else offsets[:0]
        return cls(offsets, flat, times)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and what the users did. Dense item ids follow the order of the items file."""

    name: str
    digest: str
    """SHA-256 over the content of the inputs and the filters, 64 hex digits."""
    user_ids: Sequence[OriginalId]
    """Original id of each dense user."""
    item_ids: Sequence[OriginalId]
    """Original id of each dense item: int where the source column holds integers, else str."""
    histories: Histories
    item_text: Sequence[str]
    """What a text encoder reads, "" where an item has no text; of prepared data, read when asked for."""
    item_titles: Sequence[str]
    """A short name for people; the id where an item has none; as `item_text`."""
    text_columns: tuple[str, ...]
    """The columns that `item_text` is made of."""
    items_row: Int[np.ndarray, "N"]
    """int32 row of each item in the items file, by which rows of precomputed embeddings are picked."""
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    """What was left out, by reason, for example `users_too_short`; only reasons that occurred."""

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.histories)

    @property
    def num_items(self) -> int:
        """Number of items N, those without interactions among them."""
        return len(self.item_ids)

    @property
    def items_file_rows(self) -> int:
        """Rows of the items file, those that a k-core left out among them."""
        return self.num_items + self.dropped.get("k_core_items", 0)

    @property
    def num_interactions(self) -> int:
        """Number of interactions."""
        return len(self.histories.items)

    @property
    def most_items(self) -> int:
        """Different items of the user who has most of them."""
        return self.histories.most_items

    @functools.cached_property
    def item_index(self) -> dict[str, int]:
        """Dense id by the written form of the original id, so that 12 and "12" name the same item."""
        return {str(item): dense for dense, item in enumerate(self.item_ids)}

    def dense_items(self, ids: Iterable[object]) -> Int[np.ndarray, "n"]:
        """Dense ids of original item ids, int32; -1 where an id is unknown."""
        index = self.item_index
        return np.fromiter((index.get(_written(item), -1) for item in ids), np.int32)

    def without_short_histories(self, minimum: int, source: str = "") -> Dataset:
        """A copy without the users who have fewer than `minimum` interactions; counts them in `dropped`.

        Args:
          minimum: interactions of a user who stays.
          source: the file of the interactions, for the message; the data set's name if empty.

        Raises:
          InputError: where no user is left.
        """
        keep = np.flatnonzero(self.histories.lengths >= minimum)
        if len(keep) == self.num_users and len(keep):
            return self
        if not len(keep):
            raise InputError(
                f"{source or self.name}: all {self.num_users} users have fewer than {minimum} interactions, so none "
                "can be split into training, validation and test; give longer histories."
            )
        count = self.dropped.get("users_too_short", 0) + self.num_users - len(keep)
        return dataclasses.replace(
            self,
            user_ids=picked(self.user_ids, keep),
            histories=self.histories.take(keep),
            dropped={**self.dropped, "users_too_short": count},
        )


def _written(item: object) -> str:
    """The written form of an id; 12.0 counts as 12, as JSON and spreadsheets like to write it."""
    return str(int(item)) if isinstance(item, float) and item.is_integer() else str(item)
