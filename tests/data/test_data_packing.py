from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectran_jax.data import packing
from spectran_jax.errors import InputError

lengths_of_users = st.lists(st.integers(0, 30), min_size=1, max_size=60).filter(lambda ls: max(ls) >= 2)
plans = st.fixed_dictionaries(
    {
        "lengths": lengths_of_users,
        "max_length": st.integers(1, 24),
        "packed": st.booleans(),
        "batch_size": st.integers(1, 20),
        "row_multiple": st.integers(1, 4),
    }
)


def make(options):
    options = dict(options)
    return packing.make_plan(np.array(options.pop("lengths")), options.pop("max_length"), **options)


@settings(max_examples=80, deadline=None)
@given(plans, st.integers(0, 5), st.integers(0, 3))
def test_every_user_once_and_no_slot_crosses_a_border(options, seed, number):
    plan = make(options)
    slot_user = plan.users[packing.draw_epoch(plan, seed, number).slot_sequence]
    lengths, max_length = options["lengths"], options["max_length"]
    assert sorted(slot_user.tolist()) == [u for u, n in enumerate(lengths) if n >= 2]
    # A slot has room for exactly its user's sequence.
    assert plan.slot_length.tolist() == [min(lengths[u] - 1, max_length) for u in slot_user]
    for row in range(plan.num_rows):
        slots = range(plan.row_offsets[row], plan.row_offsets[row + 1])
        assert len(slots) >= 1
        free = 0
        for slot in slots:
            assert plan.slot_start[slot] == free
            free += int(plan.slot_length[slot])
        assert free <= max_length
        if not options["packed"]:
            assert len(slots) == 1


@settings(max_examples=100, deadline=None)
@given(plans, st.integers(0, 5))
def test_steps_share_the_rows_evenly(options, seed):
    plan = make(options)
    epoch = packing.draw_epoch(plan, seed, 0)
    sizes = np.diff(epoch.step_offsets)
    users = sum(n >= 2 for n in options["lengths"])
    assert plan.steps_per_epoch == min(-(-users // options["batch_size"]), plan.num_rows)
    assert len(sizes) == plan.steps_per_epoch
    assert sizes.sum() == plan.num_rows
    assert 1 <= sizes.min() <= sizes.max() <= plan.rows_per_step
    assert sizes.max() - sizes.min() <= 1
    assert plan.rows_per_step % options["row_multiple"] == 0
    assert plan.rows_per_step < sizes.max() + options["row_multiple"]
    assert sorted(epoch.row_order.tolist()) == list(range(plan.num_rows))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=16))
def test_best_fit_equals_the_plain_algorithm(counts):
    capacity = len(counts) - 1
    counts = [0, *counts[1:]]
    rooms: list[int] = []
    for length in range(capacity, 0, -1):
        for _ in range(counts[length]):
            fitting = [room for room in rooms if room >= length]
            best = min(fitting, default=capacity)
            if fitting:
                rooms.remove(best)
            rooms.append(best - length)
    groups = packing.best_fit(np.array(counts), capacity)
    mine = Counter()
    placed = Counter()
    for lengths, rows in groups:
        mine[capacity - sum(lengths)] += rows
        placed.update({n: c * rows for n, c in Counter(lengths).items()})
    assert mine == Counter(rooms)
    assert placed == Counter({n: c for n, c in enumerate(counts) if c})


def test_epochs_differ_seeds_differ_and_both_repeat():
    plan = packing.make_plan(np.full(200, 6), 20, packed=True, batch_size=16)
    drawn = {(s, e): packing.draw_epoch(plan, s, e).slot_sequence.tolist() for s in (0, 1) for e in (0, 1)}
    assert len({tuple(users) for users in drawn.values()}) == 4
    assert packing.draw_epoch(plan, 1, 1).slot_sequence.tolist() == drawn[1, 1]


def test_order_does_not_depend_on_the_number_of_devices():
    lengths = np.arange(2, 150) % 23
    plans = [packing.make_plan(lengths, 20, packed=True, batch_size=8, row_multiple=m) for m in (1, 4)]
    one, four = (packing.draw_epoch(plan, 3, 2) for plan in plans)
    assert plans[0].steps_per_epoch == plans[1].steps_per_epoch
    np.testing.assert_array_equal(one.slot_sequence, four.slot_sequence)
    np.testing.assert_array_equal(one.row_order, four.row_order)
    np.testing.assert_array_equal(one.step_offsets, four.step_offsets)


def test_short_histories_pack_tightly():
    lengths = np.random.default_rng(0).geometric(1 / 6, 20_000) + 2
    plan = packing.make_plan(lengths, 20, packed=True, batch_size=256)
    assert plan.positions == np.minimum(lengths - 1, 20).sum()
    assert plan.fill > 0.95


@settings(max_examples=100, deadline=None)
@given(plans, st.integers(0, 5))
def test_no_step_holds_more_than_the_plan_says(options, seed):
    plan = make(options)
    epoch = packing.draw_epoch(plan, seed, 0)
    positions, items = plan.row_positions(), plan.row_items()
    share = plan.rows_per_step // plan.groups
    for first, last in zip(epoch.step_offsets[:-1], epoch.step_offsets[1:], strict=True):
        rows = epoch.row_order[first:last]
        assert items[rows].sum() <= plan.step_items
        for start in range(0, len(rows), share):
            assert positions[rows[start : start + share]].sum() <= plan.group_positions
    assert plan.group_positions <= share * plan.row_length


def test_capacities_are_tight_and_survive_a_heavy_tail():
    """Short rows: far less than a full batch. A few long among many short: an order that fits is found at once."""
    lengths = np.random.default_rng(0).geometric(1 / 6, 20_000) + 2
    plan = packing.make_plan(lengths, 20, packed=False, batch_size=256)
    assert plan.group_positions < 0.7 * 256 * 20
    heavy = np.where(np.arange(20_000) % 1000 == 0, 200, 2)
    plan = packing.make_plan(heavy, 200, packed=False, batch_size=4)
    assert plan.group_positions < 800
    for epoch in range(3):
        packing.draw_epoch(plan, 0, epoch)


def test_a_sequence_longer_than_the_window():
    with pytest.raises(InputError, match=r"A sequence of 7 positions does not fit into rows of --max_length=5"):
        packing.best_fit(np.array([0, 1, 0, 0, 0, 2, 0, 1]), 5)


def test_nothing_to_learn_from():
    with pytest.raises(InputError, match="No user has two training items"):
        packing.make_plan(np.array([1, 0, 1]), 5, packed=True, batch_size=4)


@pytest.mark.parametrize("name", ["max_length", "batch_size"])
def test_sizes_below_one(name):
    options = {"max_length": 5, "batch_size": 4, name: 0}
    with pytest.raises(InputError, match=f"--{name} must be at least 1, got 0"):
        packing.make_plan(np.array([3]), options["max_length"], packed=True, batch_size=options["batch_size"])
