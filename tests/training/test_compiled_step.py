"""What the compiled step holds of the catalogue's size."""

import collections
import re

import jax
import pytest
from compilation import AS_USERS_DO

from spectran_jax.benchmarks.sessions import synthetic
from spectran_jax.training import partitioning
from spectran_jax.training.feed import training_batches
from spectran_jax.training.programs import build_programs

OPTIONS = {
    "rank": 48,
    "users": 100,
    "blocks": 1,
    "lengths": (3, 9),
    "repeated": True,
    "history_negatives": True,
    "dimension": 32,
    "max_length": 12,
    "batch_size": 32,
    "negatives": 64,
}
SMALL, LARGE = 20_011, 200_017
IN_PLACE = {"parameter", "get-tuple-element", "tuple", "while", "scatter", "bitcast", "fusion"}
"""A fusion of this length is a scatter's body: it must not come without one."""


def compiled(items: int, steps: int, **options):
    """The program of so many steps, for a catalogue of this size."""
    setup = synthetic(items, **OPTIONS, **options)
    programs = build_programs(setup, 100)
    program, lead = (programs.train_step, ()) if steps == 1 else (programs.train_steps, (steps,))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), next(training_batches(setup)))
    return program.lower(programs.state, setup.abstract(), batch).compile(AS_USERS_DO)


def long_arrays(text: str, items: int) -> collections.Counter:
    """Operations of an HLO module whose result has the catalogue's length."""
    found = collections.Counter()
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([a-z\-]+)\(", line)
        if match and re.search(rf"\[{items}[,\]]", match[1]):
            found[match[2]] += 1
    return found


@pytest.mark.parametrize(
    ("steps", "options"), [(1, {"table_adam": "decayed"}), (4, {"sampling": "popularity", "loss": "sampled_softmax"})]
)
def test_no_array_of_the_catalogues_size_is_made(steps, options):
    """Nothing as long as the catalogue but what is given and written in place."""
    large = compiled(LARGE, steps, **options)
    found = long_arrays(large.as_text(), partitioning.table_rows(LARGE))
    assert found["scatter"]
    assert set(found) <= IN_PLACE, found
    assert found["fusion"] <= found["scatter"], found
    if steps == 1:  # nor does a larger catalogue take more temporary memory
        small = compiled(SMALL, steps, **options)
        temporary = [program.memory_analysis().temp_size_in_bytes for program in (small, large)]
        assert abs(temporary[1] - temporary[0]) <= 2**14, temporary
