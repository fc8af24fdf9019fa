"""What a job takes on a TPU slice, by the real compiler and without a TPU."""

from absl import flags

from spectran_jax.errors import InputError
from spectran_jax.flags import config_from_flags, define_config_flags, define_path, run

SYNOPSIS = """
Compiles the train step, the evaluation and the decomposition of a job for a TPU slice, on a CPU, and says per chip what
they hold, compute and send, how long that takes at least, whether it fits, and which flags make it smaller. Of tpu7x
it says so per device, of which a chip has two. A figure after ≥ is without loops that run as often as the data needs.
Needs pip install '.[plan]' in the repository. A program takes minutes to compile.

  python -m experiments.plan --topology=v5e:16x16 --num_items=1000000000 --dimension=128 --rank=512 \\
      --spectrum_dtype=int8 --batch_size=65536 --max_length=50 --workdir=runs/plan
  python -m experiments.plan --topology=v5e:2x2,v5e:4x4,v5e:16x16 --programs=train --workdir=runs/scaling

With several slices the sizes are those of the largest; the others get their share, so that each chip has the same.
"""

_TOPOLOGY = flags.DEFINE_list("topology", [], "Slice as KIND:SHAPE, such as v5e:16x16; or several of one kind.")
_WORKDIR = define_path("workdir", "Folder for plan.json and, for several slices, plan.png.")
_ITEMS = flags.DEFINE_integer("num_items", 1_000_000, "Items N.", lower_bound=1)
_RANK = flags.DEFINE_integer("rank", 256, "Components r of the spectrum.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("text_dimension", 1024, "Dimensions m of the text embeddings.", lower_bound=1)
_PROGRAMS = flags.DEFINE_enum("programs", "all", ["all", "train"], "What is compiled: all, or the train step alone.")
define_config_flags()


def main() -> None:
    """Plans what the flags describe."""
    if not _WORKDIR.value:
        raise InputError("Name a folder for the plan: --workdir=DIR.")
    config = config_from_flags()
    from spectran_jax.planning.job import Sizes
    from spectran_jax.planning.plan import run as plan

    sizes = Sizes(_ITEMS.value, _RANK.value, _WIDTH.value)
    plan(config, sizes, _TOPOLOGY.value, _WORKDIR.value, everything=_PROGRAMS.value == "all")


if __name__ == "__main__":
    run(main, SYNOPSIS)
