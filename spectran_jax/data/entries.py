"""Ids and texts of millions of users and items, without a Python object for each: these are made when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
from jaxtyping import Int, Int64, UInt32

T = TypeVar("T")

_AT_ONCE = 2048
"""Entries that are made at once where all are gone through."""


class Entries(Sequence[T]):
    """An immutable sequence whose entries are read in runs when asked for; equal to any sequence of the same entries.

    A slice is such a sequence, too, and reads nothing yet.
    """

    def __init__(self, read: Callable[[int, int], Sequence[T]], rows: int | range) -> None:
        """Args:
        read: `read(start, stop)` gives the entries of these rows.
        rows: how many there are, or which of them this is a sequence of.
        """
        self._read = read
        self._rows = range(rows) if isinstance(rows, int) else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Entries[T]: ...

    def __getitem__(self, index: int | slice) -> T | Entries[T]:
        if isinstance(index, slice):
            return Entries(self._read, self._rows[index])
        row = self._rows[index]
        return self._read(row, row + 1)[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self._rows), _AT_ONCE):
            rows = self._rows[start : start + _AT_ONCE]
            first = min(rows[0], rows[-1])
            part = self._read(first, max(rows[0], rows[-1]) + 1)
            yield from part if rows.step == 1 else (part[row - first] for row in rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of lists, which it may be equal to


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A few thousand original ids: 8 bytes each where they are integers, else 4 and the bytes of their UTF-8."""

    ids: Int64[np.ndarray, "n"] | bytes
    """The integers; strings, and integers of more than 64 bits, one after the other as they are written."""
    bounds: UInt32[np.ndarray, "n_plus_1"]
    """Where those that are written begin and end."""
    original: type[int] | type[str]

    @classmethod
    def of(cls, written: np.ndarray, original: type[int] | type[str]) -> Packed:
        """From an array of `bytes`: the ids as they are written."""
        if original is int:
            with contextlib.suppress(OverflowError):
                return cls(np.array([int(one) for one in written], np.int64), np.zeros(0, np.uint32), int)
        return cls(b"".join(written), np.cumsum([0, *map(len, written)], dtype=np.uint32), original)

    def __len__(self) -> int:
        return len(self.bounds) - 1 if isinstance(self.ids, bytes) else len(self.ids)

    def part(self, start: int, stop: int) -> list[int | str]:
        """The ids from `start` to before `stop`, or to the last."""
        if not isinstance(self.ids, bytes):
            return self.ids[start:stop].tolist()
        bounds = itertools.pairwise(self.bounds[start : stop + 1].tolist())
        return [self.original(self.ids[begin:end].decode()) for begin, end in bounds]


def picked(values: Sequence[T], rows: Int[np.ndarray, "n"]) -> Entries[T]:
    """The entries of these rows, in ascending order."""

    def read(start: int, stop: int) -> list[T]:
        wanted = rows[start:stop].tolist()
        part = list(values[wanted[0] : wanted[-1] + 1])
        return [part[row - wanted[0]] for row in wanted]

    return Entries(read, len(rows))
