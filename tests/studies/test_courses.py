"""What is read of a run's log."""

import json

import pytest

from spectran_jax.errors import InputError
from spectran_jax.studies.courses import course, read_history, value_at


@pytest.fixture
def folder(tmp_path):
    lines = [
        {"kind": "start", "step": 0, "item_singular_values": [1.0, 1.0]},
        {"kind": "train", "step": 50, "loss": 3.0},
        {"kind": "valid", "step": 60, "item_singular_values": [1.0, 0.5], "ndcg@20": 0.1},
        {"kind": "valid", "step": 120, "item_singular_values": [1.0, 0.0], "ndcg@20": 0.2},
    ]
    torn = '{"kind": "valid", "st'
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return tmp_path


def test_readings_are_those_of_start_and_validation(folder):
    history = read_history(folder)
    assert len(history) == 4
    steps, values = course(history, "item_singular_values")
    assert steps.tolist() == [0, 60, 120]
    assert values == [[1.0, 1.0], [1.0, 0.5], [1.0, 0.0]]
    assert course(history, "ndcg@20")[0].tolist() == [60, 120]
    assert value_at(history, "ndcg@20", 60) == 0.1
    assert value_at(history, "ndcg@20", 0) is None


STEP_AS_TEXT = b'{"kind": "valid", "step": "60", "ndcg@20": 0.3}\n'


@pytest.mark.parametrize(
    "torn", [b"7\n", b"null\n", b"{}\n", b'"valid"\n', b"\xff\xfe\n", b"\x00\x00\x00", STEP_AS_TEXT]
)
def test_what_a_crash_left_of_a_line_is_left_out(folder, torn):
    path = folder / "metrics.jsonl"
    whole = read_history(folder)
    path.write_bytes(torn + path.read_bytes())
    assert read_history(folder)[-3:] == whole[-3:]  # the first line may be lost with it
    assert course(read_history(folder), "ndcg@20")[0].tolist() == [60, 120]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl: can't be read .* holds no run"):
        read_history(tmp_path)
