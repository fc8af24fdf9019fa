"""JSON Lines: ids and keys of several types, keys that nobody reads, and what is wrong told with its line."""

import json

import pyarrow as pa
import pytest

from spectran_jax.data import table_files
from spectran_jax.data.files import read_interactions, read_items
from spectran_jax.errors import InputError


def mixed(user, item, time):
    return json.dumps({"user_id": user, "item_id": item, "timestamp": time}) + "\n"


def test_json_may_mix_ids_and_other_keys_anything(write):
    """Such ids come back as strings, as they do from a TSV; a column without strings stays one of numbers."""
    lines = mixed(3, 1, 5) + mixed("u7", 2, 4.5) + "\n" + mixed(3, 2, 4)
    found = read_interactions(write("i.jsonl", lines))
    assert found.users.originals() == ["3", "u7"]
    assert found.items.originals() == [1, 2]
    assert found.timestamps.tolist() == [5, 4, 4]
    assert found.nanoseconds.tolist() == [0, 500_000_000, 0]
    assert found.users.codes.tolist() == [0, 1, 0]
    page = (
        '{"user_id": 3, "item_id": 1, "timestamp": 1, "page": [1, "a"]}\n{"user_id": 4, "item_id": 1, "timestamp": 2, '
    )
    found = read_interactions(write("i.jsonl", page + '"page": {"cut": "\\ud83d"}}'))
    assert found.users.originals() == [3, 4]
    assert read_interactions(write("i.jsonl", mixed(2**64, "a", 1) + mixed(1, 2, 2))).users.originals() == [
        str(2**64),
        "1",
    ]


@pytest.mark.parametrize("item", ["2024-01-01", "2024-01-01T00:00:00Z", 12345678901234567890, 2**63, 2**64 - 1])
def test_ids_that_look_like_something_else_are_ids(write, item):
    lines = mixed(item, item, 1) + mixed(item, item, 2)
    found = read_interactions(write("i.jsonl", lines))
    assert [*map(str, found.users.originals())] == [*map(str, found.items.originals())] == [str(item)]
    assert found.timestamps.tolist() == [1, 2]


def test_other_keys_of_json_interactions_take_no_memory(write):
    """A file of N lines with K different keys would be N x K entries, were each a column."""
    lines = [json.dumps({"user_id": i // 10, "item_id": i % 50, "timestamp": i, f"key{i}": "x"}) for i in range(9000)]
    path = write("i.jsonl", "\n".join(lines))
    before = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
    found = read_interactions(path)
    assert found.timestamps.tolist() == list(range(9000))
    assert pa.default_memory_pool().max_memory() - max(before) < 50 * path.stat().st_size


def test_a_column_that_begins_behind_the_first_lines_of_json_is_read(write, monkeypatch):
    monkeypatch.setattr(table_files, "_JSON_HEAD", 60)
    lines = mixed("u", 1, 5) + mixed("u", 2, 5.5) + '{"user_id": "u", "item_id": 3, "timestamp": 6, "position": 1}\n'
    with pytest.raises(InputError, match="line 1: position is empty"):
        read_interactions(write("i.jsonl", lines))
    found = read_interactions(write("i.jsonl", mixed("u", 1, 5) + mixed("u", 2, 5.5) + mixed("u", 2, 7)))
    assert found.nanoseconds.tolist() == [0, 500_000_000, 0]
    with pytest.raises(InputError, match="line 1: malformed JSON"):
        read_interactions(write("i.jsonl", mixed("u", 1, 5)[:-3]))


def test_keys_of_json_that_are_no_utf8(write):
    with pytest.raises(InputError, match="line 1: byte 3 is not valid UTF-8"):
        read_interactions(write("i.jsonl", b'{"\x85": 1, "user_id": 1, "item_id": 1, "timestamp": 1}\n'))


def test_items_whose_keys_are_values_are_refused(write):
    lines = [json.dumps({"item_id": i, "title": "t", f"key{i}": "x"}) for i in range(3000)]
    with pytest.raises(InputError, match=r"i.jsonl, line 1000: this is the 1,001th different key, .*2.0 on average"):
        read_items(write("i.jsonl", "\n".join(lines)))
    many = {f"key{i}": "x" for i in range(1500)}
    found = read_items(write("i.jsonl", "\n".join(json.dumps({"item_id": i, **many}) for i in range(40))))
    assert len(found.columns) == 1500


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"user_id": "a", "item_id": 1}',
            "no column timestamp or position to order by; columns found: user_id, item_id",
        ),
        ('{"user_id": "a", "timestamp": 1}', "no column item_id"),
        ('{"user_id": "a", "item_id": 1, "timestamp": null}', "line 1: timestamp is empty"),
        ('{"user_id": "a", "item_id": 1, "timestamp": 3}\n{"item_id": 1, "timestamp": 3}', "line 2: user_id is empty"),
        (
            '{"user_id": "a", "item_id": 1, "timestamp": 1700000000000}',
            "line 1: timestamp '1700000000000' looks like milli",
        ),
        (
            '{"user_id": "a", "item_id": [1], "timestamp": 3}',
            "line 1: item_id [1] must be an integer or a string",
        ),
        (mixed("a", 1.0, 3), "line 1: item_id 1.0 must be an integer or a string, not empty; write 1."),
        (mixed("a", True, 3), "line 1: item_id True must be an integer or a string"),
        (mixed(None, 1, 3), "line 1: user_id is empty"),
        ('[{"user_id": "a"}]', "line 1: each line must be one JSON object, got list"),
        ('{"user_id": "a"', "line 1: malformed JSON"),
        ('{"user_id": "a"}\n{"user_id": 3}', "no column item_id; columns found: user_id"),
        (
            mixed("u7", "a", 1) + mixed(3, 2.0, 1),
            "line 2: item_id 2.0 must be an integer or a string, not empty; write 2.",
        ),
        (mixed("u7", "a", 1) + "\n" + mixed(3, None, 1), "line 3: item_id None must be an integer or a string"),
        (mixed("u7", "a", 1) + mixed("\ud83d", "a", 1), "line 2: user_id '\\ud83d' holds half a character"),
        (
            mixed("u7", "a", 1) + mixed(3, "a", "2026-01-31"),
            "line 2: timestamp '2026-01-31' is a written time in a column",
        ),
        (mixed("u7", "a", 1) + mixed(3, "a", "\ud83d"), r"line 2: timestamp '\ud83d' is no time"),
        (mixed("u7", "a", 1) + mixed(3, "a", None), "line 2: timestamp is empty"),
        (mixed("u7", "a", 1) + mixed(3, "a", 2**70), "line 2: timestamp '1180591620717411303424' is too large"),
        (mixed("a", 1, 1e30), "line 1: timestamp '1e+30' is too large"),
        (mixed("a", 1, True), "line 1: timestamp 'True' is no time"),
        ("\n\n", "has no rows"),
        ("{}\n{}\n", "no column user_id and no column item_id; columns found: none."),
    ],
)
def test_bad_interactions_in_json(write, lines, message):
    with pytest.raises(InputError) as caught:
        read_interactions(write("i.jsonl", lines))
    assert message in str(caught.value)
    assert "i.jsonl" in str(caught.value)
