"""Hidden items: their number, what decides where they are, and what batches of a masked backbone hold."""

from collections import Counter

import jax
import numpy as np
import pytest
from test_data_pipeline import assert_same, make_targets, random_histories

from spectran_jax.data import cloze
from spectran_jax.data.packing import draw_epoch, make_plan
from spectran_jax.data.pipeline import EvalBatches, TrainBatches

RATIO = 0.4
LENGTHS = np.r_[np.arange(40) % 15, 3, 3, 3, 3, 3]  # some too short, some longer than a row
L = 8


@pytest.fixture(scope="module")
def histories():
    return random_histories(LENGTHS)


def source(histories, *, packed=True, row_multiple=1, **options):
    plan = make_plan(histories.lengths, L, packed=packed, batch_size=6, row_multiple=row_multiple, mask_ratio=RATIO)
    return TrainBatches(histories, plan, **{"seed": 3, "epochs": 4, **options}), plan


def sequences(batch):
    """(items, hidden, times) of each segment."""
    for row, segments in enumerate(batch.layout.segment):
        for segment in range(1, segments.max(initial=0) + 1):
            at = np.flatnonzero(segments == segment)
            assert batch.layout.position[row, at].tolist() == list(range(len(at)))
            hidden = batch.layout.hidden[row, at]
            items = batch.targets[row, at]
            np.testing.assert_array_equal(batch.item_ids[row, at], np.where(hidden, 0, items))
            yield tuple(items.tolist()), tuple(hidden.tolist()), tuple(batch.layout.timestamp[row, at].tolist())


def number(length):
    """The documented number, for a history of this many kept items."""
    return min(max(1, int(RATIO * length + 0.5)), length - 1)


@pytest.mark.parametrize("packed", [True, False])
def test_every_history_stands_whole_in_a_batch_with_its_number_of_items_hidden(histories, packed):
    batches, plan = source(histories, packed=packed)
    found = []
    for step in range(plan.steps_per_epoch):
        batch = batches[step]
        assert batch.item_ids.shape == (plan.rows_per_step, L + 1)
        here = list(sequences(batch))
        found += here
        real = batch.supervised[batch.supervised < batch.item_ids.size]
        np.testing.assert_array_equal(real, np.flatnonzero(batch.layout.hidden))
        assert len(real) == sum(sum(hidden) for _, hidden, _ in here) <= plan.group_positions
        assert sum(len(items) for items, _, _ in here) <= plan.step_items
        np.testing.assert_array_equal(batch.items, batch.targets)
    kept = [histories[user][-L - 1 :] for user in range(len(histories)) if LENGTHS[user] >= 2]
    assert Counter(items for items, _, _ in found) == Counter(tuple(items.tolist()) for items in kept)
    assert sum(sum(hidden) for _, hidden, _ in found) == plan.positions
    assert all(times[0] == 0 for _, _, times in found)
    last = [hidden for _, hidden, _ in found if sum(hidden) != number(len(hidden))]
    assert all(hidden[-1] and sum(hidden) == 1 for hidden in last)
    assert sum(plan.slot_last_only) == int(cloze.LAST_ONLY * len(kept))
    assert len(last) <= sum(plan.slot_last_only)
    # The same share of every length, give or take one.
    for length in set(plan.slot_length.tolist()):
        of_length = plan.slot_last_only[plan.slot_length == length]
        assert abs(of_length.sum() - cloze.LAST_ONLY * len(of_length)) <= 1


def hidden_by_user(histories, epoch, **options):
    batches, plan = source(histories, **options)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return {items: hidden for step in steps for items, hidden, _ in sequences(batches[step])}


def test_what_is_hidden_depends_on_seed_epoch_and_user_alone(histories):
    want = hidden_by_user(histories, 1)
    assert hidden_by_user(histories, 1) == want
    assert hidden_by_user(histories, 1, packed=False, row_multiple=2) == want
    assert hidden_by_user(histories, 2) != want
    assert hidden_by_user(histories, 1, seed=4) != want


def test_processes_together_see_what_one_sees(histories):
    whole, plan = source(histories, row_multiple=2)
    parts = [source(histories, row_multiple=2, share=(i, 2))[0] for i in range(2)]
    for step in range(plan.steps_per_epoch):
        together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *[part[step] for part in parts])
        assert_same(together, whole[step])


def test_every_subset_is_as_likely_as_any_other():
    users = np.arange(60_000)
    ones = np.ones_like(users)
    hidden = cloze.hidden_positions(0, 0, users, 4 * ones, 2 * ones, users < 0).reshape(-1, 4)
    counts = Counter(map(tuple, hidden.tolist()))
    assert len(counts) == 6
    expected = len(users) / 6
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 20.5  # chi-squared, 5 degrees: p = 0.001
    # One user's draws, or one epoch's, say nothing of the next one's.
    assert abs(np.mean(hidden[1:, 0] == hidden[:-1, 0]) - 0.5) < 4 * 0.5 / np.sqrt(len(users))
    other = cloze.hidden_positions(0, 1, users, 4 * ones, 2 * ones, users < 0).reshape(-1, 4)
    assert abs(np.mean(other[:, 0] == hidden[:, 0]) - 0.5) < 4 * 0.5 / np.sqrt(len(users))


def test_an_epoch_fits_its_plan_whatever_the_devices():
    lengths = np.random.default_rng(0).geometric(1 / 6, 3000) + 2
    plan = make_plan(lengths, 20, packed=True, batch_size=64, row_multiple=4, mask_ratio=RATIO)
    epoch = draw_epoch(plan, 0, 0)
    share = plan.rows_per_step // plan.groups
    for first, last in zip(epoch.step_offsets[:-1], epoch.step_offsets[1:], strict=True):
        rows = epoch.row_order[first:last]
        assert plan.row_items()[rows].sum() <= plan.step_items
        for start in range(0, len(rows), share):
            assert plan.row_positions()[rows[start : start + share]].sum() <= plan.group_positions
    assert plan.group_positions < 0.5 * share * plan.row_length


def test_evaluation_puts_a_hidden_position_behind_the_history():
    lengths = [0, 3, L - 1, L, L + 5]
    targets = make_targets(lengths)
    (batch,) = EvalBatches(targets, max_length=L, batch_size=len(lengths) + 1, filter_seen=True, masked=True)
    layout = batch.layout
    assert batch.item_ids.shape == (len(lengths) + 1, L + 1)
    for row, length in enumerate(lengths):
        kept = targets.history[row][-L:]
        end = len(kept)
        assert batch.last[row] == end
        assert batch.item_ids[row].tolist() == kept.tolist() + [0] * (L + 1 - end)
        for array in (layout.mask, layout.segment):
            assert array[row].tolist() == [1] * (end + 1) + [0] * (L - end)
        assert layout.position[row, : end + 1].tolist() == list(range(end + 1))
        assert np.flatnonzero(layout.hidden[row]).tolist() == [end]
        assert layout.timestamp[row, end] == layout.timestamp[row, max(end - 1, 0)]
        assert (batch.seen[row] >= 0).sum() == length
    assert not layout.mask[-1].any()
    assert not layout.hidden[-1].any()
