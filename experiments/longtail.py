"""Who is served well: metrics by the popularity of the target."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies import longtail
from spectran_jax.studies.flags import define_study_flags, split_names, study_from_flags

SYNOPSIS = """
Trains every encoder and compares HR and NDCG for targets from the head, the middle and the tail of popularity, and for
those that training never saw. The same command again goes on where it stopped.

  python -m experiments.longtail --item_encoders=id,svd,spectran --jobs=2 --workdir=runs/longtail
"""

_ENCODERS = flags.DEFINE_string(
    "item_encoders",
    "",
    "Item encoders, comma-separated, all if empty; the first is what the others are compared to.",
)
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    longtail.run(study_from_flags(), split_names(_ENCODERS.value))


if __name__ == "__main__":
    run(main, SYNOPSIS)
