"""A step on eight devices, compiled: nothing that it exchanges or holds follows the catalogue."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from spectran_jax.benchmarks.sessions import synthetic
from spectran_jax.planning import hlo
from spectran_jax.planning.schedule import collectives, schedule
from spectran_jax.training import partitioning
from spectran_jax.training.feed import training_batches
from spectran_jax.training.programs import build_programs

SMALL, LARGE = 10_000, 1_000_000
OPTIONS = {
    "rank": 32,
    "users": 100,
    "lengths": (3, 9),
    "repeated": True,
    "history_negatives": True,
    "dimension": 16,
    "max_length": 8,
    "batch_size": 16,
    "negatives": 32,
    "mesh": "data:4,model:2",
}


def compiled(items: int, **options):
    """The training step for a catalogue of this size, and the rows of its tables."""
    setup = synthetic(items, **OPTIONS, **options)
    assert setup.exchange is not None
    every_other = setup.objective.sampler.arrays(np.arange(items) % 2)  # what is drawn: the rest is cold
    setup = dataclasses.replace(setup, frozen=setup.frozen._replace(sampler=every_other))
    programs = build_programs(setup, 100)
    batch = next(training_batches(setup))
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        batch,
        partitioning.batch_shardings(setup.mesh, batch),
    )
    return programs.train_step.lower(programs.state, setup.abstract(), shapes).compile(), setup.access.rows


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batches": 1},
        {"micro_batches": 4},
        {"micro_batches": 2, "loss": "sampled_softmax", "sampling": "popularity"},
        {"micro_batches": 1, "loss": "sampled_softmax", "sampling": "in_batch", "mask_negatives": "history"},
    ],
    ids=lambda options: f"{options.get('sampling', 'uniform')}-{options['micro_batches']}",
)
def test_nothing_that_travels_and_no_temporary_follows_the_catalogue(options):
    (small, _), (large, rows) = (compiled(items, **options) for items in (SMALL, LARGE))
    programs = [small, large]
    # Nor is anything of all items on a device: of one device's rows alone.
    assert f"[{rows // 8}" in large.as_text()
    assert not re.search(rf"\[({rows}|{LARGE})\b", large.as_text())
    exchanged = [
        sorted((c.kind, c.bytes, times or 0) for c, times in collectives(schedule(hlo.parse(p.as_text()), 8)))
        for p in programs
    ]
    assert exchanged[0] == exchanged[1]
    assert any(kind == "all-to-all" for kind, *_ in exchanged[0])
    temporary = [p.memory_analysis().temp_size_in_bytes for p in programs]
    assert temporary[1] - temporary[0] <= 2**14, temporary
