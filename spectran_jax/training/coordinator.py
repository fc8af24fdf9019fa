"""The address of process 0, which the others must reach."""

from __future__ import annotations

import socket
import time

from spectran_jax.errors import InputError

_TRY_SECONDS = 2


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
      InputError: for anything else.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator={address} must be HOST:PORT, such as 10.0.0.1:8476.")
    return host.strip("[]"), int(port)


def refusal(address: str) -> OSError | None:
    """Why nothing answers there; None where something does."""
    try:
        with socket.create_connection(endpoint(address), timeout=_TRY_SECONDS):
            return None
    except OSError as error:
        return error


def wait_for(address: str, index: int, count: int, seconds: float) -> None:
    """Returns when the coordinator listens; raises `InputError` where it does not in time."""
    deadline = time.monotonic() + seconds
    while (error := refusal(address)) is not None:
        if time.monotonic() > deadline:
            raise InputError(
                f"No coordinator at --coordinator={address} within {seconds:g} s ({error.strerror or error}), says "
                f"process {index} of {count}: start process 0 there, or correct the address; "
                "--coordinator_timeout sets how long to wait."
            )
        time.sleep(0.2)


def require_free(address: str) -> None:
    """Raises `InputError` for a port that something else listens on."""
    if refusal(address) is None:
        raise InputError(
            f"--coordinator={address}: port {endpoint(address)[1]} is taken by another program; choose a free one."
        )


def not_met(address: str, count: int) -> str:
    """What to say where not all processes came."""
    return (
        f"The {count} processes of this run did not meet at --coordinator={address} in time: start all of them, with "
        "one --num_processes and a --process_id each; --coordinator_timeout sets how long to wait."
    )
