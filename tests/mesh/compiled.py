"""Run by tests/test_mesh.py on eight devices with XLA's optimisations on: what of a step follows the catalogue.

Exits with 1 and a message where the step over a larger catalogue exchanges other bytes, or needs more temporary memory.
"""

import sys

import jax

from spectran_jax.benchmarks.sessions import batches_of, synthetic
from spectran_jax.planning import hlo
from spectran_jax.planning.schedule import collectives, schedule
from spectran_jax.training import partitioning
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


def compiled(items: int):
    """The training step for a catalogue of this size."""
    setup = synthetic(items, **OPTIONS)
    assert setup.exchange is not None
    programs = build_programs(setup, 100)
    batch = next(batches_of(setup))
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        batch,
        partitioning.batch_shardings(setup.mesh, batch),
    )
    return programs.train_step.lower(programs.state, setup.abstract(), shapes).compile()


def main() -> None:
    """Compares two catalogues."""
    programs = [compiled(items) for items in (SMALL, LARGE)]
    exchanged = [
        sorted((c.kind, c.bytes, times or 0) for c, times in collectives(schedule(hlo.parse(p.as_text()), 8)))
        for p in programs
    ]
    temporary = [p.memory_analysis().temp_size_in_bytes for p in programs]
    print(exchanged[1], temporary)
    if exchanged[0] != exchanged[1] or not any(kind == "all-to-all" for kind, *_ in exchanged[0]):
        sys.exit(f"What is exchanged follows the catalogue: {exchanged}")
    if temporary[1] - temporary[0] > 2**14:
        sys.exit(f"Temporary memory follows the catalogue: {temporary}")


if __name__ == "__main__":
    main()
