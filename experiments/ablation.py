"""SpecTran with one part removed or changed at a time, against SpecTran as configured."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies import ablation
from spectran_jax.studies.flags import define_study_flags, study_from_flags

SYNOPSIS = """
Trains SpecTran and, beside it, each variant with one part removed or changed, with the same seeds; prints what each
loses, user by user, with an interval. The same command again goes on where it stopped.

  python -m experiments.ablation --dataset=movielens_100k --jobs=2 --workdir=runs/ablation
  python -m experiments.ablation --changes=attention=none:softmax,taylor_order=0:4 --seeds=0,1,2 --workdir=runs/parts
"""

_CHANGES = flags.DEFINE_string(
    "changes",
    ablation.DEFAULT,
    "What is changed, one value at a time: FIELD=VALUE:VALUE, comma-separated; FIELD=* tries every choice. Values that "
    "are configured already are left out.",
)
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    ablation.run(study_from_flags(), _CHANGES.value)


if __name__ == "__main__":
    run(main, SYNOPSIS)
