import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_interactions import make_dataset

from spectran_jax import data
from spectran_jax.config import Config, DataConfig
from spectran_jax.data.splits import split
from spectran_jax.errors import InputError

LEAVE_ONE_OUT = DataConfig()
TEMPORAL = DataConfig(split="temporal")


@st.composite
def histories(draw):
    """Rows of items and of times that do not fall, with many ties."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=2, max_size=8))
    rows = [draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)) for n in lengths]
    times = [sorted(draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))) for n in lengths]
    return rows, times


def as_lists(targets):
    return [
        (int(u), targets.history[i].tolist(), int(t))
        for i, (u, t) in enumerate(zip(targets.user, targets.target, strict=True))
    ]


@settings(max_examples=50, deadline=None)
@given(histories())
def test_leave_one_out_against_brute_force(data):
    rows, times = data
    kept = [(u, row, t) for u, (row, t) in enumerate(zip(rows, times, strict=True)) if len(row) >= 3]
    if not kept:
        return
    result = split(make_dataset(rows, times, num_items=6), LEAVE_ONE_OUT)
    assert as_lists(result.valid) == [(u, row[:-2], row[-2]) for u, row, _ in kept]
    assert as_lists(result.test) == [(u, row[:-1], row[-1]) for u, row, _ in kept]
    train = [row[:-2] if len(row) >= 3 else [] for row in rows]
    assert [result.train[u].tolist() for u in range(len(rows))] == train
    sequences = [row for row in train if len(row) >= 2]
    assert result.item_counts.tolist() == [sum(row.count(i) for row in sequences) for i in range(6)]
    assert result.tied_targets == {"count": sum(t[-1] == t[-2] for _, _, t in kept), "total": len(kept)}


@settings(max_examples=50, deadline=None)
@given(histories(), st.integers(2, 6), st.integers(7, 12))
def test_temporal_against_brute_force(data, first, second):
    rows, times = data
    train = [[i for i, t in zip(r, ts, strict=True) if t < first] for r, ts in zip(rows, times, strict=True)]

    def targets(begin, end):
        out, ties = [], 0
        for u, (row, ts) in enumerate(zip(rows, times, strict=True)):
            inside = [k for k, t in enumerate(ts) if begin <= t < end]
            if inside and inside[0] > 0:
                at = inside[0]
                out.append((u, row[:at], row[at]))
                ties += at + 1 < len(ts) and ts[at + 1] == ts[at]
        return out, ties

    valid, _ = targets(first, second)
    test, ties = targets(second, 10**9)
    config = DataConfig(split="temporal", valid_time=first, test_time=second)
    dataset = make_dataset(rows, times, num_items=6) if any(rows) else None
    if dataset is None:
        return
    if not (any(train) and valid and test):
        with pytest.raises(InputError, match="leaves nothing for"):
            split(dataset, config)
        return
    result = split(dataset, config)
    assert [result.train[u].tolist() for u in range(len(rows))] == train
    assert as_lists(result.valid) == valid
    assert as_lists(result.test) == test
    assert result.tied_targets == {"count": ties, "total": len(test)}


def test_temporal_cuts_default_to_quantiles():
    rows = [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    times = [list(range(1, 20, 2)), list(range(2, 21, 2))]
    result = split(make_dataset(rows, times), TEMPORAL)
    # 20 interactions at times 1 to 20: T1 = 17, T2 = 19.
    assert result.train.lengths.tolist() == [8, 8]
    assert as_lists(result.valid) == [(0, rows[0][:8], 3), (1, rows[1][:8], 3)]
    assert as_lists(result.test) == [(0, rows[0][:9], 4), (1, rows[1][:9], 4)]


def test_the_first_interaction_of_the_next_user_ties_with_nobody():
    dataset = make_dataset([[0, 1, 2, 3], [3, 1, 2, 0]], [[1, 2, 5, 7], [7, 8, 9, 10]])
    result = split(dataset, DataConfig(split="temporal", valid_time=5, test_time=7))
    assert as_lists(result.test) == [(0, [0, 1, 2], 3)]
    assert result.tied_targets == {"count": 0, "total": 1}


def test_ties_keep_file_order():
    result = split(make_dataset([[4, 2, 3]], [[7, 7, 7]]), LEAVE_ONE_OUT)
    assert as_lists(result.test) == [(0, [4, 2], 3)]
    assert result.tied_targets == {"count": 1, "total": 1}


@pytest.mark.parametrize(("positions", "count"), [([0, 1, 2], 0), ([0, 1, 1], 1)])
@pytest.mark.parametrize("config", [LEAVE_ONE_OUT, DataConfig(split="temporal", valid_time=5, test_time=7)])
def test_a_tie_in_time_that_a_position_breaks_is_none(positions, count, config, tmp_path):
    """All of the way: as read from files, prepared, and read back."""
    times = [7, 7, 7] if config is LEAVE_ONE_OUT else [4, 7, 7]
    rows = [f"u,{item},{time},{position}" for item, time, position in zip("abc", times, positions, strict=True)]
    rows += ["v,a,1,0", "v,b,5,0", "v,c,9,0"]
    (tmp_path / "i.csv").write_text("\n".join(["user_id,item_id,timestamp,position", *rows]))
    (tmp_path / "items.csv").write_text("item_id\na\nb\nc\n")
    paths = {name: str(tmp_path / name) for name in ("i.csv", "items.csv")}
    options = {"interactions": paths["i.csv"], "items": paths["items.csv"], "data_dir": str(tmp_path / "cache")}
    for _ in range(2):
        dataset = data.load(Config().replace(dataset="files", **options))
        assert split(dataset, config).tied_targets == {"count": count, "total": 2}


def test_without_timestamps_nothing_is_tied():
    assert split(make_dataset([[0, 1, 2]]), LEAVE_ONE_OUT).tied_targets == {"count": 0, "total": 1}


def test_temporal_needs_timestamps():
    with pytest.raises(InputError, match="needs a timestamp column"):
        split(make_dataset([[0, 1, 2]]), TEMPORAL)


def test_temporal_cuts_in_the_wrong_order():
    dataset = make_dataset([[0, 1, 2]], [[1, 2, 3]])
    with pytest.raises(InputError, match=r"T1 = 3 and T2 = 2; set --valid_time below"):
        split(dataset, DataConfig(split="temporal", valid_time=3, test_time=2))


def test_empty_parts_are_named():
    dataset = make_dataset([[0, 1, 2]], [[1, 2, 3]])
    with pytest.raises(InputError, match="leaves nothing for test"):
        split(dataset, DataConfig(split="temporal", valid_time=2, test_time=9))
    with pytest.raises(InputError, match="leaves nothing for training and validation and test"):
        split(make_dataset([[0, 1]]), LEAVE_ONE_OUT)


def test_unknown_split():
    with pytest.raises(InputError, match="Did you mean 'temporal'"):
        split(make_dataset([[0, 1, 2]]), DataConfig(split="temporall"))


def test_types():
    result = split(make_dataset([[0, 1, 2, 1]], [[1, 2, 3, 4]]), LEAVE_ONE_OUT)
    assert result.item_counts.dtype == result.test.target.dtype == result.test.user.dtype == np.int32
    assert result.train.offsets.dtype == np.int64
    assert result.train.items.dtype == np.int32


def test_items_that_no_training_sequence_holds_are_cold():
    """Older than the window, or the only training item of a user: training sees neither."""
    rows = [[0, 1, 2, 3, 4, 5], [4, 2, 3]]
    result = split(make_dataset(rows, num_items=6), DataConfig(max_length=2))
    assert result.train[0].tolist() == [0, 1, 2, 3]
    assert result.item_counts.tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("config", [LEAVE_ONE_OUT, TEMPORAL])
def test_items_held_out_leave_training_and_nothing_else(config):
    """Evaluation stays as it is; training loses a fixed share of the items it had, whole, and nothing besides."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 40, n).tolist() for n in rng.integers(3, 15, 60)]
    dataset = make_dataset(rows, [list(range(len(row))) for row in rows], num_items=50)
    plain = split(dataset, config)
    held = split(dataset, dataclasses.replace(config, holdout_items=0.25, holdout_seed=1))
    for part in ("valid", "test"):
        assert as_lists(getattr(held, part)) == as_lists(getattr(plain, part))
    gone = np.flatnonzero((plain.item_counts > 0) & (held.item_counts == 0))
    trained = np.count_nonzero(plain.item_counts)
    assert len(gone) == round(0.25 * trained) > 0
    for user in range(len(rows)):
        assert held.train[user].tolist() == [i for i in plain.train[user].tolist() if i not in gone]
    again = split(dataset, dataclasses.replace(config, holdout_items=0.25, holdout_seed=1))
    other = split(dataset, dataclasses.replace(config, holdout_items=0.25, holdout_seed=2))
    assert np.array_equal(again.item_counts, held.item_counts)
    assert not np.array_equal(other.item_counts, held.item_counts)
    stays = ~np.isin(plain.train.items, gone)
    assert np.array_equal(held.train.timestamps, plain.train.timestamps[stays])


def test_a_small_share_still_holds_one_item_out():
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 3)
    held = split(dataset, DataConfig(holdout_items=1e-6))
    assert np.count_nonzero(held.item_counts) == 2  # of items 0, 1 and 2; the rest are targets only
    held = split(make_dataset([list(range(7))] * 3), DataConfig(holdout_items=0.55))
    assert np.count_nonzero(held.item_counts) == 2  # 2.75 of items 0 to 4 are three
