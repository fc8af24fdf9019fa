"""What each item encoder costs: parameters, FLOPs, memory and time."""

from absl import flags

from spectran_jax.flags import config_from_flags, define_config_flags, define_path, run
from spectran_jax.studies.flags import (
    command_line,
    define_results_flags,
    given_fields,
    results_file,
    section_name,
    split_names,
    study_folder,
)

SYNOPSIS = """
Counts parameters, FLOPs and bytes of each encoder's training step by the compiler's account, and times steps and
evaluations in turn, on random text and histories of the sizes given: no data set is needed. Figures of this machine and
this code that are in --workdir already are not measured again; a command that is stopped leaves none.

  python -m experiments.efficiency --num_items=10000 --text_dimension=1024 --dimension=64 --workdir=runs/efficiency
"""

_WORKDIR = define_path("workdir", "Folder of the experiment: tables/, index.html, result.json.")
_ENCODERS = flags.DEFINE_string("item_encoders", "", "Item encoders, comma-separated; all if empty.")
_ITEMS = flags.DEFINE_integer("num_items", 10_000, "Items N.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("text_dimension", 1024, "Dimensions m of the text embeddings.", lower_bound=1)
_USERS = flags.DEFINE_integer("users", 2_000, "Users who are trained on and evaluated.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Figures of each encoder, of which the median counts.", lower_bound=1)
_RESULTS, _SECTION = define_results_flags()
define_config_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    workdir = study_folder(_WORKDIR.value)
    from spectran_jax.studies import costs

    costs.run(
        config_from_flags(),
        workdir,
        split_names(_ENCODERS.value),
        items=_ITEMS.value,
        width=_WIDTH.value,
        users=_USERS.value,
        repeats=_REPEATS.value,
        given=given_fields(),
        command=command_line(),
        results=results_file(_RESULTS.value),
        section=section_name(_SECTION.value, _RESULTS.value),
    )


if __name__ == "__main__":
    run(main, SYNOPSIS)
