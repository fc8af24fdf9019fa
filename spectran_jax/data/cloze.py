"""What a masked backbone is trained on: which sequences, and which of their items are hidden.

Cloze training (Sun et al., CIKM 2019, section 3.6) hides random items of whole histories. A history then teaches
once an epoch what comes next, where a causal backbone learns it at every position. So beginnings of histories are
sequences of their own, which hide their last item, as prediction does.

How many items are hidden is fixed by a sequence's length, so that what a step holds is known ahead; where is drawn anew
each epoch, as a function of (seed, epoch, user, end) alone: no batch, process or device enters.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt64

RANDOM = 0.5
"""Sequences of an epoch that hide random items, for each user on average, unless the share of items to hide is zero.
All others hide their last item only."""


def prefixes(lengths: Int[np.ndarray, "U"], most: int) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "S"]]:
    """The sequences of histories of these lengths: each whole, and beginnings of two items or more, evenly spread.

    Args:
      lengths: items of each user's history; one that is shorter than two gives nothing.
      most: sequences of a user, at most; 1 for the whole history alone.

    Returns:
      int32 user of each sequence, ascending, and int32 items of the history that come after it: 0 first, then more.
    """
    others = np.maximum(np.asarray(lengths, np.int64) - 1, 0)
    counts = np.minimum(others, most)
    user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    number = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    number *= others[user]
    number //= counts[user]
    return user, number.astype(np.int32)


def hidden_counts(lengths: Int[np.ndarray, "*s"], mask_ratio: float) -> Int[np.ndarray, "*s"]:
    """Items hidden in sequences of two items or more: the rounded share, but one at least, and one is left, int64."""
    lengths = np.asarray(lengths, np.int64)
    return np.minimum(np.maximum(np.floor(mask_ratio * lengths + 0.5).astype(np.int64), 1), lengths - 1)


def last_only(count: int, users: int, mask_ratio: float) -> Bool[np.ndarray, "S"]:
    """Which of `count` sequences of `users` users hide the last item only, evenly spread; all do at a share of 0."""
    share = 1 - RANDOM * users / count if mask_ratio else 1.0
    return np.diff(np.floor(share * np.arange(count + 1))) > 0


def hidden_positions(
    seed: int,
    epoch: int,
    users: Int[np.ndarray, "S"],
    behind: Int[np.ndarray, "S"],
    lengths: Int[np.ndarray, "S"],
    counts: Int[np.ndarray, "S"],
    last: Bool[np.ndarray, "S"],
) -> Bool[np.ndarray, "T"]:
    """True at the hidden items of these sequences, one after the other, T = the sum of the lengths.

    Args:
      seed: of the run.
      epoch: 0, 1, ...
      users: whose they are.
      behind: items of the user's history that come after each.
      lengths: items of each.
      counts: how many each hides; all subsets of that size are equally likely.
      last: True where it is the last item (and `counts` is 1).
    """
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(owner)) - np.repeat(ends - lengths, lengths)
    of = np.asarray(users).astype(np.uint64) + (np.asarray(behind).astype(np.uint64) << np.uint64(32))
    keys = _random_words(seed, epoch, of[owner], place)
    keys[ends[last] - 1] = 0
    order = np.lexsort((keys, owner))  # owners stay in their order, so the smallest keys of each come first
    hidden = np.empty(len(owner), bool)
    hidden[order] = place < np.asarray(counts)[owner]
    return hidden


def _random_words(seed: int, epoch: int, sequence: np.ndarray, place: np.ndarray) -> UInt64[np.ndarray, "T"]:
    """Words above 0, each a function of its arguments alone, by SplitMix64 (Steele et al., OOPSLA 2014)."""
    start = np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1, np.uint64)
    words = _mix(_mix(start + sequence) + place.astype(np.uint64))
    return np.maximum(words, np.uint64(1))


def _mix(x: UInt64[np.ndarray, "T"]) -> UInt64[np.ndarray, "T"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
