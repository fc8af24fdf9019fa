"""Which items of a history are hidden from a masked backbone (Cloze training; Sun et al., CIKM 2019, section 3.6).

How many is fixed by the history's length, so that what a step holds is known ahead; where is drawn anew each epoch,
as a function of (seed, epoch, user) alone: no batch, process or device enters.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt64

LAST_ONLY = 0.5
"""Share of the histories that hide their last item and no other, as prediction does. The rest hide random ones."""


def hidden_counts(lengths: Int[np.ndarray, "*s"], mask_ratio: float) -> Int[np.ndarray, "*s"]:
    """Items hidden in histories of two items or more: the rounded share, but one at least, and one is left, int64."""
    lengths = np.asarray(lengths, np.int64)
    return np.minimum(np.maximum(np.floor(mask_ratio * lengths + 0.5).astype(np.int64), 1), lengths - 1)


def last_only(count: int) -> Bool[np.ndarray, "S"]:
    """Which of `count` places hide the last item only: `floor(LAST_ONLY * count)`, evenly spread."""
    return np.diff(np.floor(LAST_ONLY * np.arange(count + 1))) > 0


def hidden_positions(
    seed: int,
    epoch: int,
    users: Int[np.ndarray, "S"],
    lengths: Int[np.ndarray, "S"],
    counts: Int[np.ndarray, "S"],
    last: Bool[np.ndarray, "S"],
) -> Bool[np.ndarray, "T"]:
    """True at the hidden items of these histories, one after the other, T = the sum of the lengths.

    Args:
      seed: of the run.
      epoch: 0, 1, ...
      users: whose histories they are.
      lengths: items of each.
      counts: how many each hides; all subsets of that size are equally likely.
      last: True where it is the last item (and `counts` is 1).
    """
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(owner)) - np.repeat(ends - lengths, lengths)
    keys = _random_words(seed, epoch, np.asarray(users)[owner], place)
    keys[ends[last] - 1] = 0
    order = np.lexsort((keys, owner))  # owners stay in their order, so the smallest keys of each come first
    hidden = np.empty(len(owner), bool)
    hidden[order] = place < np.asarray(counts)[owner]
    return hidden


def _random_words(seed: int, epoch: int, users: np.ndarray, place: np.ndarray) -> UInt64[np.ndarray, "T"]:
    """Words above 0, each a function of its arguments alone, by SplitMix64 (Steele et al., OOPSLA 2014)."""
    start = np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1, np.uint64)
    words = _mix(_mix(start + users.astype(np.uint64)) + place.astype(np.uint64))
    return np.maximum(words, np.uint64(1))


def _mix(x: UInt64[np.ndarray, "T"]) -> UInt64[np.ndarray, "T"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
