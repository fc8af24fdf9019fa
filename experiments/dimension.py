"""How item encoders fare as the dimension of item vectors grows."""

from absl import flags

from spectran_jax.flags import run
from spectran_jax.studies import dimension
from spectran_jax.studies.flags import define_study_flags, split_names, study_from_flags

SYNOPSIS = """
Trains every encoder at every dimension, all else alike, and plots NDCG@10 over the dimension. The same command again
goes on where it stopped.

  python -m experiments.dimension --item_encoders=id,spectran --dimensions=16,64,256 --jobs=2 --workdir=runs/dimension
"""

_ENCODERS = flags.DEFINE_string("item_encoders", ",".join(dimension.ENCODERS), "Item encoders, comma-separated.")
_DIMENSIONS = flags.DEFINE_list("dimensions", [str(d) for d in dimension.DIMENSIONS], "Dimensions, comma-separated.")
define_study_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    study = study_from_flags()
    dimension.run(study, split_names(_ENCODERS.value), dimension.parse_dimensions(_DIMENSIONS.value))


if __name__ == "__main__":
    run(main, SYNOPSIS)
