"""The numbers, tables and words of a report."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from report_sample import sample
from rich.console import Console

from spectran_jax.report import (
    effective_rank,
    energy_beyond,
    live_share,
    metrics_table,
    parameter_table,
    sections,
    words,
)
from spectran_jax.report.figures import diverging
from spectran_jax.report.statistics import bin_columns


def test_effective_rank():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0.0
    p = np.array([0.5, 0.25, 0.25])
    assert effective_rank(4 * p) == pytest.approx(2**1.5)


def test_live_share_and_energy_beyond():
    attention = np.array([[1.0, 0, 2, 0], [0, 0, -1, 0]])
    np.testing.assert_allclose(live_share(attention), [0.5, 0, 1, 0])
    assert energy_beyond(attention) == pytest.approx(5 / 6)
    assert energy_beyond(np.zeros((2, 4))) == 0.0
    assert energy_beyond(np.eye(3)) == 0.0


def test_binning_keeps_the_strongest_with_its_sign():
    matrix = np.array([[0.1, -0.5, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0]])
    binned, width = bin_columns(matrix, 3)
    assert width == 2
    np.testing.assert_array_equal(binned, [[-0.5, 0.2, 0.0], [0.0, 0.0, 3.0]])
    same, width = bin_columns(matrix, 5)
    assert width == 1
    np.testing.assert_array_equal(same, matrix)


def test_dead_entries_are_blank_and_live_ones_are_seen():
    image = diverging(np.array([[0.0, 1e-9, -1.0, 2.0]]), 1.0)
    assert image[0, 0, 3] == 0
    assert image[0, 1, 3] > 40
    assert image[0, 2, 3] == image[0, 3, 3] == 255
    assert tuple(image[0, 2, :3]) != tuple(image[0, 3, :3])


def printed(table) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    return console.file.getvalue()


def test_metrics_table():
    text = printed(metrics_table(sample().metrics))
    header = next(line for line in text.splitlines() if "Metric" in line)
    assert header.split()[:3] == ["Metric", "Validation", "Test"]
    assert "Test: cold" in header
    mrr = next(line for line in text.splitlines() if "MRR" in line)
    assert mrr.split() == ["MRR", "0.0210", "0.0190"]
    users = next(line for line in text.splitlines() if "Users" in line)
    assert users.split() == ["Users", "40", "3"]
    order = [line.split()[0] for line in text.splitlines() if "@" in line]
    assert order[:8] == [f"{name}@{k}" for name in ("NDCG", "HR") for k in (5, 10, 20, 50)]
    assert "Test" not in printed(metrics_table({"valid": {"mrr": 0.5}}))


def test_parameter_table():
    text = printed(parameter_table([("[red]a", (3, 4), "float32", 12, "(None,)"), ("b", (), "float32", 1, "")]))
    assert "[red]a" in text
    assert "[3, 4]" in text
    assert "(None,)" in text
    assert re.search(r"Total\s+13\b", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1682, "1,682"), (0.063, "0.063"), (12345.6, "12,346"), (np.int64(7), "7"), (float("nan"), "–"), (True, "True")],
)
def test_numbers_in_words(value, text):
    assert words.number(value) == text


def test_names_and_durations_in_words():
    assert words.label("ndcg@20") == "NDCG@20"
    assert words.label("items_without_text") == "Items without text"
    assert "<dt>Timestamps</dt><dd>no</dd>" in sections._dataset({"timestamps": False})
    assert words.label("tied_targets") == "Tied targets"
    assert words.seconds(0.31) == "0.31 s"
    assert words.seconds(61) == "61.0 s"
    assert words.seconds(211.3) == "3 min 31 s"
    assert words.seconds(7265) == "2 h 01 min"
    assert words.percent(0.0482) == "4.8 %"
    assert words.percent(0.3) == "30 %"


def test_what_was_left_out_in_words():
    assert words.left_out("k_core_interactions", 1_232) == "1,232 interactions outside the k-core"
    assert words.left_out("unknown_items", 1) == "1 interaction with unknown items"
    assert words.left_out("of_another_version", 3) == "3 of another version"


def test_importing_draws_nothing_in():
    code = "import sys, spectran_jax.report, spectran_jax.progress; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert out == "False\n"
