import json
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectran_jax.config import DataConfig
from spectran_jax.data.interactions import Histories
from spectran_jax.data.packing import make_plan
from spectran_jax.data.pipeline import EvalBatches, TrainBatches, train_iterator
from spectran_jax.data.splits import Targets
from spectran_jax.errors import InputError


def random_histories(lengths, seed=0, timestamps=True):
    rng = np.random.default_rng(seed)
    items = [rng.integers(0, 1000, n) for n in lengths]
    return Histories.from_lists(items, [np.cumsum(rng.integers(0, 90, n)) for n in lengths] if timestamps else None)


def sequences(batch):
    """(inputs, targets, times) of each segment, and checks of the layout on the way."""
    layout = batch.layout
    np.testing.assert_array_equal(layout.mask, layout.segment > 0)
    for padding in (batch.item_ids, batch.targets, layout.segment, layout.position):
        assert padding.dtype == np.int32
        assert not padding[~layout.mask].any()
    # Every item has a target, and the loss is taken there and nowhere else.
    groups = layout.mask.reshape(len(batch.supervised), -1)
    for at, group in zip(batch.supervised, groups, strict=True):
        np.testing.assert_array_equal(at[at < len(group)], np.flatnonzero(group))
        assert np.all(np.diff(at[at < len(group)]) > 0)
    found = []
    for row in range(len(batch.item_ids)):
        segments = layout.segment[row]
        assert set(segments[segments > 0]) == set(range(1, segments.max(initial=0) + 1))
        for segment in range(1, segments.max(initial=0) + 1):
            at = np.flatnonzero(segments == segment)
            assert np.all(np.diff(at) == 1)
            assert layout.position[row, at].tolist() == list(range(len(at)))
            times = () if layout.timestamp is None else tuple(layout.timestamp[row, at].tolist())
            found.append((tuple(batch.item_ids[row, at].tolist()), tuple(batch.targets[row, at].tolist()), times))
    return found


def expected_sequences(histories, max_length):
    out = []
    for user in range(len(histories)):
        items = histories[user].tolist()
        if len(items) < 2:
            continue
        times = ()
        if histories.timestamps is not None:
            start, end = histories.offsets[user : user + 2]
            kept = histories.timestamps[start:end][:-1][-max_length:]
            times = tuple((kept - kept[0]).tolist())
        out.append((tuple(items[:-1][-max_length:]), tuple(items[1:][-max_length:]), times))
    return out


def plan_of(histories, max_length, batch_size, *, packed=True, row_multiple=1):
    return make_plan(histories.lengths, max_length, packed=packed, batch_size=batch_size, row_multiple=row_multiple)


def source(histories, config, *, batch_size, row_multiple=1, **options):
    plan = plan_of(histories, config.max_length, batch_size, packed=config.packing, row_multiple=row_multiple)
    return TrainBatches(histories, plan, **{"seed": 0, "epochs": 1, **options}), plan


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=30).filter(lambda ls: max(ls) >= 2),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 2),
)
def test_an_epoch_holds_every_sequence_once(lengths, max_length, packed, timed, batch_size, epoch):
    histories = random_histories(lengths, timestamps=timed)
    batches, plan = source(
        histories, DataConfig(max_length=max_length, packing=packed), batch_size=batch_size, epochs=epoch + 1
    )
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    taken = [batches[step] for step in steps]
    assert {batch.item_ids.shape for batch in taken} == {(plan.rows_per_step, max_length)}
    assert all(batch.layout.mask.any() for batch in taken)
    found = [sequence for batch in taken for sequence in sequences(batch)]
    assert Counter(found) == Counter(expected_sequences(histories, max_length))
    assert sum(int(batch.layout.mask.sum()) for batch in taken) == plan.positions


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 15), min_size=1, max_size=40), st.integers(1, 16), st.booleans())
def test_processes_together_see_what_one_sees(lengths, batch_size, packed):
    histories = random_histories(lengths)
    config = DataConfig(max_length=8, packing=packed)
    whole, plan = source(histories, config, batch_size=batch_size, row_multiple=4)
    for count in (2, 4):
        parts = [
            source(histories, config, batch_size=batch_size, row_multiple=4, share=(i, count))[0] for i in range(count)
        ]
        for step in range(plan.steps_per_epoch):
            together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *[part[step] for part in parts])
            assert_same(together, whole[step])


def test_iterator_goes_on_in_the_middle_of_an_epoch():
    histories = random_histories(np.arange(60) % 17 + 2)
    plan, options = plan_of(histories, 10, 8), {"seed": 5, "epochs": 3}
    iterator = train_iterator(histories, plan, **options)
    assert iterator.steps_per_epoch == 8
    stream = list(iterator)
    assert len(stream) == 3 * 8
    with pytest.raises(StopIteration):
        next(iterator)
    for stop in (0, 3, 8, 13, 23, 24):
        first = train_iterator(histories, plan, **options)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        second = train_iterator(histories, plan, **options)
        next(second)  # has already prefetched something else
        second.set_state(state)
        rest = list(second)
        assert len(rest) == len(stream) - stop
        for mine, uninterrupted in zip(rest, stream[stop:], strict=True):
            assert_same(mine, uninterrupted)


def test_iterator_is_one_that_grain_can_checkpoint(tmp_path):
    import grain
    import orbax.checkpoint as ocp

    histories = random_histories(np.full(20, 5))
    plan = plan_of(histories, 10, 4)
    iterator = train_iterator(histories, plan, seed=0, epochs=2)
    for _ in range(3):
        next(iterator)
    manager = ocp.CheckpointManager(tmp_path)
    manager.save(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
    manager.wait_until_finished()
    expected = next(iterator)
    other = train_iterator(histories, plan, seed=0, epochs=2)
    manager.restore(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
    assert_same(next(other), expected)
    manager.close()


def test_each_epoch_and_each_seed_has_its_own_order():
    histories, config = random_histories(np.full(40, 5)), DataConfig(max_length=8)
    batches, plan = source(histories, config, batch_size=40, epochs=2)
    other, _ = source(histories, config, batch_size=40, seed=1)
    assert plan.steps_per_epoch == 1
    assert len({batch.item_ids.tobytes() for batch in (batches[0], batches[1], other[0])}) == 3


def test_iterator_states_its_plan():
    histories = random_histories([5, 5, 1, 12])
    iterator = train_iterator(histories, plan_of(histories, 8, 2, row_multiple=2), seed=0, epochs=1)
    assert (iterator.steps_per_epoch, iterator.positions) == (2, 4 + 4 + 8)


def test_differences_in_time_that_int32_lacks_saturate():
    histories = Histories.from_lists([[1, 2, 3]], [[0, 2**40, 2**41]])
    batch = source(histories, DataConfig(max_length=4), batch_size=1)[0][0]
    assert batch.layout.timestamp.tolist() == [[0, 2**31 - 1, 0, 0]]


def test_rows_that_processes_cannot_share():
    histories = random_histories([5] * 3)
    with pytest.raises(InputError, match="3 batch rows can't be shared evenly between 2 processes"):
        train_iterator(histories, plan_of(histories, 4, 3), seed=0, epochs=1, share=(0, 2))


def make_targets(lengths, **options):
    history = random_histories(lengths, **options)
    n = len(history)
    return Targets(history, np.arange(2000, 2000 + n, dtype=np.int32), np.arange(n, dtype=np.int32) * 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=20), st.integers(1, 30), st.integers(1, 8), st.booleans())
def test_eval_batches_against_brute_force(lengths, max_length, batch_size, timed):
    targets = make_targets(lengths, timestamps=timed)
    batches = EvalBatches(targets, max_length=max_length, batch_size=batch_size, filter_seen=True)
    rows = []
    seen = [list(dict.fromkeys(targets.history[index].tolist())) for index in range(len(lengths))]
    width = -(-max(map(len, seen)) // 64) * 64
    for batch in batches:
        assert batch.item_ids.shape == (batch_size, max_length)
        assert batch.seen.shape == (batch_size, width)
        rows += [jax.tree.map(lambda array, i=i: array[i], batch) for i in range(batch_size)]
    assert len(batches) * batch_size == len(rows)
    for index, row in enumerate(rows):
        if index >= len(lengths):
            assert row.user == -1
            assert not row.layout.mask.any()
            assert np.all(row.seen == -1)
            continue
        items = targets.history[index].tolist()
        kept = items[-max_length:]
        assert (row.user, row.targets) == (index * 3, 2000 + index)
        assert row.last == max(len(kept) - 1, 0)
        assert row.item_ids.tolist() == kept + [0] * (max_length - len(kept))
        assert row.layout.mask.tolist() == [k < len(kept) for k in range(max_length)]
        assert row.layout.segment.tolist() == [int(k < len(kept)) for k in range(max_length)]
        assert row.layout.position[: len(kept)].tolist() == list(range(len(kept)))
        assert row.seen.tolist() == seen[index] + [-1] * (width - len(seen[index]))
        if timed:
            times = targets.history.timestamps[targets.history.offsets[index] :][: len(items)][-max_length:]
            assert row.layout.timestamp[: len(kept)].tolist() == [int(t - times[0]) for t in times]
        else:
            assert row.layout.timestamp is None


def test_eval_batches_of_processes_together_equal_the_whole():
    targets = make_targets([4, 9, 2, 7, 5])
    options = {"max_length": 6, "batch_size": 4, "filter_seen": True}
    whole = list(EvalBatches(targets, **options))
    parts = [list(EvalBatches(targets, **options, share=(i, 2))) for i in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 2
    for batch, *shares in zip(whole, *parts, strict=True):
        assert_same(jax.tree.map(lambda *arrays: np.concatenate(arrays), *shares), batch)


def test_eval_batches_can_be_read_twice_and_hold_no_seen_items_unless_asked():
    batches = EvalBatches(make_targets([3, 4]), max_length=3, batch_size=2)
    (first,), (second,) = list(batches), list(batches)
    assert_same(first, second)
    assert first.seen.shape == (2, 0)


def test_seen_has_one_width_for_all_parts_of_a_split():
    valid, test = (Targets(Histories.from_lists([range(n)]), np.zeros(1), np.zeros(1)) for n in (63, 65))
    sizes = {"max_length": 50, "batch_size": 2}
    widths = [EvalBatches(t, **sizes, filter_seen=True, most_items=66).seen_width for t in (valid, test)]
    assert widths == [128, 128]
    assert EvalBatches(valid, **sizes, filter_seen=True).seen_width == 64
    assert EvalBatches(valid, **sizes, most_items=66).seen_width == 0


def test_seen_has_no_room_for_repeats():
    targets = Targets(Histories.from_lists([[1, 2], [4, 5] * 500]), np.zeros(2, np.int32), np.arange(2, dtype=np.int32))
    (batch,) = EvalBatches(targets, max_length=50, batch_size=2, filter_seen=True)
    assert batch.seen.shape == (2, 64)
    assert batch.seen[:, :3].tolist() == [[1, 2, -1], [4, 5, -1]]


def test_eval_batch_size_below_one():
    with pytest.raises(InputError, match="--eval_batch_size must be at least 1"):
        EvalBatches(make_targets([3]), max_length=50, batch_size=0)
