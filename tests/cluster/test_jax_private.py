"""What is taken from inside JAX is there; `spectran_jax/training/jax_private.py` says what to do where it is not."""

import inspect
import re

import pytest
from conftest import REPO
from jax._src import clusters, distributed
from jax._src.lib import _jax

from spectran_jax.training import jax_private


def test_where_the_client_is_kept(monkeypatch):
    assert jax_private.client() is None  # before any process is joined
    monkeypatch.setattr(distributed.global_state, "client", "ours")
    assert jax_private.client() == "ours"


@pytest.mark.parametrize("name", ["get_live_nodes", "key_value_set", "key_value_dir_get", "blocking_key_value_get"])
def test_what_the_client_can_do(name):
    assert callable(getattr(_jax.DistributedRuntimeClient, name))


def test_how_processes_are_found(monkeypatch):
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    names = ["coordinator_address", "num_processes", "process_id", "local_device_ids", "cluster_detection_method"]
    assert [*inspect.signature(find).parameters] == [*names, "initialization_timeout"]
    monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", [])  # wherever the tests run
    assert jax_private.find_processes("host:1", None, 1, 5) == ("host:1", None, 1, None)


def test_nothing_else_is_taken():
    files = [*REPO.glob("spectran_jax/**/*.py"), *REPO.glob("experiments/*.py")]
    taking = [file.name for file in files if re.search(r"^\s*(from|import) jax\._src", file.read_text(), re.M)]
    assert taking == ["jax_private.py"]
