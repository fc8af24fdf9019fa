"""What the compiled step holds of the catalogue's size."""

import collections
import re

import jax
import pytest
from compilation import AS_USERS_DO

from spectran_jax.benchmarks.sessions import batches_of, synthetic
from spectran_jax.training import partitioning
from spectran_jax.training.programs import build_programs

OPTIONS = {
    "rank": 48,
    "users": 100,
    "lengths": (3, 9),
    "repeated": True,
    "history_negatives": True,
    "dimension": 32,
    "max_length": 12,
    "batch_size": 32,
    "negatives": 64,
}
IN_PLACE = {"parameter", "get-tuple-element", "tuple", "while", "scatter", "bitcast", "fusion"}
"""A fusion of this length is a scatter's body: it must not come without one."""


def compiled(items: int, **options):
    """The programs of one step and of several, for a catalogue of this size."""
    setup = synthetic(items, **OPTIONS, **options)
    programs = build_programs(setup, 100)
    batch = next(batches_of(setup))
    shapes = lambda tree, *lead: jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)  # noqa: E731
    frozen = setup.abstract()
    yield "train_step", programs.train_step.lower(programs.state, frozen, shapes(batch)).compile(AS_USERS_DO)
    yield "train_steps", programs.train_steps.lower(programs.state, frozen, shapes(batch, 4)).compile(AS_USERS_DO)


def long_arrays(text: str, items: int) -> collections.Counter:
    """Operations of an HLO module whose result has the catalogue's length."""
    found = collections.Counter()
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([a-z\-]+)\(", line)
        if match and re.search(rf"\[{items}[,\]]", match[1]):
            found[match[2]] += 1
    return found


@pytest.mark.parametrize(
    "options", [{"table_adam": "decayed"}, {"sampling": "popularity", "loss": "sampled_softmax"}], ids=["adam", "logq"]
)
def test_no_array_of_the_catalogues_size_is_made(options):
    """No more temporary memory for a larger catalogue; nothing as long as it but what is given and written in place."""
    sizes = (20_011, 200_017)
    for (name, small), (_, large) in zip(*(compiled(n, **options) for n in sizes), strict=True):
        temporary = [p.memory_analysis().temp_size_in_bytes for p in (small, large)]
        assert abs(temporary[1] - temporary[0]) <= 2**14, (name, temporary)
        found = long_arrays(large.as_text(), partitioning.table_rows(sizes[1]))
        assert found["scatter"], name
        assert set(found) <= IN_PLACE, (name, found)
        assert found["fusion"] <= found["scatter"], (name, found)
