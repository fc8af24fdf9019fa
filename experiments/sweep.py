"""Searches on validation, then trains the chosen values with several seeds."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies.flags import define_study_flags, study_from_flags

SYNOPSIS = """
Tries the values that the command line and --datasets give, and then points of the search space, on the validation set:
--trials in all. The best is trained with each of --seeds and reads the test set. Every run is a process of its own,
with a folder under --workdir/runs; one that is there already is not run again, so the same command goes on after
whatever stopped it.

  python -m experiments.sweep --search=learning_rate=log:3e-4:3e-3,dropout=0.1:0.5 --trials=8 --workdir=runs/sweep
"""

_SEARCH = flags.DEFINE_string("search", "", "Search space: NAME=LOW:HIGH or NAME=log:LOW:HIGH, comma-separated.")
_TRIALS = flags.DEFINE_integer(
    "trials", 8, "Trials on the validation set: the given values, then points of the search space.", lower_bound=1
)
define_study_flags(seeds=(0, 1, 2))


def main() -> None:
    """Runs the experiment that the flags describe."""
    study = study_from_flags()
    from spectran_jax.studies import sweep

    sweep.run(study, _SEARCH.value, _TRIALS.value)


if __name__ == "__main__":
    run(main, SYNOPSIS)
