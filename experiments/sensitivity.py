"""How much results depend on each value that a person sets, one field at a time."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies import sensitivity
from spectran_jax.studies.flags import define_study_flags, study_from_flags

SYNOPSIS = """
Moves one field at a time over a list of values, all else as configured, with the same seeds; tables, and a plot with
spread for each field. The same command again goes on where it stopped.

  python -m experiments.sensitivity --dataset=movielens_100k --jobs=2 --workdir=runs/sensitivity
  python -m experiments.sensitivity --changes=temperature=0.05:0.1,negatives=128:1024 --workdir=runs/two
"""

_CHANGES = flags.DEFINE_string(
    "changes",
    sensitivity.DEFAULT,
    "Fields and values: FIELD=VALUE:VALUE, comma-separated. The configured value is always among them.",
)
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    sensitivity.run(study_from_flags(), _CHANGES.value)


if __name__ == "__main__":
    run(main, SYNOPSIS)
