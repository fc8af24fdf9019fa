"""Which histories share a row: a plan that depends on lengths, seed and epoch alone.

The *pattern* (which lengths share a row, and in what order) is made once from the histogram of lengths, by best fit
with the longest first, so every epoch has the same number of rows. An epoch then deals the sequences of equal
length to the places of that length by a seeded permutation, and shuffles the rows. Nothing depends on the number of
processes or devices; a process takes its slice of the rows of a batch.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Int

from spectran_jax.data import cloze
from spectran_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The part of the plan that all epochs share. A *slot* is the place of one sequence in a row."""

    users: Int[np.ndarray, "S"]
    """int32 user of each sequence; sequences are by rising length."""
    behind: Int[np.ndarray, "S"]
    """int32 items of the user's history that come after the sequence: 0 where it is the whole history."""
    slot_start: Int[np.ndarray, "S"]
    """int32 column where each slot begins; slots are in the order of their rows."""
    slot_length: Int[np.ndarray, "S"]
    """int32 positions of the slot."""
    slot_supervised: Int[np.ndarray, "S"]
    """int32 supervised positions of the slot: all of them, or those that a masked backbone must fill in."""
    slot_last_only: Bool[np.ndarray, "S"] | None
    """For a masked backbone, True where the slot hides its last item only (`cloze.py`); else None."""
    slots_by_length: Int[np.ndarray, "S"]
    """int32 slots by rising length: the i-th takes the i-th of the shuffled sequences."""
    row_offsets: Int[np.ndarray, "R_plus_1"]
    """int64: row r holds slots `row_offsets[r]` to `row_offsets[r + 1]`."""
    row_length: int
    """Positions of a row."""
    steps_per_epoch: int
    rows_per_step: int
    """Rows of a batch over all processes, empty ones that fill it up included."""
    groups: int
    """A batch is this many equal groups of rows: the `row_multiple` that it was planned for."""
    group_positions: int
    """Supervised positions that a group has at most."""
    step_items: int
    """Items of the histories in a batch, inputs and targets, at most; with repetitions."""
    group_items: int
    """The same of a group."""

    @property
    def num_rows(self) -> int:
        """Rows that hold a sequence."""
        return len(self.row_offsets) - 1

    @functools.cached_property
    def has_beginnings(self) -> bool:
        """Whether a user may have several sequences."""
        return bool(self.behind.any())

    @property
    def positions(self) -> int:
        """Supervised positions of an epoch."""
        return int(self.slot_supervised.sum(dtype=np.int64))

    @property
    def fill(self) -> float:
        """Share of the positions computed in an epoch that are real."""
        real = int(self.slot_length.sum(dtype=np.int64))
        return real / (self.steps_per_epoch * self.rows_per_step * self.row_length)

    def row_positions(self) -> Int[np.ndarray, "R"]:
        """Supervised positions of each row, int64."""
        return _row_positions(self.slot_supervised, self.row_offsets)

    def row_items(self) -> Int[np.ndarray, "R"]:
        """Items of the histories in each row, inputs and targets, int64."""
        return _row_items(self.slot_length, self.row_offsets, masked=self.slot_last_only is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class Epoch:
    """The part of the plan that one epoch draws."""

    slot_sequence: Int[np.ndarray, "S"]
    """int32 number of the sequence in each slot, into `Plan.users` and `Plan.behind`."""
    row_order: Int[np.ndarray, "R"]
    """int64 rows in the order in which they are trained on."""
    step_offsets: Int[np.ndarray, "steps_plus_1"]
    """int64: step s takes rows `row_order[step_offsets[s]:step_offsets[s + 1]]`."""


def make_plan(
    lengths: Int[np.ndarray, "U"],
    max_length: int,
    *,
    packed: bool,
    batch_size: int,
    row_multiple: int = 1,
    mask_ratio: float | None = None,
    prefixes: int = 1,
) -> Plan:
    """Plans how training histories of these lengths fill rows of a fixed number of positions.

    A history of n items gives a sequence of `min(n - 1, max_length)` positions (input: all items but the last,
    target: all but the first), none if n < 2; for a masked backbone the same items, inputs and last target, in
    `max_length + 1` positions at most, and beginnings of these are sequences, too. Rows are spread over the steps
    as evenly as can be, so no step is empty; each batch is filled up with empty rows at its end.

    Args:
      lengths: int64 number of training items of each user.
      max_length: the longest history that a model predicts from.
      packed: put several sequences into a row; else one sequence a row.
      batch_size: users per update, on average over the epoch's steps.
      row_multiple: rows per step are rounded up to a multiple of this (devices on the data axis, times micro-batches).
      mask_ratio: share of the items that a masked backbone must fill in where it hides random ones, 0 for the last item
        of every sequence; None for the next-item task.
      prefixes: sequences that a masked backbone has of a user at most; see `cloze.prefixes`.

    Raises:
      InputError: where no user has two training items, or a number is below one.
    """
    numbers = {"max_length": max_length, "batch_size": batch_size, "row_multiple": row_multiple, "prefixes": prefixes}
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}.")
    masked = mask_ratio is not None
    row_length = max_length + masked
    lengths = np.asarray(lengths, np.int64)
    taught = int((lengths >= 2).sum())
    if not taught:
        raise InputError("No user has two training items, so there is nothing to learn from; give longer histories.")
    # What both tasks read. Beginnings are of that, so that no item which counts as cold stands in one.
    lengths = np.minimum(lengths, max_length + 1)
    users, behind = cloze.prefixes(lengths, prefixes if masked else 1)
    positions = (lengths[users] - behind - (not masked)).astype(np.int32)
    by_length = np.argsort(positions, kind="stable")
    users, behind = users[by_length], behind[by_length]
    counts = np.bincount(positions, minlength=row_length + 1)
    patterns = best_fit(counts, row_length) if packed else [((n,), int(c)) for n, c in enumerate(counts) if n and c]

    slot_length = np.concatenate([np.tile(np.asarray(lens, np.int32), count) for lens, count in patterns])
    slot_start = np.concatenate(
        [np.tile(np.cumsum((0, *lens[:-1]), dtype=np.int32), count) for lens, count in patterns]
    )
    slots_per_row = np.repeat([len(lens) for lens, _ in patterns], [count for _, count in patterns])
    row_offsets = np.concatenate([[0], np.cumsum(slots_per_row)]).astype(np.int64)
    rows = len(slots_per_row)
    # A row may hold more users than a tiny batch: a step takes at least one row.
    steps = min(-(-taught // batch_size), rows)
    rows_per_step = -(-rows // steps)
    rows_per_step = -(-rows_per_step // row_multiple) * row_multiple
    slots_by_length = np.argsort(slot_length, kind="stable").astype(np.int32)
    slot_supervised, slot_last_only = slot_length, None
    if mask_ratio is not None:
        slot_last_only = np.empty(len(users), bool)
        # The same share of every length.
        slot_last_only[slots_by_length] = cloze.last_only(len(users), taught, mask_ratio)
        hidden = cloze.hidden_counts(slot_length, mask_ratio)
        slot_supervised = np.where(slot_last_only, 1, hidden).astype(np.int32)
    row_positions = _row_positions(slot_supervised, row_offsets)
    row_items = _row_items(slot_length, row_offsets, masked)
    share, places = rows_per_step // row_multiple, steps * row_multiple
    return Plan(
        users=users,
        behind=behind,
        slot_start=slot_start,
        slot_length=slot_length,
        slot_supervised=slot_supervised,
        slot_last_only=slot_last_only,
        slots_by_length=slots_by_length,
        row_offsets=row_offsets,
        row_length=row_length,
        steps_per_epoch=steps,
        rows_per_step=rows_per_step,
        groups=row_multiple,
        group_positions=_capacity(row_positions, share, places),
        step_items=_capacity(row_items, rows_per_step, steps),
        group_items=_capacity(row_items, share, places),
    )


def _row_positions(slot_supervised: Int[np.ndarray, "S"], row_offsets: Int[np.ndarray, "R_plus_1"]) -> np.ndarray:
    """See `Plan.row_positions`."""
    return np.add.reduceat(slot_supervised.astype(np.int64), row_offsets[:-1])


def _row_items(slot_length: Int[np.ndarray, "S"], row_offsets: Int[np.ndarray, "R_plus_1"], masked: bool) -> np.ndarray:
    """See `Plan.row_items`."""
    items = np.add.reduceat(slot_length.astype(np.int64), row_offsets[:-1])
    return items if masked else items + np.diff(row_offsets)  # the last target of the next-item task has no position


def _capacity(sizes: Int[np.ndarray, "R"], rows: int, draws: int) -> int:
    """What `rows` rows of a shuffle hold together at most, in each of the `draws` places of an epoch.

    Bernstein's inequality, which holds without replacement too (Hoeffding, JASA 1963, section 6), bounds the chance
    that any place of an epoch holds more by one in a million; `draw_epoch` then draws again, so that it never does.
    """
    rows = min(rows, len(sizes))
    largest = int(np.partition(sizes, len(sizes) - rows)[len(sizes) - rows :].sum())
    log_odds = np.log(1e6 * draws)
    above = (sizes.max() - sizes.mean()) * log_odds / 3
    excess = above + np.sqrt(above**2 + 2 * rows * sizes.var() * log_odds)
    return min(largest, int(np.ceil(rows * sizes.mean() + excess)))


def best_fit(counts: Int[np.ndarray, "L_plus_1"], capacity: int) -> list[tuple[tuple[int, ...], int]]:
    """Best-fit decreasing bin packing over a histogram of lengths.

    Each sequence, longest first, goes into the fullest row that still has room for it. Rows of equal make-up are
    handled together, so the cost follows the number of different lengths, not of sequences.

    Args:
      counts: how many sequences have length 0, 1, ..., capacity; entry 0 is ignored.
      capacity: positions of a row.

    Returns:
      (lengths in a row, number of such rows), for each different make-up.

    Raises:
      InputError: where a sequence is longer than a row.
    """
    if len(counts) > capacity + 1 and counts[capacity + 1 :].any():
        longest = int(np.flatnonzero(counts)[-1])
        raise InputError(
            f"A sequence of {longest} positions does not fit into rows of --max_length={capacity}; cut it to its last "
            f"{capacity} positions, or take --max_length={longest}."
        )
    open_rows: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in range(capacity + 1)]  # by room left
    for length in range(capacity, 0, -1):
        left = int(counts[length])
        for room in range(length, capacity):
            if not left:
                break
            # Best fit fills a row with this length until it has no more room for it.
            each = room // length
            groups, open_rows[room] = open_rows[room], []
            for lengths, rows in groups:
                full = min(rows, left // each)
                rest = left % each if full < rows and left < each * rows else 0
                left -= full * each + rest
                for fitted, number in ((each, full), (rest, int(rest > 0))):
                    if number:
                        open_rows[room - fitted * length].append((lengths + (length,) * fitted, number))
                untouched = rows - full - int(rest > 0)
                if untouched:
                    open_rows[room].append((lengths, untouched))
        each = capacity // length
        full, rest = divmod(left, each)
        for fitted, number in ((each, full), (rest, int(rest > 0))):
            if number:
                open_rows[capacity - fitted * length].append(((length,) * fitted, number))
    return [group for groups in open_rows for group in groups]


def draw_epoch(plan: Plan, seed: int, epoch: int) -> Epoch:
    """Deals sequences to slots and shuffles the rows; the same for the same plan, seed and epoch, everywhere."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])))
    # Within a length, sequences come in the order of random keys; lengths stay apart, since keys are below one.
    keys = plan.slot_length[plan.slots_by_length] + rng.random(len(plan.users))
    slot_sequence = np.empty(len(plan.users), np.int32)
    slot_sequence[plan.slots_by_length] = np.argsort(keys, kind="stable")
    positions, items = plan.row_positions(), plan.row_items()
    while True:
        row_order = rng.permutation(plan.num_rows)
        # Which steps get one row more is drawn too, so that no step is always the larger one.
        sizes = np.full(plan.steps_per_epoch, plan.num_rows // plan.steps_per_epoch)
        sizes[rng.permutation(plan.steps_per_epoch)[: plan.num_rows % plan.steps_per_epoch]] += 1
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        if (
            np.add.reduceat(items[row_order], offsets[:-1]).max() <= plan.step_items
            and _largest_group(items[row_order], offsets, plan) <= plan.group_items
            and _largest_group(positions[row_order], offsets, plan) <= plan.group_positions
        ):
            return Epoch(slot_sequence, row_order, offsets)


def _largest_group(sizes: Int[np.ndarray, "R"], offsets: Int[np.ndarray, "steps_plus_1"], plan: Plan) -> int:
    """The most that any group of rows of any step holds together; rows in the order of the epoch."""
    share = plan.rows_per_step // plan.groups
    starts = np.minimum(offsets[:-1, None] + share * np.arange(plan.groups), offsets[1:, None])
    ends = np.minimum(starts + share, offsets[1:, None])
    total = np.concatenate([[0], np.cumsum(sizes)])
    return int((total[ends] - total[starts]).max())
