import json

import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.item_encoders import text as text_encoders
from spectran_jax.text import embeddings, encoders, item_embeddings
from spectran_jax.training.notices import notices
from spectran_jax.training.setup import prepare

TEXTS = ["red pen", "", "blue pen", "   ", "paper"]
IDS = ["a", "b", 3, 4, "e"]


class Counting:
    """Encodes a text as its length and its first letter; counts what it is given."""

    name = "counting"
    dimension = 3

    def __init__(self, version="1", wrong=None):
        self.version = version
        self.seen = []
        self.wrong = wrong

    def encode(self, texts):
        self.seen.extend(texts)
        rows = np.array([[len(text), ord(text[0]), 1] for text in texts], np.float32)
        return rows if self.wrong is None else self.wrong(rows)


@pytest.fixture
def encode(tmp_path, monkeypatch):
    def call(encoder, texts=TEXTS, ids=IDS, **options):
        monkeypatch.setitem(encoders.ENCODERS, "counting", lambda argument: encoder)
        rows = np.arange(len(ids), dtype=np.int32)
        return item_embeddings(
            Config().replace(text_encoder="counting"),
            item_ids=ids,
            item_text=texts,
            items_row=rows,
            cache_dir=tmp_path / "cache",
            **options,
        )

    return call


def test_rows_stand_for_their_items(encode, caplog):
    encoder = Counting()
    result = encode(encoder)
    assert encoder.seen == ["red pen", "blue pen", "paper"]
    assert result.has_text.tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(result.matrix[:, 0], [7, 0, 8, 0, 5])
    assert result.matrix.dtype == np.float32
    assert isinstance(result.matrix, np.memmap)
    assert result.name == "counting"
    assert result.without_text == 2
    assert "2 of 5 items have no text" in caplog.text


def test_second_time_nothing_is_encoded(encode):
    first, encoder = encode(Counting()), Counting()
    second = encode(encoder)
    assert encoder.seen == []
    assert second.digest == first.digest
    np.testing.assert_array_equal(second.matrix, first.matrix)
    np.testing.assert_array_equal(second.has_text, first.has_text)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": Counting("2")},
        {"texts": ["red pens", *TEXTS[1:]]},
        {"ids": ["other", *IDS[1:]]},
        {"ids": ["a", "b", "3", 4, "e"]},
        {"texts": TEXTS[::-1]},
    ],
)
def test_anything_else_is_encoded_anew(encode, change):
    first, encoder = encode(Counting()), change.get("encoder", Counting())
    encoder.seen.clear()
    second = encode(**{"encoder": encoder, **change})
    assert len(encoder.seen) == 3
    assert second.digest != first.digest


@pytest.mark.parametrize("name", ["embeddings", "has_text", "meta"])
def test_damaged_cache_is_encoded_anew(encode, name, tmp_path, caplog):
    first = encode(Counting())
    (file,) = (tmp_path / "cache").rglob(f"{name}.*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if name == "meta" else -1] ^= 1
    file.write_bytes(data)
    encoder = Counting()
    second = encode(encoder)
    assert "made anew" in caplog.text
    assert len(encoder.seen) == 3
    np.testing.assert_array_equal(second.matrix[:, 0], [7, 0, 8, 0, 5])
    assert second.digest == first.digest
    third = Counting()
    encode(third)
    assert third.seen == []


def test_in_blocks_with_progress(encode, monkeypatch):
    monkeypatch.setattr(embeddings, "_ENCODE_AT_ONCE", 2)
    steps = []
    result = encode(Counting(), progress=lambda done, total: steps.append((done, total)))
    np.testing.assert_array_equal(result.matrix[:, 0], [7, 0, 8, 0, 5])
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_text_that_the_encoder_can_not_read_counts_as_none(encode):
    def deaf(rows):
        rows[rows[:, 0] == 8] = 0
        return rows

    assert encode(Counting(wrong=deaf)).has_text.tolist() == [True, False, False, False, True]


def test_bad_encoders_leave_no_cache(encode, tmp_path):
    def poison(rows):
        rows[1:] = np.nan
        return rows

    with pytest.raises(InputError, match="counting returned NaN or inf for 2 items, the first: 3, 'e'"):
        encode(Counting(wrong=poison))
    with pytest.raises(InputError, match=r"returned shape \(3, 2\) for 3 texts"):
        encode(Counting(wrong=lambda rows: rows[:, :2]))
    assert not list((tmp_path / "cache" / "text").iterdir())


def test_nothing_to_encode(encode):
    with pytest.raises(InputError, match=r"None of the 5 items has text to encode.*--embeddings"):
        encode(Counting(), texts=["", " ", "\n", "", ""])
    with pytest.raises(InputError, match="got 5 ids, 4 texts and 5 rows"):
        encode(Counting(), texts=TEXTS[:4])


def test_wordllama_end_to_end(tmp_path):
    rows = np.arange(5, dtype=np.int32)
    result = item_embeddings(Config(), item_ids=IDS, item_text=TEXTS, items_row=rows, cache_dir=tmp_path)
    assert result.name == "wordllama"
    np.testing.assert_array_equal(result.matrix[2], encoders.build("wordllama").encode(["blue pen"])[0])


def test_only_encoders_with_text_in_their_vectors_know_cold_items(tiny_config):
    for encoder, words in (("rlmrec", "of which nothing is known"), ("svd", "ranked by text alone")):
        assert any(words in line for line in notices(prepare(tiny_config.replace(item_encoder=encoder))))


def test_a_run_says_what_text_it_reads(tiny_config, tiny_flags):
    own = [line for line in notices(prepare(tiny_config)) if line.startswith("Text of the items")]
    assert own == [f"Text of the items: {tiny_flags['embeddings']}; 24 dimensions, 24 spectral components."]
    hashed = notices(prepare(tiny_config.replace(embeddings="", item_encoder="mlp")))
    assert any(line.startswith("Text of the items: title, by wordllama; ") for line in hashed)
    assert not any(line.startswith("Text") for line in notices(prepare(tiny_config.replace(item_encoder="id"))))


def test_a_run_says_where_many_items_share_an_embedding(tiny_config, tiny_flags, tmp_path, monkeypatch):
    def told(number, **options):
        rows = np.load(tiny_flags["embeddings"])
        rows[[0, 39]] = 0  # no text, which is no embedding
        rows[3 : 3 + number] = rows[3]
        np.save(tmp_path / "x.npy", rows)
        setup = prepare(tiny_config.replace(embeddings=str(tmp_path / "x.npy"), **options))
        return [line for line in notices(setup) if "same text embedding" in line]

    assert told(10) == []
    assert told(19) == [
        "50% of the items with text have the same text embedding as item 'item-3'. If it stands for missing text, "
        "make those rows of --embeddings zeros: it is learned from as any."
    ]
    monkeypatch.setattr(text_encoders, "_SAMPLE", 20)
    (line,) = told(30, item_encoder="mlp")
    assert line.startswith("About ")


def test_processes_that_would_encode_something_else_are_refused(encode, monkeypatch):
    def another(data):
        return [data, json.dumps(json.loads(data) | {"version": "2"}).encode()]

    monkeypatch.setattr(embeddings.processes, "gathered_bytes", another)
    with pytest.raises(InputError, match=r"disagree on the version of the text encoding: 1 for process 0, 2 for proc"):
        encode(Counting())
