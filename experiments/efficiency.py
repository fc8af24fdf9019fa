"""What each item encoder costs: parameters, FLOPs, memory and time."""

from absl import flags

from spectran_jax.errors import InputError
from spectran_jax.flags import config_from_flags, define_config_flags, define_path, run
from spectran_jax.studies.flags import command_line, define_results_flags, results_file, section_name, split_names
from spectran_jax.studies.ownership import refuse_another_study

SYNOPSIS = """
Counts parameters, FLOPs and bytes of each encoder's training step by the compiler's account, and times steps and
evaluations in turn, on random text and histories of the sizes given: no data set is needed. Figures of
this machine and this code that are in --workdir already are not measured again.

  python -m experiments.efficiency --num_items=10000 --text_dimension=1024 --dimension=64 --workdir=runs/efficiency
"""

_WORKDIR = define_path("workdir", "Folder of the experiment: tables/, index.html, result.json.")
_ENCODERS = flags.DEFINE_string("item_encoders", "", "Item encoders, comma-separated; all if empty.")
_ITEMS = flags.DEFINE_integer("num_items", 10_000, "Items N.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("text_dimension", 1024, "Dimensions m of the text embeddings.", lower_bound=1)
_USERS = flags.DEFINE_integer("users", 2_000, "Users who are trained on and evaluated.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Figures of each encoder, of which the median counts.", lower_bound=1)
_RESULTS, _SECTION = define_results_flags()
_UNREAD = (
    "dataset", "interactions", "items", "embeddings", "movielens", "k_core", "unknown_items", "duplicates",
    "text_encoder", "text_columns", "rtol", "decomposition", "decomposition_precision",
)  # fmt: skip
define_config_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    if not _WORKDIR.value:
        raise InputError("Name a folder for the experiment: --workdir=DIR.")
    if flags.FLAGS["item_encoder"].present:
        raise InputError("Costs are of several: give --item_encoders=NAME,NAME instead of --item_encoder.")
    if unread := [name for name in _UNREAD if flags.FLAGS[name].present]:
        raise InputError(f"Costs are measured on random data: --{unread[0]} is not read; leave it out.")
    refuse_another_study(_WORKDIR.value, command_line())
    from spectran_jax.item_encoders import REGISTRY
    from spectran_jax.studies import costs
    from spectran_jax.studies.flags import check_names

    costs.run(
        config_from_flags(),
        _WORKDIR.value,
        check_names("item_encoders", "item encoder", split_names(_ENCODERS.value), REGISTRY),
        items=_ITEMS.value,
        width=_WIDTH.value,
        users=_USERS.value,
        repeats=_REPEATS.value,
        command=command_line(),
        results=results_file(_RESULTS.value),
        section=section_name(_SECTION.value, _RESULTS.value),
    )


if __name__ == "__main__":
    run(main, SYNOPSIS)
