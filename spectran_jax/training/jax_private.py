"""What this library takes from `jax._src`, and from nowhere else: JAX may change it in any release.

- The client of the coordination service that `jax.distributed.initialize` makes. JAX offers no public way to its
  key-value store, which needs no device and waits for none, nor to who is alive.
- How JAX finds the processes of a run in the environment (TPU pods, SLURM, Open MPI, Kubernetes). Publicly that is a
  part of `initialize`, which would start with what it found before we could say in one line what is missing, or see
  that the process is alone.

Where an upgrade of JAX breaks one, tests/cluster/test_jax_private.py names what is gone. Look for its new place in
`jax/_src/distributed.py` and `jax/_src/clusters/cluster.py` and mend it here; until then keep the bound of JAX in
requirements.txt below that release.
"""

from __future__ import annotations

from typing import Any

from jax._src import clusters, distributed


def client() -> Any:
    """Of the coordination service: `get_live_nodes` and `key_value_*`; None before `jax.distributed.initialize`."""
    return distributed.global_state.client


def find_processes(
    address: str | None, count: int | None, index: int | None, seconds: int
) -> tuple[str | None, int | None, int | None, Any]:
    """Coordinator, processes, which one this is, and its devices: what is None is sought in the environment.

    Args:
      address: of the coordinator.
      count: of processes.
      index: of this process.
      seconds: for the coordinator's address to be found.

    Returns:
      The four; None where neither the arguments nor the environment say.

    Raises:
      Exception: of any kind, where the environment contradicts itself.
    """
    return clusters.ClusterEnv.auto_detect_unset_distributed_params(address, count, index, None, None, seconds)
