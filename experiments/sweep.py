"""Searches on validation, then trains the chosen values with several seeds."""

from absl import flags

from spectran_jax.errors import InputError
from spectran_jax.flags import run
from spectran_jax.studies.flags import define_study_flags, study_from_flags

SYNOPSIS = """
Tries --trials points of the search space on the validation set, then trains the best with each of --seeds and reads
the test set. Every run is a process of its own, with a folder under --workdir/runs; one that is there already is not
run again, so the same command goes on after whatever stopped it.

  python -m experiments.sweep --search=learning_rate=log:3e-4:3e-3,dropout=0.1:0.5 --trials=8 --workdir=runs/sweep
"""

_SEARCH = flags.DEFINE_string("search", "", "Search space: NAME=LOW:HIGH or NAME=log:LOW:HIGH, comma-separated.")
_TRIALS = flags.DEFINE_integer("trials", 8, "Points tried on the validation set.", lower_bound=1)
define_study_flags(seeds=(0, 1, 2))


def main() -> None:
    """Runs the experiment that the flags describe."""
    if not _SEARCH.value:
        raise InputError("Name what to search: --search=learning_rate=log:3e-4:3e-3,dropout=0.1:0.5. See --help.")
    study = study_from_flags()
    from spectran_jax.studies.results_md import publish_study
    from spectran_jax.studies.space import parse_space
    from spectran_jax.studies.sweep import sweep

    space = parse_space(_SEARCH.value)
    if fixed := [each.name for each in space if each.name in study.given]:
        raise InputError(f"--search and --{fixed[0]} both set {fixed[0]}; leave one out.")
    result = sweep(
        study.datasets,
        study.workdir,
        space=space,
        trials=_TRIALS.value,
        seeds=study.seeds,
        parallel=study.parallel,
        command=study.command,
    )
    encoders = sorted({config.encoder.item_encoder for config in study.datasets.values()})
    publish_study(study, "sweep", result, encoders=encoders)


if __name__ == "__main__":
    run(main, SYNOPSIS)
