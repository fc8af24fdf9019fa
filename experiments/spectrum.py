"""Where SpecTran looks in the spectrum of the text."""

from spectran_jax.flags import run
from spectran_jax.studies.flags import define_study_flags, study_from_flags

SYNOPSIS = """
Trains SpecTran and shows which components each output dimension attends to, how much of it lies beyond the first d,
what the Taylor map learned, and how all of this came about through training. The same command again goes on where it
stopped.

  python -m experiments.spectrum --dataset=movielens_100k --seeds=0,1,2 --workdir=runs/spectrum
"""

define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    from spectran_jax.studies import spectrum

    spectrum.run(study_from_flags())


if __name__ == "__main__":
    run(main, SYNOPSIS)
