"""The processes of a run: what they tell each other, how they notice that one is gone, and end together.

Built on JAX's coordination service, through the client that `jax.distributed.initialize` makes: its key-value store for
news, its heartbeats for who is alive. The store is used where a collective of the devices would have to wait for
them. Process 0 holds the service. A process that fails says why before it leaves, and the others leave with its status;
one that says nothing for `peer_timeout` seconds is lost, and the others leave with status 75.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from spectran_jax.errors import InputError, Interrupted, RunError, first_line, outcome
from spectran_jax.training import coordinator, jax_private

_ROOT = "spectran/"
_POLL = 0.5
"""Seconds between two looks at the news."""
_LEAVING = 1.0
"""Seconds that process 0, and with it the service, outlives the others."""


class Cluster:
    """This process among those of the run; `index` 0 of `count` 1 where it is alone, and then nothing waits."""

    def __init__(
        self, index: int = 0, count: int = 1, address: str = "", peer_timeout: float = 30.0, hang_timeout: float = 0.0
    ) -> None:
        self.index, self.count, self.address = index, count, address
        self.hang_timeout = hang_timeout
        """Seconds without progress after which a process that lives counts as hanging; 0 is never."""
        self.on_news: list[Callable[[dict[str, str]], None]] = []
        """Called by a thread with what stands in the key-value store under "news/", twice a second."""
        self._peer_timeout = peer_timeout
        self._rounds, self._round_at = 0, time.monotonic()
        self._stage = "starting"
        self._threads: list[threading.Thread] = []

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there are no other processes."""
        return self.count == 1

    # The key-value store.

    def tell(self, key: str, value: str) -> bool:
        """Puts a value where all processes can read it; False where the key is there already."""
        try:
            self._client.key_value_set(_ROOT + key, value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise
            return False
        return True

    def read(self, key: str, deadline: float = math.inf) -> str:
        """The value of a key; waits until some process tells it. Signals are heeded meanwhile.

        Raises:
          JaxRuntimeError: where nobody did by `deadline`, a time of the monotonic clock.
        """
        while True:
            try:
                return str(self._client.blocking_key_value_get(_ROOT + key, 500))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() >= deadline:
                    raise

    def read_all(self, folder: str) -> dict[str, str]:
        """The values of all keys `folder/NAME`, by name."""
        prefix = f"{_ROOT}{folder}/"
        return {key.removeprefix(prefix): value for key, value in self._client.key_value_dir_get(prefix)}

    def _read_until(self, folder: str, deadline: float = math.inf) -> dict[str, str]:
        """`read_all` when every process has told its value, or at a time of the monotonic clock."""
        while len(values := self.read_all(folder)) < self.count and time.monotonic() < deadline:
            time.sleep(0.05)
        return values

    def of_first(self, key: str, value: Callable[[], Any]) -> Any:
        """What `value` returns on process 0, a JSON value, for all; the others wait for it. `key` serves once."""
        if self.alone:
            return value()
        if self.is_first:
            made = value()
            if not self.tell(f"first/{key}", json.dumps(made)):
                raise RuntimeError(f"The key {key!r} has served: the others would read what was told then.")
            return made
        return json.loads(self.read(f"first/{key}"))

    def gather(self, key: str, value: Any) -> list[Any]:
        """The JSON value of each process, in their order, for all. `key` serves once."""
        if self.alone:
            return [value]
        self.tell(f"each/{key}/{self.index}", json.dumps(value))

        def collect() -> list[Any]:  # on one process: if all looked for all, the coordinator would have n^2 to answer
            values = self._read_until(f"each/{key}")
            return [json.loads(values[str(index)]) for index in range(self.count)]

        collected: list[Any] = self.of_first(f"each/{key}", collect)
        return collected

    # Who is there.

    def settle(self) -> None:
        """Returns when every process has been seen alive after this call; where one is not, this process ends.

        For what may be the doing of a process that died, such as a broken connection.
        """
        if self.alone:
            return
        wanted, deadline = self._rounds + 2, time.monotonic() + self._peer_timeout + 30
        while self._rounds < wanted and time.monotonic() < deadline:
            time.sleep(0.05)

    def start(self) -> None:
        """To be called once when JAX's client is there: begins to watch."""
        self._client: Any = jax_private.client()
        self._stage = "running"
        for work in (self._watch_peers, self._watch_news):
            self._threads.append(threading.Thread(target=work, name=work.__name__, daemon=True))
            self._threads[-1].start()

    def _watch_peers(self) -> None:
        """Rounds that need every living process; who is missing from one is dead or hangs."""
        everyone = list(range(self.count))
        while self._stage == "running":
            try:
                alive = self._client.get_live_nodes(everyone)
            except jax.errors.JaxRuntimeError as error:
                self._service_failed(error)
                return
            if self._stage != "running":
                return
            missing = sorted(set(everyone) - set(alive))
            if missing:
                # News first: a process that told why it leaves is not lost.
                self._heed(self.read_all("news"))
                names = "process " + ", ".join(map(str, missing)) if len(missing) == 1 else f"processes {missing}"
                verb = "gives" if len(missing) == 1 else "give"
                self._leave(
                    Interrupted.exit_status,
                    f"{names[0].upper()}{names[1:]} of {self.count} {verb} no sign of life for {self._peer_timeout:g} "
                    f"s ({self._hosts(missing)}): killed, preempted or hanging. Start the same command again on all "
                    "hosts to go on from the last checkpoint.",
                )
            self._rounds, self._round_at = self._rounds + 1, time.monotonic()
            time.sleep(_POLL)

    def _watch_news(self) -> None:
        while self._stage == "running":
            try:
                news = self.read_all("news")
                self._heed(news)
                for listener in self.on_news:
                    listener(news)
            except jax.errors.JaxRuntimeError as error:
                self._service_failed(error)
                return
            except Exception as error:  # a thread that is gone would hear of no failure any more
                self.fail(error)
            time.sleep(_POLL)

    def _heed(self, news: dict[str, str]) -> None:
        """Ends this process where another one failed."""
        if self._stage == "running" and "failed" in news:
            failed = json.loads(news["failed"])
            if failed["process"] != self.index:
                self._leave(failed["status"], f"Process {failed['process']} left: {failed['message']}")

    def _service_failed(self, error: Exception) -> None:
        if self._stage == "running":
            self._leave(Interrupted.exit_status, self._coordinator_lost())

    def _coordinator_lost(self) -> str:
        return (
            f"Process 0 of {self.count}, the coordinator {self.address}, gives no sign of life: killed, preempted, or "
            "out of reach. Start the same command again on all hosts to go on from the last checkpoint."
        )

    def _hosts(self, which: list[int]) -> str:
        hosts = self.read_all("hosts")
        return ", ".join(sorted({hosts.get(str(index), "unknown host") for index in which}))

    # How it ends.

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process for an error, and with it all others."""
        if self._stage == "leaving":  # a thread of ours is at it
            time.sleep(self._peer_timeout)
        told = outcome(error)
        status, message = told or (RunError.exit_status, f"{type(error).__name__}: {first_line(error, 300)}")
        if not isinstance(error, (InputError, Interrupted, KeyboardInterrupt)):
            self.settle()  # it may follow from a process that died
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.tell("news/failed", json.dumps({"process": self.index, "status": status, "message": message}))
            news = self.read_all("news")
            if json.loads(news["failed"])["message"] != message:  # another one was first: that is the cause
                self._heed(news)
        if told is None:
            traceback.print_exception(error)
        self._leave(status, message)

    def finish(self) -> None:
        """Waits for all processes, then leaves the coordination service."""
        self.gather("finished", True)
        if self._stage == "running":  # else a thread of ours is about to end this process
            self._stage = "finished"
        # None may leave while another one still watches, which would take it for lost.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.tell(f"left/{self.index}", "")
            deadline = time.monotonic() + self._peer_timeout
            if self.is_first:
                self._read_until("left", deadline)
                self.tell("all left", "")
            else:
                self.read("all left", deadline)
        if self.is_first:
            time.sleep(_LEAVING)
        jax.distributed.shutdown()
        # A thread that comes back from the client in C++ when Python is gone would end the process by a signal.
        for thread in self._threads:
            thread.join(self._peer_timeout)

    def _leave(self, status: int, message: str) -> NoReturn:
        """Ends the process at once: the devices may wait for a process that is gone, and would do so for ever.

        Process 0 stays until the others had time to read the news, which it keeps.
        """
        self._stage = "leaving"
        # A main thread that hangs in a write holds the stream that the last line goes to.
        last = threading.Timer(2 * _POLL + 5 * _LEAVING, os._exit, [status])
        last.daemon = True
        last.start()
        write_last(message)
        if self.is_first:
            time.sleep(2 * _POLL + _LEAVING)
        os._exit(status)

    def on_abort(self, number: int) -> None:
        """SIGABRT: how XLA's coordination client ends a process whose coordinator is gone, among other things."""
        if self._stage == "starting":
            write_last(coordinator.not_met(self.address, self.count))
            os._exit(InputError.exit_status)
        if self._stage in ("finished", "leaving"):
            os._exit(0 if self._stage == "finished" else Interrupted.exit_status)
        silent = time.monotonic() - self._round_at
        if not self.is_first and (silent > self._peer_timeout / 2 or coordinator.refusal(self.address)):
            write_last(self._coordinator_lost())
            os._exit(Interrupted.exit_status)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)  # something else: let it show


def write_last(message: str) -> None:
    """The last line of this process, past buffers that another thread may hold."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.write(2, f"error: {message}\n".encode())
