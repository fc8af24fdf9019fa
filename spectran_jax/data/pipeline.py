"""From histories to batches of NumPy arrays: a resumable Grain iterator to train on, a plain one to evaluate on."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import grain
import numpy as np
from jaxtyping import Bool, Int

from spectran_jax.data import cloze, packing
from spectran_jax.data.interactions import Histories, ragged_indices
from spectran_jax.data.splits import Targets
from spectran_jax.errors import InputError
from spectran_jax.layout import EvalBatch, SequenceLayout, TrainBatch

_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
_SEEN_MULTIPLE = 64
_INT32_MAX = np.iinfo(np.int32).max

Share = tuple[int, int]
"""Which slice of each batch a process reads, and how many there are."""


class TrainBatches:
    """Batch i of a run, for one process, as a function of i alone: a Grain random-access source.

    Batch i is step `i % steps_per_epoch` of epoch `i // steps_per_epoch`. Putting the batches of all processes one
    below the other gives the same rows for every number of processes. Arguments are those of `train_iterator`.
    """

    def __init__(
        self, histories: Histories, plan: packing.Plan, *, seed: int, epochs: int, share: Share = (0, 1)
    ) -> None:
        self._histories, self._plan, self._seed, self._epochs = histories, plan, seed, epochs
        self._rows = _rows_of(share, plan.rows_per_step, "batch rows")
        self._lock = threading.Lock()
        # Prefetching threads straddle two epochs at most.
        self._draw = functools.lru_cache(maxsize=2)(functools.partial(packing.draw_epoch, plan, seed))

    def __len__(self) -> int:
        return self._plan.steps_per_epoch * self._epochs

    def __repr__(self) -> str:
        return f"TrainBatches(steps_per_epoch={self._plan.steps_per_epoch}, epochs={self._epochs}, seed={self._seed})"

    def __getitem__(self, index: int) -> TrainBatch:
        plan, histories = self._plan, self._histories
        number, step = divmod(index, plan.steps_per_epoch)
        with self._lock:
            epoch = self._draw(number)
        first, last = epoch.step_offsets[step : step + 2]
        rows = epoch.row_order[first:last][self._rows]
        slots_per_row = plan.row_offsets[rows + 1] - plan.row_offsets[rows]
        slots = ragged_indices(plan.row_offsets[rows], slots_per_row)
        lengths, sequences = plan.slot_length[slots], epoch.slot_sequence[slots]
        users, behind = plan.users[sequences], plan.behind[sequences]
        masked = plan.slot_last_only is not None
        # Flat index in the histories of the first input: the last item of the sequence is an input where it is hidden,
        # else a target.
        sources = histories.offsets[users + 1] - behind - lengths - (not masked)
        starts = np.repeat(np.arange(len(rows)), slots_per_row) * plan.row_length + plan.slot_start[slots]
        segments = slots - np.repeat(plan.row_offsets[rows], slots_per_row) + 1

        shape = (self._rows.stop - self._rows.start, plan.row_length)
        source = ragged_indices(sources, lengths)
        place = _Placer(shape, ragged_indices(starts, lengths))
        layout = _layout(histories, place, source, sources, lengths, segments)
        items = histories.items[source]
        if plan.slot_last_only is None:
            item_ids, targets, supervised = place(items), place(histories.items[source + 1]), layout.mask
        else:
            hidden = cloze.hidden_positions(
                self._seed, number, users, behind, lengths, plan.slot_supervised[slots], plan.slot_last_only[slots]
            )
            item_ids, targets, supervised = place(np.where(hidden, 0, items)), place(items), place(hidden, np.bool_)
            whose = place(np.repeat(users, lengths)) if plan.has_beginnings else None
            layout = layout._replace(hidden=supervised, user=whose)
        return TrainBatch(item_ids, targets, layout, supervised=self._supervised(np.asarray(supervised)))

    def _supervised(self, where: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "G T"]:
        """Where the loss is taken, by group."""
        plan = self._plan
        groups = where.reshape(plan.groups * len(where) // plan.rows_per_step, -1)
        out = np.full((len(groups), plan.group_positions), groups.shape[1], np.int32)
        for row, group in zip(out, groups, strict=True):
            at = np.flatnonzero(group)
            row[: len(at)] = at
        return out


class TrainIterator(grain.DatasetIterator[TrainBatch]):
    """A Grain iterator of `TrainBatch` that knows its plan; `get_state` and `set_state` work anywhere in an epoch."""

    def __init__(self, inner: grain.DatasetIterator[TrainBatch], plan: packing.Plan) -> None:
        super().__init__(inner)
        self.plan = plan

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch."""
        return self.plan.steps_per_epoch

    @property
    def positions(self) -> int:
        """Supervised positions of an epoch, over all processes."""
        return self.plan.positions

    def __next__(self) -> TrainBatch:
        return cast(TrainBatch, next(self._parent))

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands, as a dictionary that JSON can hold."""
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` stood."""
        self._parent.set_state(state)


def train_iterator(
    histories: Histories,
    plan: packing.Plan,
    *,
    seed: int,
    epochs: int,
    share: Share = (0, 1),
    extend: Callable[[int, TrainBatch], TrainBatch] | None = None,
) -> TrainIterator:
    """The batches of a whole training run, built ahead by two threads.

    A user with training items s gives the inputs `s[:-1]` and the targets `s[1:]`, of which the last `max_length`
    positions of the plan are kept; users with fewer than two training items give nothing. For a masked backbone the
    same items stand in one sequence, some of them hidden (`plan` says how many, `cloze.py` where): hidden positions
    have item id 0, `layout.hidden` is True, and the targets are the items themselves. Beginnings of the history may be
    sequences, too. Every epoch holds each sequence once, in an order that depends on (seed, epoch) only.

    Args:
      histories: training part of all users.
      plan: what `packing.make_plan` gives for these histories.
      seed: of the order.
      epochs: the iterator ends after this many.
      share: which of how many contiguous slices of each batch this process takes.
      extend: called with the step and its batch, in the threads that build batches; gives the batch.

    Returns:
      An iterator of batches with arrays `[rows_per_step / shares, plan.row_length]`.

    Raises:
      InputError: where the rows of a batch can't be shared evenly.
    """
    dataset = grain.MapDataset.source(TrainBatches(histories, plan, seed=seed, epochs=epochs, share=share))
    if extend is not None:
        dataset = dataset.map_with_index(extend)
    return TrainIterator(iter(dataset.to_iter_dataset(read_options=_PREFETCH)), plan)


@dataclasses.dataclass(frozen=True, eq=False)
class EvalBatches:
    """Batches of fixed shape for ranking: the last `max_length` items of each history, from column 0 on.

    For a masked backbone a hidden position follows them, `EvalBatch.last`, so rows are one longer. Rows that fill up
    the last batch have user -1 and nothing but padding. Batches come in the order of the targets, as often as they are
    iterated over.

    Raises:
      InputError: where `batch_size` is below one, or can't be shared evenly between processes.
    """

    targets: Targets
    """Histories and what to rank after them."""
    _: dataclasses.KW_ONLY
    max_length: int
    batch_size: int
    """Users per batch, over all processes."""
    filter_seen: bool = False
    """Fill `EvalBatch.seen` with the items of the whole history, each once; else it has no columns."""
    share: Share = (0, 1)
    """Which of how many contiguous slices of each batch this process takes."""
    most_items: int = 0
    """`EvalBatch.seen` has room for this many items at least. The most items of a user of the data set gives all parts
    of a split one shape, and so one compiled program."""
    masked: bool = False
    """For a masked backbone."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--eval_batch_size must be at least 1, got {self.batch_size}.")
        self._rows()

    def _rows(self) -> slice:
        return _rows_of(self.share, self.batch_size, "evaluation batch rows")

    def __len__(self) -> int:
        return -(-len(self.targets) // self.batch_size)

    @functools.cached_property
    def seen_width(self) -> int:
        """Columns of `EvalBatch.seen`: the most items of a history rounded up, or 0 where nothing is filtered."""
        longest = max(self.most_items, self.targets.history.most_items) if self.filter_seen else 0
        return -(-longest // _SEEN_MULTIPLE) * _SEEN_MULTIPLE

    def users(self) -> Iterator[Int[np.ndarray, "B"]]:
        """The users of each batch over all processes, -1 in rows that fill up the last one."""
        for start in range(0, len(self.targets), self.batch_size):
            users = np.full(self.batch_size, -1, np.int32)
            real = self.targets.user[start : start + self.batch_size]
            users[: len(real)] = real
            yield users

    def __iter__(self) -> Iterator[EvalBatch]:
        rows = self._rows()
        for start in range(0, len(self.targets), self.batch_size):
            stop = min(start + rows.stop, len(self.targets))
            yield self._batch(np.arange(min(start + rows.start, stop), stop), rows.stop - rows.start)

    def _batch(self, which: np.ndarray, size: int) -> EvalBatch:
        history = self.targets.history
        ends = history.offsets[which + 1]
        lengths = np.minimum(history.lengths[which], self.max_length)
        row = np.arange(len(which))
        source = ragged_indices(ends - lengths, lengths)
        row_length = self.max_length + self.masked
        place = _Placer((size, row_length), ragged_indices(row * row_length, lengths))
        seen = np.full((size, self.seen_width), -1, np.int32)
        if self.filter_seen:
            once = history.take(which).distinct()  # some play a song a thousand times
            seen.reshape(-1)[ragged_indices(row * self.seen_width, once.lengths)] = once.items
        filled = slice(0, len(which))
        last, target, user = np.zeros(size, np.int32), np.zeros(size, np.int32), np.full(size, -1, np.int32)
        last[filled] = lengths if self.masked else np.maximum(lengths - 1, 0)
        target[filled] = self.targets.target[which]
        user[filled] = self.targets.user[which]
        layout = _layout(history, place, source, ends - lengths, lengths, np.ones(len(which), np.int64))
        return EvalBatch(
            item_ids=place(history.items[source]),
            layout=_with_hidden_last(layout, lengths) if self.masked else layout,
            last=last,
            targets=target,
            user=user,
            seen=seen,
        )


class _Placer:
    """Scatters values into a zero array `[rows, length]` at flat indices."""

    def __init__(self, shape: tuple[int, int], index: np.ndarray) -> None:
        self._shape, self._index = shape, index

    def __call__(self, values: Any, dtype: Any = np.int32) -> np.ndarray:
        out = np.zeros(self._shape, dtype)
        out.reshape(-1)[self._index] = values
        return out


def _layout(
    histories: Histories,
    place: _Placer,
    source: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    segments: np.ndarray,
) -> SequenceLayout:
    """The layout of sequences that begin at flat indices `starts` of the histories."""
    timestamp = None
    if histories.timestamps is not None:
        seconds = histories.timestamps[source] - histories.timestamps[np.repeat(starts, lengths)]
        timestamp = place(np.minimum(seconds, _INT32_MAX))
    return SequenceLayout(
        mask=place(True, np.bool_),
        segment=place(np.repeat(segments, lengths)),
        position=place(source - np.repeat(starts, lengths)),
        timestamp=timestamp,
    )


def _with_hidden_last(layout: SequenceLayout, lengths: Int[np.ndarray, "n"]) -> SequenceLayout:
    """The layout of rows of one history each with a hidden position behind them, at the newest item's time."""
    row = np.arange(len(lengths))
    hidden = np.zeros_like(layout.mask)
    hidden[row, lengths] = layout.mask[row, lengths] = True
    layout.segment[row, lengths] = 1
    layout.position[row, lengths] = lengths
    if layout.timestamp is not None:
        layout.timestamp[row, lengths] = layout.timestamp[row, np.maximum(lengths - 1, 0)]
    return layout._replace(hidden=hidden)


def _rows_of(share: Share, rows: int, what: str) -> slice:
    """The contiguous rows of a share."""
    index, shares = share
    if rows % shares:
        raise InputError(
            f"{rows} {what} can't be shared evenly between {shares} processes; "
            "set the batch size to a multiple of the number of processes."
        )
    size = rows // shares
    return slice(index * size, (index + 1) * size)
