"""Ids and texts of prepared data: the same as lists of them, without a Python object each, and read when asked for."""

import gc
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds

from spectran_jax.config import Config
from spectran_jax.data import builders
from spectran_jax.data.content import Content, to_dataset
from spectran_jax.data.entries import Entries, picked
from spectran_jax.data.interactions import Histories
from spectran_jax.errors import RunError
from spectran_jax.text import embeddings
from spectran_jax.text.digests import digest_of
from spectran_jax.text.embeddings import item_embeddings

ITEMS = 2 * builders._BLOCK + 3
USERS = [f"ü{u}" for u in range(50)]


def content(item_ids):
    n = len(item_ids)
    return Content(
        user_ids=USERS,
        item_ids=item_ids,
        histories=Histories.from_lists([[u, u + 1, u + 2] for u in range(len(USERS))]),
        items_row=np.arange(n, dtype=np.int32),
        columns={"year": ["1999"] * n, "title": [f"Title {i}" * (i % 7 > 0) for i in range(n)], "blurb": ["日本"] * n},
        text_columns=("title", "blurb"),
        dropped={},
    )


def record(folder):
    return next(folder.rglob("items/1.0.0/*array_record*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    builders.write("files", content(list(range(ITEMS))), folder)
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """The features of each record that is decoded."""
    calls = []
    decode = tfds.features.FeaturesDict.deserialize_example_np

    def noted(self, *args, **kwargs):
        calls.append(sorted(self.keys()))
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", noted)
    return calls


@pytest.mark.parametrize(
    "ids",
    [
        list(range(-5, ITEMS - 5)),
        [f"B{i}\n" for i in range(ITEMS)],
        [10**25 * (i % 2) - i for i in range(ITEMS)],  # a block of which may be narrow, and another not
        [10**25 * (i > builders._BLOCK) + i for i in range(ITEMS)],
    ],
    ids=["integers", "strings", "wide integers", "a block of wide integers"],
)
def test_ids_are_what_they_were(tmp_path, ids):
    builders.write("files", content(ids), tmp_path)
    found = builders.read("files", tmp_path)
    assert isinstance(found.item_ids, Entries)
    assert list(found.item_ids) == ids
    assert {type(one) for one in found.item_ids} == {type(ids[0])}
    assert found.item_ids == ids
    assert ids == found.item_ids
    assert digest_of(found.item_ids) == digest_of(ids)
    for index in (0, 7, ITEMS - 1, -1, np.int64(builders._BLOCK)):
        assert found.item_ids[index] == ids[index]
        assert type(found.item_ids[index]) is type(ids[index])
    for part in (slice(3), slice(2000, 4100), slice(4096, None), slice(-2, None), slice(9, 9), slice(4000, 10, -7)):
        assert found.item_ids[part] == ids[part]
        assert len(found.item_ids[part]) == len(ids[part])
    assert found.item_ids[2000:4100][50:-2:3] == ids[2000:4100][50:-2:3]
    with pytest.raises(IndexError):
        found.item_ids[ITEMS]
    assert found.item_ids != ids[:-1]
    assert found.item_ids != [*ids[:-1], "other"]
    assert found.user_ids == USERS


@pytest.mark.parametrize("values", [list("abcdef"), range(10, 16), Entries(lambda a, b: range(10 + a, 10 + b), 6)])
def test_some_of_them_are_picked(values):
    chosen = picked(values, np.array([1, 2, 5]))
    assert chosen == [values[1], values[2], values[5]]
    assert (chosen[-1], chosen[1:]) == (values[5], [values[2], values[5]])
    assert picked(values, np.array([], np.int64)) == []


def test_text_is_joined_and_titles_fall_back_as_they_did(folder):
    expected = to_dataset(content(list(range(ITEMS))), name="n", digest="d", text_columns="year,title")
    found = to_dataset(builders.read("files", folder), name="n", digest="d", text_columns="year,title")
    assert found.item_text == expected.item_text
    assert list(found.item_text[5:8]) == ["1999. Title 5", "1999. Title 6", "1999"]
    assert digest_of(found.item_text) == digest_of(expected.item_text)
    assert found.item_titles == expected.item_titles
    assert list(found.item_titles[6:9]) == ["Title 6", "7", "Title 8"]


def test_what_is_encoded_is_read_in_runs():
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return [f"{i}" for i in range(start, stop)]

    class Lengths:
        name, dimension = "lengths", 1

        def encode(self, texts):
            return np.array([[len(text)] for text in texts], np.float32)

    entries = Entries(read, 100)
    (block,) = embeddings._blocks(Lengths(), entries, entries, np.zeros(100, bool), None, 100)
    assert block[:, 0].tolist() == [len(str(i)) for i in range(100)]
    assert reads == [(0, 100)] * 2  # once its text, once its ids


def test_text_is_decoded_where_it_is_asked_for(folder, decoded, tmp_path):
    dataset = to_dataset(builders.read("files", folder), name="n", digest="d")
    np.save(tmp_path / "embeddings.npy", np.ones((ITEMS, 2), np.float32))
    item_embeddings(
        Config().replace(embeddings=str(tmp_path / "embeddings.npy")),
        item_ids=dataset.item_ids,
        item_text=dataset.item_text,
        items_row=dataset.items_row,
        cache_dir=tmp_path,
    )
    assert decoded
    assert not any("text" in feature for features in decoded for feature in features)
    decoded.clear()
    own = dataset.item_text[2 * builders._BLOCK :]  # of the last of several processes
    assert (len(own), len(dataset.item_titles), decoded) == (3, ITEMS, [])
    assert [own[start] for start in range(3)] == list(own) == [f"Title {i}. 日本" for i in range(ITEMS - 3, ITEMS)]
    assert len(decoded) == 1
    decoded.clear()
    assert sum(1 for _ in dataset.item_text) == ITEMS
    assert len(decoded) <= 3


def test_what_is_kept_has_no_object_an_item(folder):
    builders.read("files", folder)  # brings in what is imported late
    gc.collect()
    tracemalloc.start()
    try:
        dataset = to_dataset(builders.read("files", folder), name="n", digest="d")
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert dataset.num_items == ITEMS
    assert kept < 40 * ITEMS  # 4 bytes are the row in the items file; lists of ids, text and titles were 200
    assert peak < 200 * ITEMS


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_text_that_is_damaged_later_is_one_message(tmp_path, damage):
    builders.write("files", content(list(range(ITEMS))), tmp_path)
    found = builders.read("files", tmp_path)
    whole = record(tmp_path).read_bytes()
    if damage == "cut":
        record(tmp_path).write_bytes(whole[:100])
    else:
        record(tmp_path).write_bytes(whole[:200] + bytes(200) + whole[400:])
    with pytest.raises(
        RunError, match=r"can't be read any more \(.*\), and was whole .*what is damaged is made anew\.$"
    ):
        found.columns["title"][0]
    with pytest.raises(Exception, match=r"."):  # and a start finds it, whatever is asked for
        builders.read("files", tmp_path)
    record(tmp_path).write_bytes(whole)
    assert found.columns["title"][1] == "Title 1"
