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


def source(histories, *, packed=True, row_multiple=1, prefixes=1, mask_ratio=RATIO, **options):
    shape = {"packed": packed, "row_multiple": row_multiple, "batch_size": 6}
    plan = make_plan(histories.lengths, L, **shape, mask_ratio=mask_ratio, prefixes=prefixes)
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


def ends(length, most):
    """Where the sequences of a history of this many items end: n, and the others below it at equal distances."""
    count = min(most, length - 1)
    return [length - i * (length - 1) // count for i in range(count)]


@pytest.mark.parametrize(("packed", "prefixes"), [(True, 1), (False, 1), (True, 3), (True, 99)])
def test_an_epoch_holds_every_sequence_with_its_number_of_items_hidden(histories, packed, prefixes):
    batches, plan = source(histories, packed=packed, prefixes=prefixes)
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
        assert (batch.layout.user is None) == (prefixes == 1)
        if batch.layout.user is not None:
            for row, segments in enumerate(batch.layout.segment):
                for segment in range(1, segments.max(initial=0) + 1):
                    at = np.flatnonzero(segments == segment)
                    (user,) = set(batch.layout.user[row, at].tolist())
                    begins = histories[user][-L - 1 :][: len(at)]
                    np.testing.assert_array_equal(batch.targets[row, at], begins)
    users = [user for user in range(len(histories)) if LENGTHS[user] >= 2]
    read = {user: histories[user][-L - 1 :] for user in users}
    kept = [read[user][:end] for user in users for end in ends(len(read[user]), prefixes)]
    assert Counter(items for items, _, _ in found) == Counter(tuple(items.tolist()) for items in kept)
    assert sum(sum(hidden) for _, hidden, _ in found) == plan.positions
    assert all(times[0] == 0 for _, _, times in found)
    last = [hidden for _, hidden, _ in found if sum(hidden) != number(len(hidden))]
    assert all(hidden[-1] and sum(hidden) == 1 for hidden in last)
    random = ~plan.slot_last_only
    assert abs(sum(random) - cloze.RANDOM * len(users)) <= 1
    assert len(last) <= sum(plan.slot_last_only)
    # The same share of every length, give or take one.
    for length in set(plan.slot_length.tolist()):
        of_length = random[plan.slot_length == length]
        assert abs(of_length.sum() - random.mean() * len(of_length)) <= 1
    # As many updates as with whole histories alone.
    assert plan.steps_per_epoch == min(-(-len(users) // 6), plan.num_rows)


@pytest.mark.parametrize("prefixes", [1, 3])
def test_at_a_share_of_zero_every_sequence_hides_its_last_item(histories, prefixes):
    batches, plan = source(histories, prefixes=prefixes, mask_ratio=0.0)
    found = [hidden for step in range(plan.steps_per_epoch) for _, hidden, _ in sequences(batches[step])]
    assert len(found) == len(plan.users) == plan.positions
    assert all(hidden[-1] and sum(hidden) == 1 for hidden in found)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 40])
def test_sequences_are_the_history_and_beginnings_of_two_items_or_more_evenly_spread(most):
    user, behind = cloze.prefixes(LENGTHS, most)
    for u, length in enumerate(LENGTHS.tolist()):
        found = [length - b for b in behind[user == u].tolist()]
        assert found == (ends(length, most) if length >= 2 else [])
        assert len(set(found)) == len(found)
        if found:
            assert found[0] == length
            assert min(found) >= 2
            gaps = -np.diff([*found, 1])
            assert gaps.max() - gaps.min() <= 1


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


@pytest.mark.parametrize("prefixes", [1, 5])
def test_processes_together_see_what_one_sees(histories, prefixes):
    whole, plan = source(histories, row_multiple=2, prefixes=prefixes)
    parts = [source(histories, row_multiple=2, prefixes=prefixes, share=(i, 2))[0] for i in range(2)]
    for step in range(plan.steps_per_epoch):
        together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *[part[step] for part in parts])
        assert_same(together, whole[step])


def test_every_subset_is_as_likely_as_any_other():
    users = np.arange(60_000)
    ones = np.ones_like(users)
    sizes = (4 * ones, 2 * ones, users < 0)
    hidden = cloze.hidden_positions(0, 0, users, 0 * ones, *sizes).reshape(-1, 4)
    counts = Counter(map(tuple, hidden.tolist()))
    assert len(counts) == 6
    expected = len(users) / 6
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 20.5  # chi-squared, 5 degrees: p = 0.001
    # One user's draws say nothing of the next one's, nor those of an epoch or an end of another's.
    next_epoch = cloze.hidden_positions(0, 1, users, 0 * ones, *sizes).reshape(-1, 4)
    shorter = cloze.hidden_positions(0, 0, users, ones, *sizes).reshape(-1, 4)
    for other in (np.roll(hidden, 1, axis=0), next_epoch, shorter):
        assert abs(np.mean(other[:, 0] == hidden[:, 0]) - 0.5) < 4 * 0.5 / np.sqrt(len(users))


def test_an_epoch_fits_its_plan_whatever_the_devices():
    lengths = np.random.default_rng(0).geometric(1 / 6, 3000) + 2
    plan = make_plan(lengths, 20, packed=True, batch_size=64, row_multiple=4, mask_ratio=RATIO, prefixes=4)
    epoch = draw_epoch(plan, 0, 0)
    share = plan.rows_per_step // plan.groups
    for first, last in zip(epoch.step_offsets[:-1], epoch.step_offsets[1:], strict=True):
        rows = epoch.row_order[first:last]
        assert plan.row_items()[rows].sum() <= plan.step_items
        for start in range(0, len(rows), share):
            assert plan.row_positions()[rows[start : start + share]].sum() <= plan.group_positions
    assert plan.group_positions < 0.5 * share * plan.row_length
    assert len(plan.users) == np.minimum(lengths - 1, 4).sum()


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
