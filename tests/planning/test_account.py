"""What is made of the figures of compiled programs: peaks, and what a plan says of them."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from spectran_jax.config import Config
from spectran_jax.planning import account as accounts
from spectran_jax.planning import job, report, topologies
from spectran_jax.planning.roofline import Roofline
from spectran_jax.training.memory import GIB

SMALL = Config().replace(
    dimension=16, blocks=1, max_length=8, batch_size=16, eval_batch_size=8, negatives=16, attention_dimension=8
)
TEMPORARIES = {"train step": 2, "item table, a chunk": 1, "ranking, a batch": 7, "decomposition, eigenvectors": 3}
"""GiB, by program."""


@pytest.fixture(scope="module")
def small_job():
    return job.build(SMALL, job.Sizes(10**6, 32, 48), jax.devices()[:1])


@pytest.fixture
def planned(small_job, monkeypatch):
    """The account on a slice, of programs that "compile" to fixed figures."""

    def planned(name, open_loops=()):
        names = []

        def program(lower, roofline, mesh):
            seconds = dict(
                zip(("compute", "network", "without_overlap", "with_overlap"), (3e-3, 1e-3, 4e-3, 4e-3), strict=True)
            )
            return {
                "refused": False,
                "open_loops": dict(open_loops).get(names[-1], 0),
                "bytes": {"arguments": 5, "temporaries": TEMPORARIES.get(names[-1], 0) * GIB, "code": 0},
                "peak_bytes": TEMPORARIES.get(names[-1], 0) * GIB + 5,
                "flops": 1e12,
                "hbm_bytes": 1e9,
                "collectives": [],
                "collective_bytes": 5_000_000,
                "seconds": seconds,
                "efficiency": {"without_overlap": 0.75, "with_overlap": 0.75},
            }

        monkeypatch.setattr(accounts, "program", program)
        bound = Roofline(topologies.parse(name), np.zeros((1, 3), np.int64))
        made = accounts.account(small_job, bound, announce=names.append)
        made["payload"] |= {"needed": 4_000_000, "ratio": 1.25}  # as if there were several devices
        return made

    return planned


def test_the_peak_is_of_the_program_with_the_largest_temporaries_beside_what_training_holds(planned):
    made = planned("v5e:2x2")
    held = sum(made["arrays"].values())
    assert held > 0
    assert made["peak_bytes"] == held + 7 * GIB  # ranking takes more than the step


def test_a_decomposition_has_the_device_for_itself(planned, monkeypatch):
    monkeypatch.setitem(TEMPORARIES, "decomposition, eigenvectors", 90)
    assert planned("v5e:2x2")["peak_bytes"] == 90 * GIB + 5


def printed(tables):
    console = Console(width=200, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "memory", "unit"),
    [
        ("v5e:2x2", "of 16.00 GiB on each chip; it fits.", "chip"),
        ("tpu7x:2x2x1", "of 96.00 GiB on each device, 2 of which are a chip; it fits.", "device"),
    ],
)
def test_figures_are_said_to_be_of_a_device_where_a_chip_has_two(planned, name, memory, unit):
    made = planned(name)
    lines = report.sentences(made)
    assert lines[0].endswith(memory)
    assert f"5.00 MB a {unit}" in lines[1]
    assert f"over all {unit}s" in lines[1]
    text = " ".join(printed(report.tables(made)).split())  # a long title is broken
    for title in (f"Memory of a {unit}", f"Programs, per {unit}", f"Exchanges of the train step, per {unit}"):
        assert title in text
    other = {"chip": "device", "device": "chip"}[unit]
    assert other not in text + "".join(lines[1:])


def test_what_is_without_loops_that_data_ends_is_marked(planned):
    made = planned("v5e:2x2")
    assert not any("≥" in line for line in (*report.sentences(made), printed(report.tables(made))))
    made = planned("v5e:2x2", {"train step": 1, "decomposition, eigenvectors": 2})
    lines = report.sentences(made)
    assert "exchanges ≥ 5.00 MB" in lines[1]
    assert "≥ 3.000 ms computing" in lines[2]
    assert lines[3:] == [
        "≥ in train step: without 1 loop that runs as often as the data needs, such as rounds of an exchange after "
        "the first, of which few steps have any.",
        "≥ in decomposition, eigenvectors: without 2 loops that run as often as the data needs.",
    ]
    marked = {line.strip().split("  ")[0] for line in printed(report.tables(made)).splitlines() if "≥" in line}
    assert marked == {"train step", "decomposition, eigenvectors"}
    assert "≥ 4.000" in printed([report.scaling_table(report.weak_scaling([made]))])
