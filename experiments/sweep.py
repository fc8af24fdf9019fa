"""Searches on validation, then trains the chosen values with several seeds."""

from pathlib import Path

from absl import flags

from spectran_jax.errors import InputError
from spectran_jax.flags import config_from_flags, define_config_flags, run

SYNOPSIS = """
Tries --trials points of the search space on the validation set, then trains the best with each of --seeds and reads
the test set. Every run has its own folder under --workdir; one that is there already is not run again.

  python -m experiments.sweep --search=learning_rate=log:3e-4:3e-3,dropout=0.1:0.5 --trials=8 --workdir=runs/sweep
"""

define_config_flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the sweep.")
_SEARCH = flags.DEFINE_string("search", "", "Search space: NAME=LOW:HIGH or NAME=log:LOW:HIGH, comma-separated.")
_TRIALS = flags.DEFINE_integer("trials", 8, "Points tried on the validation set.", lower_bound=1)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the final runs, comma-separated.")


def main() -> None:
    """Runs the experiment that the flags describe."""
    if not _WORKDIR.value:
        raise InputError("Name a folder: --workdir=DIR.")
    if not all(seed.isdecimal() for seed in _SEEDS.value):
        raise InputError(f"--seeds={','.join(_SEEDS.value)}: write whole numbers, comma-separated.")
    from spectran_jax.report import sweep_table
    from spectran_jax.sweep import parse_space, sweep
    from spectran_jax.training.run import print_table, train_and_report

    result = sweep(
        config_from_flags(),
        Path(_WORKDIR.value),
        space=parse_space(_SEARCH.value),
        trials=_TRIALS.value,
        seeds=[int(seed) for seed in _SEEDS.value],
        run=train_and_report,
    )
    print_table(sweep_table(result))


if __name__ == "__main__":
    run(main, SYNOPSIS, own=("workdir", "search", "trials", "seeds", "config"))
