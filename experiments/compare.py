"""Compares item encoders on backbones and data sets: one search budget, several seeds, tests over users."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies.flags import define_study_flags, split_names, study_from_flags

SYNOPSIS = """
Compares item encoders (--item_encoders) on every backbone (--backbones) and data set (--dataset). Each is searched
with --budget trials on the validation set, with the first of --seeds, the first trial with the values that are given;
the chosen values are then run with every seed and read the test set. Writes tables (CSV, Markdown, LaTeX), figures,
index.html and result.json to --workdir: means and standard deviations, the gain of --target over the rival that
validation finds best, p-values of paired permutation tests over users with Holm's correction, mean ranks, chosen
values, trials and cost.

  python -m experiments.compare --item_encoders=id,svd,spectran --backbones=sasrec --jobs=2 --workdir=runs/compare
  python -m experiments.compare --datasets=data.toml --dataset=beauty,office --budget=16 --workdir=runs/amazon

Runs: data sets x backbones x encoders x (budget + seeds), each a process with a folder under --workdir/runs. One that
is there already is not run again: the same command goes on after whatever stopped it, and with another seed at the end
of --seeds it runs only that one. A run that fails is counted, told, and left out of its row. A field that the command
line names (--dropout=0.2) is fixed, and not searched; one that only --datasets names is searched all the same.
"""

_ENCODERS = flags.DEFINE_string("item_encoders", "", "Item encoders to compare, comma-separated; all if empty.")
_BACKBONES = flags.DEFINE_string("backbones", "", "Backbones to compare them on, comma-separated; all if empty.")
_BUDGET = flags.DEFINE_integer(
    "budget",
    8,
    "Trials of each search, the same for every method: the configuration as it is, then points of the search space. "
    "0 searches nothing and takes the configuration without a trial.",
    lower_bound=0,
)
_TARGET = flags.DEFINE_string(
    "target", "", "The item encoder whose gain over the others is told; spectran if empty and there, else the first."
)
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    study = study_from_flags()
    from spectran_jax.studies import compare

    encoders, backbones = split_names(_ENCODERS.value), split_names(_BACKBONES.value)
    compare.run(study, encoders, backbones, budget=_BUDGET.value, target=_TARGET.value)


if __name__ == "__main__":
    run(main, SYNOPSIS)
