"""How items fare that training never saw, by their text alone."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies import coldstart
from spectran_jax.studies.flags import define_study_flags, split_names, study_from_flags

SYNOPSIS = """
Trains every encoder and compares HR and NDCG for targets that stand in no training history, beside those that do, with
counts. --holdout takes a share of the items out of training, so that there are enough of them. Then evaluates each
model with such items shown more and less (--cold_scale): who fills lists with them finds more of them, at the cost of
the others. The same command again goes on where it stopped.

  python -m experiments.coldstart --item_encoders=id,svd,spectran --holdout=0.05 --jobs=2 --workdir=runs/coldstart
"""

_ENCODERS = flags.DEFINE_string(
    "item_encoders",
    "",
    "Item encoders, comma-separated, all if empty; the first is what the others are compared to.",
)
_HOLDOUT = flags.DEFINE_float(
    "holdout",
    0.0,
    "Share of the items in training to take out of every training history, drawn by --holdout_seed; 0 takes none and "
    "looks at the cold items that the split leaves.",
    lower_bound=0.0,
    upper_bound=0.9,
)
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    coldstart.run(study_from_flags(), split_names(_ENCODERS.value), _HOLDOUT.value)


if __name__ == "__main__":
    run(main, SYNOPSIS)
