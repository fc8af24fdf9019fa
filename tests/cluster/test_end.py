"""How a process of a run leaves the others, when all is done or where it fails."""

import errno
import json
import re
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from spectran_jax.training import cluster as rooms
from spectran_jax.training import jax_private
from spectran_jax.training.cluster import Cluster


class Client:
    """Of a coordination service where every process has finished; who is alive it answers when it is shut down."""

    def __init__(self):
        self.down, self.told = threading.Event(), []
        self.asked, self.leave = 0, 2  # how often it was asked who has left, and how many do, one more each time

    def get_live_nodes(self, nodes):
        assert self.down.wait(10)
        time.sleep(0.2)  # on its way back to Python
        raise jax.errors.JaxRuntimeError("CANCELLED")

    def key_value_set(self, key, value):
        self.told.append(key.removeprefix("spectran/"))

    def blocking_key_value_get(self, key, milliseconds):
        """What process 0 tells: who has finished, and, where all come to it, that all have left."""
        if key.endswith("each/finished"):
            return "[true, true]"
        assert key.endswith("all left")
        assert not self.down.is_set()
        self.asked += 1
        if min(self.asked, self.leave) < 2:
            time.sleep(0.05)
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return ""

    def key_value_dir_get(self, prefix):
        if "left" in prefix:
            self.asked += 1
            assert not self.down.is_set()
        there = range(2) if "finished" in prefix else range(min(self.asked, self.leave)) if "left" in prefix else ()
        return [(prefix + str(index), "true") for index in there]


@pytest.fixture
def client(monkeypatch):
    client = Client()
    monkeypatch.setattr(jax_private, "client", lambda: client)
    monkeypatch.setattr(jax.distributed, "shutdown", client.down.set)
    monkeypatch.setattr(rooms, "_LEAVING", 0.01)
    return client


@pytest.mark.parametrize("index", [0, 1])
def test_no_thread_is_in_the_client_when_python_ends(client, index):
    """It would come back to an interpreter that is gone, which ends a run that went well by a signal."""
    before = set(threading.enumerate())
    cluster = Cluster(index, 2)
    cluster.start()
    assert len(set(threading.enumerate()) - before) == 2
    cluster.finish()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("index", [0, 1])
def test_none_leaves_while_another_one_watches(client, index):
    """Who still watches would take it for lost."""
    cluster = Cluster(index, 2)
    cluster.start()
    cluster.finish()
    assert client.asked == 2  # until both have told it
    collected = ["first/each/finished", "left/0", "all left"] if index == 0 else ["left/1"]
    assert client.told == [f"each/finished/{index}", *collected]


@pytest.mark.parametrize("index", [0, 1])
def test_none_waits_for_ever_for_one_that_died_at_the_end(client, index):
    client.leave = 1
    cluster = Cluster(index, 2, peer_timeout=0.3)
    cluster.start()
    cluster.finish()
    assert client.down.is_set()


class Left(Exception):
    """In place of the end of the process, with its status and message."""


NO_MEMORY = r"^Out of memory \(.*\)\. Take a smaller --batch_size"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, r"^/x/y: Permission denied\.$"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, r"^/x/y: No space left on device\.$"),
        (MemoryError("Unable to allocate 7.28 TiB"), 1, NO_MEMORY),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes.\nMore"), 1, NO_MEMORY),
        (KeyboardInterrupt(), 75, r"^Stopped by SIGINT; start the same command again\.$"),
        (ZeroDivisionError("division by zero\nat noon"), 1, r"^ZeroDivisionError: division by zero$"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_ends_all_with_the_status_and_the_line_of_a_command(monkeypatch, capsys, error, status, message):
    def leave(cluster, status, message):
        raise Left(status, message)

    news = {}
    cluster = Cluster(1, 2)
    cluster._client = SimpleNamespace(key_value_set=news.__setitem__)
    monkeypatch.setattr(Cluster, "settle", lambda cluster: None)
    monkeypatch.setattr(Cluster, "_leave", leave)
    monkeypatch.setattr(Cluster, "read_all", lambda cluster, folder: {"failed": news["spectran/news/failed"]})
    with pytest.raises(Left) as left:
        cluster.fail(error)
    assert left.value.args[0] == status
    assert re.search(message, left.value.args[1])
    told = json.loads(news["spectran/news/failed"])
    assert told == {"process": 1, "status": status, "message": left.value.args[1]}
    assert ("ZeroDivisionError" in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)
