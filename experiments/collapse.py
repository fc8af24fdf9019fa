"""Whether item vectors collapse: their singular spectra, learned and through training."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies import collapse
from spectran_jax.studies.flags import define_study_flags, split_names, study_from_flags

SYNOPSIS = """
Trains every encoder and compares the singular values of the item vectors that it learned: effective rank, information
abundance, their spectra, and their course through training. The same command again goes on where it stopped.

  python -m experiments.collapse --item_encoders=id,svd,spectran --jobs=2 --workdir=runs/collapse
"""

_ENCODERS = flags.DEFINE_string("item_encoders", "", "Item encoders, comma-separated; all if empty.")
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    collapse.run(study_from_flags(), split_names(_ENCODERS.value))


if __name__ == "__main__":
    run(main, SYNOPSIS)
