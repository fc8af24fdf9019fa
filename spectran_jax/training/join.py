"""How a process finds the others of its run: by flags or from the environment, through `jax.distributed`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from spectran_jax.cluster_flags import ClusterOptions
from spectran_jax.errors import InputError, first_line
from spectran_jax.training import coordinator, jax_private
from spectran_jax.training.cluster import Cluster


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
    address, count = options.coordinator or None, options.num_processes or None
    index = options.process_id if options.process_id >= 0 else None
    if count == 1:
        return None
    devices = None
    if None in (address, count, index):
        try:
            address, count, index, devices = jax_private.find_processes(
                address, count, index, options.coordinator_timeout
            )
        except Exception as error:
            reason = first_line(error, 300)
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
    coordinator.endpoint(address)  # refuses what is none
    return address, count, index, devices


def _connect(options: ClusterOptions, address: str, count: int, index: int, devices: Any) -> Cluster:
    deadline = time.monotonic() + options.coordinator_timeout
    # Tried by ourselves first: XLA's client and server abort the process where they fail.
    if index:
        coordinator.wait_for(address, index, count, options.coordinator_timeout)
    else:
        coordinator.require_free(address)
    cluster = Cluster(index, count, address, options.peer_timeout, options.hang_timeout)
    _catch_aborts(cluster.on_abort)
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
        raise InputError(f"{coordinator.not_met(address, count)} ({first_line(error, 200)})") from None
    cluster.start()
    return cluster


def _hush_gloo() -> None:
    """Keeps stdout for Python: Gloo writes a line there for each connection."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


_HANDLERS: list[Any] = []
"""C callbacks that must not be collected."""


def _catch_aborts(handler: Callable[[int], None]) -> None:
    """Calls `handler` on SIGABRT. Not by Python's `signal`, whose handlers run after abort() has ended the process."""
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    _HANDLERS.append(callback)
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(callback, ctypes.c_void_p))
