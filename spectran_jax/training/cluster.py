"""The processes of a run: how they find each other, notice that one is gone, and end together.

Built on JAX's coordination service, through the client that `jax.distributed.initialize` makes: its key-value store for
news, its heartbeats for who is alive. The store is used where a collective of the devices would have to wait for
them. Process 0 holds the service. A process that fails says why before it leaves, and the others leave with its status;
one that says nothing for `peer_timeout` seconds is lost, and the others leave with status 75.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed

from spectran_jax.cluster_flags import ClusterOptions
from spectran_jax.errors import InputError, Interrupted, SpectranError

_ROOT = "spectran/"
_POLL = 0.5
"""Seconds between two looks at the news."""
_LEAVING = 1.0
"""Seconds that process 0, and with it the service, outlives the others."""


class Cluster:
    """This process among those of the run; `index` 0 of `count` 1 where it is alone, and then nothing waits."""

    def __init__(self, index: int = 0, count: int = 1, address: str = "", peer_timeout: float = 30.0) -> None:
        self.index, self.count, self.address = index, count, address
        self.on_news: list[Callable[[dict[str, str]], None]] = []
        """Called by a thread with what stands in the key-value store under "news/", twice a second."""
        self.prepare_to_print: Callable[[], None] = lambda: None
        """Called before a line is written from a thread: a progress bar moves out of the way."""
        self._peer_timeout = peer_timeout
        self._rounds, self._round_at = 0, time.monotonic()
        self._stage = "starting"

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

    def read(self, key: str) -> str:
        """The value of a key; waits until some process tells it. Signals are heeded meanwhile."""
        while True:
            try:
                return str(self._client.blocking_key_value_get(_ROOT + key, 500))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def read_all(self, folder: str) -> dict[str, str]:
        """The values of all keys `folder/NAME`, by name."""
        prefix = f"{_ROOT}{folder}/"
        return {key.removeprefix(prefix): value for key, value in self._client.key_value_dir_get(prefix)}

    def read_each(self, folder: str) -> list[Any]:
        """The JSON values that each process tells under `folder/INDEX`, in their order; waits for all of them."""
        while len(values := self.read_all(folder)) < self.count:
            time.sleep(0.05)
        return [json.loads(values[str(index)]) for index in range(self.count)]

    def of_first(self, key: str, value: Callable[[], Any]) -> Any:
        """What `value` returns on process 0, a JSON value, for all; the others wait for it. `key` serves once."""
        if self.alone:
            return value()
        if self.is_first:
            made = value()
            self.tell(f"first/{key}", json.dumps(made))
            return made
        return json.loads(self.read(f"first/{key}"))

    def gather(self, key: str, value: Any) -> list[Any]:
        """The JSON value of each process, in their order, for all. `key` serves once."""
        if self.alone:
            return [value]
        self.tell(f"each/{key}/{self.index}", json.dumps(value))
        return self.read_each(f"each/{key}")

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

    def _start(self) -> None:
        self._client: Any = distributed.global_state.client
        self._stage = "running"
        for work in (self._watch_peers, self._watch_news):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

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
        trace = None
        if isinstance(error, (SpectranError, Interrupted)):
            status, message = error.exit_status, str(error)
        elif isinstance(error, KeyboardInterrupt):
            status, message = Interrupted.exit_status, "Stopped by SIGINT; start the same command again."
        else:
            status, message = 1, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            trace = error
        if not isinstance(error, (InputError, Interrupted, KeyboardInterrupt)):
            self.settle()  # it may follow from a process that died
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.tell("news/failed", json.dumps({"process": self.index, "status": status, "message": message}))
            news = self.read_all("news")
            if json.loads(news["failed"])["message"] != message:  # another one was first: that is the cause
                self._heed(news)
        if trace is not None:
            traceback.print_exception(trace)
        self._leave(status, message)

    def finish(self) -> None:
        """Waits for all processes, then leaves the coordination service."""
        self.gather("finished", True)
        self._stage = "finished"
        if self.is_first:
            time.sleep(_LEAVING)
        jax.distributed.shutdown()

    def _leave(self, status: int, message: str) -> NoReturn:
        """Ends the process at once: the devices may wait for a process that is gone, and would do so for ever.

        Process 0 stays until the others had time to read the news, which it keeps.
        """
        self._stage = "leaving"
        with contextlib.suppress(Exception):
            self.prepare_to_print()
        _write_last(message)
        if self.is_first:
            time.sleep(2 * _POLL + _LEAVING)
        os._exit(status)

    def _on_abort(self, number: int) -> None:
        """SIGABRT: how XLA's coordination client ends a process whose coordinator is gone, among other things."""
        if self._stage == "starting":
            _write_last(_not_all(self.address, self.count))
            os._exit(InputError.exit_status)
        if self._stage in ("finished", "leaving"):
            os._exit(0 if self._stage == "finished" else Interrupted.exit_status)
        silent = time.monotonic() - self._round_at
        if not self.is_first and (silent > self._peer_timeout / 2 or not _reachable(self.address)):
            _write_last(self._coordinator_lost())
            os._exit(Interrupted.exit_status)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)  # something else: let it show


@contextlib.contextmanager
def joined(options: ClusterOptions) -> Iterator[Cluster]:
    """The processes of this run, found by the flags or from the environment; before JAX touches any device.

    An error that leaves the block ends all processes with its status; this one at once, without the handlers of
    `atexit`, which would wait for the others.

    Raises:
      InputError: for flags that do not fit together, or a coordinator that can't be reached in time.
    """
    found = _find(options)
    if found is None:
        yield Cluster()
        return
    cluster = _connect(options, *found)
    try:
        cluster.tell(f"hosts/{cluster.index}", socket.gethostname())
        yield cluster
        cluster.finish()
    except BaseException as error:
        cluster.fail(error)


def _find(options: ClusterOptions) -> tuple[str, int, int, Any] | None:
    """Coordinator, processes, which one, and its devices where the environment names them; None where it is alone."""
    given = (options.coordinator or None, options.num_processes or None, None)
    address, count = given[0], given[1]
    index = options.process_id if options.process_id >= 0 else None
    if count == 1:
        return None
    devices = None
    if None in (address, count, index):
        try:
            address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                address, count, index, None, None, options.coordinator_timeout
            )
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise InputError(
                f"The environment does not say which processes belong to this run ({reason}); name them by "
                "--coordinator, --num_processes and --process_id, or run alone with --num_processes=1."
            ) from None
    if address is None and count is None and index is None:
        return None
    flags = {"coordinator": address, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if missing:
        raise InputError(
            f"A run on several processes needs --coordinator=HOST:PORT, --num_processes and --process_id: "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, and the environment does not say."
        )
    assert address is not None
    assert count is not None
    assert index is not None
    if count == 1:
        return None
    if not 0 <= index < count:
        raise InputError(f"--process_id={index} must be between 0 and {count - 1}, for --num_processes={count}.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator={address} must be HOST:PORT, such as 10.0.0.1:8476.")
    return address, count, index, devices


def _connect(options: ClusterOptions, address: str, count: int, index: int, devices: Any) -> Cluster:
    deadline = time.monotonic() + options.coordinator_timeout
    # Tried by ourselves first: XLA's client and server abort the process where they fail.
    if index:
        _wait_for(address, index, count, options.coordinator_timeout)
    else:
        _require_free(address)
    cluster = Cluster(index, count, address, options.peer_timeout)
    _catch_aborts(cluster._on_abort)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if jax.config.values["jax_platforms"] == "cpu":
        _hush_gloo()
    # JAX would take SIGTERM for itself by a handler in C, which Python's replaces; `consensus` does its work.
    jax.config.update("jax_enable_preemption_service", False)
    # A lost process is ours to report, rather than XLA's to abort for.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, round(deadline - time.monotonic())),
            heartbeat_timeout_seconds=options.peer_timeout,
            shutdown_timeout_seconds=10,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputError(f"{_not_all(address, count)} ({reason})") from None
    cluster._start()
    return cluster


def _hush_gloo() -> None:
    """Keeps stdout for Python: Gloo writes a line there for each connection."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _wait_for(address: str, index: int, count: int, seconds: float) -> None:
    """Returns when the coordinator listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(_endpoint(address), timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"No coordinator at --coordinator={address} within {seconds:g} s ({error.strerror or error}), says "
                    f"process {index} of {count}: start process 0 there, or correct the address; "
                    "--coordinator_timeout sets how long to wait."
                ) from None
        time.sleep(0.2)


def _require_free(address: str) -> None:
    """Refuses a port that something else listens on."""
    host, port = _endpoint(address)
    try:
        with socket.create_connection((host, port), timeout=2):
            pass
    except OSError:
        return
    raise InputError(f"--coordinator={address}: port {port} is taken by another program; choose a free one.")


def _reachable(address: str) -> bool:
    try:
        with socket.create_connection(_endpoint(address), timeout=2):
            return True
    except OSError:
        return False


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _not_all(address: str, count: int) -> str:
    return (
        f"The {count} processes of this run did not meet at --coordinator={address} in time: start all of them, with "
        "one --num_processes and a --process_id each; --coordinator_timeout sets how long to wait."
    )


def _write_last(message: str) -> None:
    """The last line of this process, past buffers that another thread may hold."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.write(2, f"error: {message}\n".encode())


_HANDLERS: list[Any] = []
"""C callbacks that must not be collected."""


def _catch_aborts(handler: Callable[[int], None]) -> None:
    """Calls `handler` on SIGABRT. Not by Python's `signal`, whose handlers run after abort() has ended the process."""
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    _HANDLERS.append(callback)
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(callback, ctypes.c_void_p))
