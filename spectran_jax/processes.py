"""What the processes of one run agree on through the host: numbers, bytes, files and failures.

With one process everything here is at hand and nothing is exchanged. With several, each function is collective: all
processes call it, in the same order. Device programs need none of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt8
from orbax.checkpoint import multihost

from spectran_jax.errors import InputError, RunError
from spectran_jax.npy import BLOCK_ROWS

T = TypeVar("T")

_PATIENCE_MS = 7 * 24 * 3600 * 1000
"""How long the first waits for the last: hours of encoding. A process that dies ends the wait at once."""

_meetings = itertools.count()


def rows_of(rows: int, index: int | None = None) -> slice:
    """The rows of process `index` (this one by default): consecutive, whole blocks of `BLOCK_ROWS`, evenly shared.

    Whole blocks make checksums independent of the number of processes, and keep two processes out of one page of a
    shared file.
    """
    index, count, blocks = jax.process_index() if index is None else index, jax.process_count(), -(-rows // BLOCK_ROWS)
    start, stop = (min(rows, blocks * i // count * BLOCK_ROWS) for i in (index, index + 1))
    return slice(start, stop)


def gathered(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "P *shape"]:
    """The arrays of all processes, of one shape and dtype, bit by bit."""
    if jax.process_count() == 1:
        return array[None]
    # As bytes: a device without float64 would round.
    flat = multihost_utils.process_allgather(_bytes(array))
    return np.ascontiguousarray(flat).view(array.dtype).reshape(-1, *array.shape)


def gathered_bytes(data: bytes) -> list[bytes]:
    """The bytes of all processes, of any length."""
    if jax.process_count() == 1:
        return [data]
    lengths = gathered(np.array(len(data), np.int64))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return [row[:length].tobytes() for row, length in zip(gathered(padded), lengths, strict=True)]


def gathered_rows(part: Shaped[np.ndarray, "part *shape"], rows: int) -> Shaped[np.ndarray, "N *shape"]:
    """An array of `rows` rows, from what each process has of it (see `rows_of`)."""
    if jax.process_count() == 1:
        return part
    parts = gathered_bytes(np.ascontiguousarray(part).tobytes())
    return np.frombuffer(b"".join(parts), part.dtype).reshape(rows, *part.shape[1:])


def from_first(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Process 0's array, bit by bit; those of the others have its shape and dtype."""
    if jax.process_count() == 1:
        return array
    flat = multihost_utils.broadcast_one_to_all(_bytes(array))
    return np.ascontiguousarray(flat).view(array.dtype).reshape(array.shape)


def together(action: Callable[[], T]) -> T:
    """Runs `action` on every process and waits for all: where it fails on one, it fails on all.

    `action` must itself be no collective: the failed process would not take part in it.

    Raises:
      InputError, RunError: what any process raised, the same on all of them; RunError also where another process
        failed in another way.
      Exception: of whatever kind this process raised.
    """
    if jax.process_count() == 1:
        return action()
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    wait()
    kind = "" if failure is None else f"{type(failure).__name__}:{failure}"
    said = [message.decode() for message in gathered_bytes(kind.encode("utf-8", "replace"))]
    if failure is not None and not isinstance(failure, InputError | RunError):
        raise failure
    for index, message in enumerate(said):
        if message:
            name, _, text = message.partition(":")
            known = {"InputError": InputError, "RunError": RunError}.get(name)
            raise known(text) if known else RunError(f"Process {index} failed ({name}: {text}).")
    return result


def by_first(action: Callable[[], None]) -> None:
    """`together`, where only process 0 has something to do."""
    together(action if jax.process_index() == 0 else lambda: None)


def wait() -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        # Not sync_global_devices: a collective gives up on a process that is busy for minutes.
        multihost.get_barrier_sync_fn()(key=f"spectran_jax_{next(_meetings)}", timeout_ms=_PATIENCE_MS)


def _bytes(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "bytes"]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
