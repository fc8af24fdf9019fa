"""How a process of a run leaves the others when all is done."""

import threading
import time
from types import SimpleNamespace

import jax
import pytest
from jax._src import distributed

from spectran_jax.training import cluster as rooms
from spectran_jax.training.cluster import Cluster


class Client:
    """Of a coordination service where every process has finished; who is alive it answers when it is shut down."""

    def __init__(self):
        self.down = threading.Event()

    def get_live_nodes(self, nodes):
        assert self.down.wait(10)
        time.sleep(0.2)  # on its way back to Python
        raise jax.errors.JaxRuntimeError("CANCELLED")

    def key_value_set(self, key, value):
        pass

    def key_value_dir_get(self, prefix):
        return [(prefix + str(index), "true") for index in range(2)] if "finished" in prefix else []


@pytest.mark.parametrize("index", [0, 1])
def test_no_thread_is_in_the_client_when_python_ends(index, monkeypatch):
    """It would come back to an interpreter that is gone, which ends a run that went well by a signal."""
    client = Client()
    monkeypatch.setattr(distributed, "global_state", SimpleNamespace(client=client))
    monkeypatch.setattr(jax.distributed, "shutdown", client.down.set)
    monkeypatch.setattr(rooms, "_LEAVING", 0.01)
    before = set(threading.enumerate())
    cluster = Cluster(index, 2)
    cluster.start()
    assert len(set(threading.enumerate()) - before) == 2
    cluster.finish()
    assert set(threading.enumerate()) <= before
