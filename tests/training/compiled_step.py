"""Run by test_step.py in a process of its own, with XLA's optimisations on: what the compiled step holds of size N.

Exits with 1 and a message where a step on a larger catalogue needs more temporary memory, or where the program
holds an array of the catalogue's length besides its arguments and what it writes in place.
"""

import collections
import re
import sys

import jax

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
    yield "train_step", programs.train_step.lower(programs.state, frozen, shapes(batch)).compile()
    yield "train_steps", programs.train_steps.lower(programs.state, frozen, shapes(batch, 4)).compile()


def long_arrays(text: str, items: int) -> collections.Counter:
    """Operations of an HLO module whose result has the catalogue's length."""
    found = collections.Counter()
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([a-z\-]+)\(", line)
        if match and re.search(rf"\[{items}[,\]]", match[1]):
            found[match[2]] += 1
    return found


def main() -> None:
    """Compares two catalogues."""
    for options in ({"table_adam": "decayed"}, {"sampling": "popularity", "loss": "sampled_softmax"}):
        sizes = (20_011, 200_017)
        for (name, small), (_, large) in zip(*(compiled(n, **options) for n in sizes), strict=True):
            temporary = [p.memory_analysis().temp_size_in_bytes for p in (small, large)]
            print(options, name, "temporary bytes", temporary)
            if abs(temporary[1] - temporary[0]) > 2**14:
                sys.exit(f"{name} {options}: temporary memory follows the catalogue: {temporary}")
            found = long_arrays(large.as_text(), partitioning.table_rows(sizes[1]))
            print(dict(found))
            if not found["scatter"] or not set(found) <= IN_PLACE or found["fusion"] > found["scatter"]:
                sys.exit(f"{name} {options}: the program holds arrays of the catalogue's length: {dict(found)}")


if __name__ == "__main__":
    main()
