"""Who is trained on what, and what is ranked afterwards: leave-one-out, or cuts in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from spectran_jax.config import DataConfig
from spectran_jax.data.interactions import Dataset, Histories
from spectran_jax.errors import InputError, unknown_name

LEAVE_ONE_OUT_MINIMUM = 3
"""A user needs a training item, a validation target and a test target."""


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """One item to be ranked for each of n users, after a history."""

    history: Histories
    """n histories, everything before the target."""
    target: Int[np.ndarray, "n"]
    """int32 dense item ids."""
    user: Int[np.ndarray, "n"]
    """int32 dense users."""

    def __len__(self) -> int:
        return len(self.target)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A data set cut into training, validation and test."""

    train: Histories
    """The training part of every user; may be empty for some."""
    item_counts: Int[np.ndarray, "N"]
    """int32 times that each item stands in a training sequence, i.e. in the last `max_length` + 1 training items of a
    user who has at least two; 0 marks a cold item, which training never sees."""
    valid: Targets
    test: Targets
    tied_targets: dict[str, int]
    """`count` of the `total` test targets are decided by a tie in time that no position breaks, but file order."""


def split(dataset: Dataset, config: DataConfig) -> Split:
    """Cuts `dataset` as `config.split` says.

    `leave_one_out`: the last item of each user is the test target, the one before it the validation target, the
    rest is training; the test history includes the validation item. Users with fewer than three interactions take
    no part. `temporal`: training is everything before T1, each user's first item in [T1, T2) is a validation
    target and the first from T2 on a test target, each with everything before it as history; users without any
    history at that point give no target. Ties in time, and position if any, keep file order. `config.holdout_items`
    then takes a share of the items out of the training histories; evaluation keeps them as candidates, as targets and
    in histories.

    Raises:
      InputError: for an unknown split, missing timestamps, T1 >= T2, or a part that comes out empty.
    """
    if config.split not in _SPLITS:
        raise unknown_name("split", config.split, _SPLITS)
    result = _SPLITS[config.split](dataset, config)
    empty = [
        name
        for name, size in (
            ("training", len(result.train.items)),
            ("validation", len(result.valid)),
            ("test", len(result.test)),
        )
        if not size
    ]
    if empty:
        raise InputError(
            f"{_source(dataset, config)}: the {config.split} split leaves nothing for {' and '.join(empty)}; give more "
            "interactions, or cut elsewhere (--split, --valid_time, --test_time)."
        )
    return result


def _source(dataset: Dataset, config: DataConfig) -> str:
    """Where the interactions come from, for messages."""
    return config.interactions or dataset.name


def _leave_one_out(dataset: Dataset, config: DataConfig) -> Split:
    histories = dataset.histories
    users = np.flatnonzero(histories.lengths >= LEAVE_ONE_OUT_MINIMUM)
    last = histories.offsets[users + 1] - 1
    return _assemble(
        dataset,
        config,
        train_lengths=np.where(histories.lengths >= LEAVE_ONE_OUT_MINIMUM, histories.lengths - 2, 0),
        valid=_targets(histories, users, last - 1),
        test=_targets(histories, users, last),
        tied=_tied(histories, last),
    )


def _temporal(dataset: Dataset, config: DataConfig) -> Split:
    histories = dataset.histories
    times = histories.timestamps
    if times is None:
        raise InputError(
            f"{_source(dataset, config)}: --split=temporal needs a timestamp column; these interactions have none."
        )
    valid_time, test_time = temporal_cuts(times, config)
    if not valid_time < test_time:
        raise InputError(
            f"{_source(dataset, config)}: --split=temporal needs validation to begin before the test, got "
            f"T1 = {valid_time:g} and T2 = {test_time:g}; set --valid_time below --test_time."
        )
    starts, ends = histories.offsets[:-1], histories.offsets[1:]
    # Histories are in order of time, so the number of early interactions is where the cut falls.
    first_valid = starts + _count_per_row(times < valid_time, histories.offsets)
    first_test = starts + _count_per_row(times < test_time, histories.offsets)
    valid_users = np.flatnonzero((first_valid < first_test) & (first_valid > starts))
    test_users = np.flatnonzero((first_test < ends) & (first_test > starts))
    at = first_test[test_users]
    tied = (at + 1 < ends[test_users]) & _tied(histories, np.minimum(at + 1, len(times) - 1))
    return _assemble(
        dataset,
        config,
        train_lengths=first_valid - starts,
        valid=_targets(histories, valid_users, first_valid[valid_users]),
        test=_targets(histories, test_users, at),
        tied=tied,
    )


def _targets(histories: Histories, users: np.ndarray, at: np.ndarray) -> Targets:
    """The items at these flat indices, one a user, after all that stands before them."""
    starts = histories.offsets[users]
    return Targets(histories.slices(starts, at - starts), histories.items[at], users.astype(np.int32))


def _tied(histories: Histories, at: np.ndarray) -> Bool[np.ndarray, "n"]:
    """Whether nothing but file order puts the interactions at these flat indices behind those before them."""
    if histories.timestamps is None:
        return np.zeros(len(at), bool)
    same: np.ndarray = histories.timestamps[at] == histories.timestamps[at - 1]
    return same if histories.placed is None else same & ~histories.placed[at]


def temporal_cuts(times: Int[np.ndarray, "nnz"], config: DataConfig) -> tuple[float, float]:
    """T1 and T2: as configured, or the times of the interactions that stand at 80 % and 90 % of all."""
    ordered = np.sort(times)
    at = lambda share: float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])  # noqa: E731
    return config.valid_time or at(0.8), config.test_time or at(0.9)


def _assemble(
    dataset: Dataset, config: DataConfig, *, train_lengths: np.ndarray, valid: Targets, test: Targets, tied: np.ndarray
) -> Split:
    """The split whose training part is the first `train_lengths` items of each user, less what is held out."""
    histories = dataset.histories
    train = histories.slices(histories.offsets[:-1], train_lengths)
    counts = _sequence_counts(train, dataset.num_items, config.max_length)
    if config.holdout_items:
        held = held_out(counts, config.holdout_items, config.holdout_seed)
        train = train.where(~held[train.items])
        counts = _sequence_counts(train, dataset.num_items, config.max_length)

    return Split(
        train=train,
        item_counts=counts,
        valid=valid,
        test=test,
        tied_targets={"count": int(tied.sum()), "total": len(test)},
    )


def held_out(counts: Int[np.ndarray, "N"], share: float, seed: int) -> Bool[np.ndarray, "N"]:
    """The items to take out of training: `share` of those that are in it, at least one, drawn by `seed` alone."""
    trained = np.flatnonzero(counts)
    held = np.zeros(len(counts), bool)
    held[np.random.default_rng(seed).permutation(trained)[: max(1, round(share * len(trained)))]] = True
    return held


def _sequence_counts(train: Histories, num_items: int, max_length: int) -> Int[np.ndarray, "N"]:
    """Times that each item stands in what training reads of the histories: inputs and targets, nothing older."""
    kept = np.where(train.lengths >= 2, np.minimum(train.lengths, max_length + 1), 0)
    sequences = train.slices(train.offsets[1:] - kept, kept)
    return np.bincount(sequences.items, minlength=num_items).astype(np.int32)


def _count_per_row(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Number of set flags in each row, int64."""
    return np.diff(np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])[offsets])


_SPLITS: dict[str, Callable[[Dataset, DataConfig], Split]] = {
    "leave_one_out": _leave_one_out,
    "temporal": _temporal,
}
