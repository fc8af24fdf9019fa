"""Flags that say where a run runs, not what it is: they stand in no config.json, and may change when it is resumed."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """How this process finds the others of its run; by default the environment says, or there are none."""

    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    coordinator_timeout: int = 300
    peer_timeout: int = 30
    hang_timeout: int = 600


ALONE = ClusterOptions(num_processes=1)
"""A run of one process, whatever the environment says."""

_HELP = {
    "coordinator": "host:port of process 0, the same for every process. Found from the environment if empty: TPU pods, "
    "SLURM, Open MPI, Kubernetes (with the kubernetes package).",
    "num_processes": "Processes of this run, in all; 1 runs alone, whatever the environment says. 0: as found.",
    "process_id": "Which of them this one is, from 0. -1: as found.",
    "coordinator_timeout": "Seconds to wait at start for the coordinator and for all processes.",
    "peer_timeout": "Seconds without a sign of life after which a process counts as lost, and the others leave.",
    "hang_timeout": "Seconds after which a process that lives but gets no further between its first step and its last, "
    "counts as hanging: it leaves, and the others with it. 0: never. A save may take longer, as long as its files "
    "change.",
}

NAMES = tuple(_HELP)
"""The flags, in the order in which help shows them."""


def define_cluster_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each field of `ClusterOptions`."""
    for field in dataclasses.fields(ClusterOptions):
        default: Any = field.default
        define: Any = flags.DEFINE_string if isinstance(default, str) else flags.DEFINE_integer
        define(field.name, default, _HELP[field.name], flag_values=flag_values)


def cluster_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> ClusterOptions:
    """What the parsed flags say."""
    values: dict[str, Any] = {name: flag_values[name].value for name in NAMES}
    return ClusterOptions(**values)
