import numpy as np
import pytest

from spectran_jax.data.interactions import Dataset, Histories, ragged_indices
from spectran_jax.errors import InputError


def make_dataset(rows, timestamps=None, num_items=None):
    histories = Histories.from_lists(rows, timestamps)
    num_items = num_items or int(histories.items.max()) + 1
    return Dataset(
        name="tiny",
        digest="0" * 64,
        user_ids=[f"u{u}" for u in range(len(rows))],
        item_ids=list(range(100, 100 + num_items)),
        histories=histories,
        item_text=[""] * num_items,
        item_titles=[str(i) for i in range(num_items)],
        text_columns=(),
        items_row=np.arange(num_items, dtype=np.int32),
    )


def test_ragged_indices_matches_a_loop():
    starts, lengths = [7, 0, 3, 3], [2, 0, 3, 1]
    expected = [s + k for s, n in zip(starts, lengths, strict=True) for k in range(n)]
    assert ragged_indices(np.array(starts), np.array(lengths)).tolist() == expected
    assert ragged_indices(np.array([], int), np.array([], int)).tolist() == []


def test_repeats_and_different_items():
    histories = Histories.from_lists([[3, 1, 3, 3], [], [2, 0, 1], [7] * 6])
    assert [histories.distinct()[user].tolist() for user in range(4)] == [[3, 1], [], [2, 0, 1], [7]]
    assert histories.repeats == 7
    assert histories.most_items == 3
    assert Histories.from_lists([]).most_items == Histories.from_lists([[]]).most_items == 0


def test_histories_rows_lengths_and_take():
    histories = Histories.from_lists([[3, 1], [], [2]], [[5, 6], [], [9]])
    assert len(histories) == 3
    assert histories.lengths.tolist() == [2, 0, 1]
    assert [histories[u].tolist() for u in (0, 1, 2, -1)] == [[3, 1], [], [2], [2]]
    with pytest.raises(IndexError):
        histories[3]
    taken = histories.take(np.array([2, 0, 2]))
    assert [taken[u].tolist() for u in range(3)] == [[2], [3, 1], [2]]
    assert taken.timestamps.tolist() == [9, 5, 6, 9]


def test_repeats_are_counted_within_a_user():
    assert Histories.from_lists([[3, 4, 3, 3], [4], [], [5, 5]]).repeats == 3
    assert Histories.from_lists([[], []]).repeats == 0


def test_histories_refuse_timestamps_of_another_shape():
    with pytest.raises(ValueError, match="one entry an item"):
        Histories.from_lists([[1, 2]], [[1]])


def test_dense_items_do_not_care_how_an_id_is_written():
    dataset = make_dataset([[0, 1, 2]])
    assert dataset.dense_items([101, "101", 101.0, "nobody", None, 101.5]).tolist() == [1, 1, 1, -1, -1, -1]


def test_short_histories_are_dropped_and_counted():
    dataset = make_dataset([[0, 1, 2], [1, 2], [2, 1, 0, 1], [0]])
    kept = dataset.without_short_histories(3)
    assert kept.user_ids == ["u0", "u2"]
    assert kept.dropped == {"users_too_short": 2}
    assert [kept.histories[u].tolist() for u in range(2)] == [[0, 1, 2], [2, 1, 0, 1]]
    assert kept.num_items == dataset.num_items
    assert kept.without_short_histories(3) is kept


def test_all_histories_short_is_an_error():
    with pytest.raises(InputError, match="all 2 users have fewer than 3 interactions"):
        make_dataset([[0, 1], [1]]).without_short_histories(3)
