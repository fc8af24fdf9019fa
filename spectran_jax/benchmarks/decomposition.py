"""Bars of the streaming decomposition: its time over bare products and writes, and the memory it holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from spectran_jax.benchmarks.probe import anonymous_kib, run_probe
from spectran_jax.benchmarks.rows import Measured, Settings, Unavailable, bar
from spectran_jax.benchmarks.timing import alternate

DIMENSION, RANK = 1024, 256
CHUNK_BYTES = 64 * 2**20
LIMIT_MIB = 2048


@bar("decomposition", "Seconds of the decomposition to disk over bare float64 products and writes", at_most=1.5)
def decomposition(settings: Settings) -> Measured:
    """The bare side multiplies one float64 chunk that is in memory, as often as there are chunks: no reading."""
    from spectran_jax.spectral import decompose_to

    items = rows(settings)
    with embeddings(settings.workdir / "decomposition", items) as (source, out):
        paired = alternate(
            {
                "ours": lambda: synced(out, decompose_to(out, np.load(source, mmap_mode="r"), max_rank=RANK)[1]),
                "other": bare(items, out.with_name("bare.bin")),
            },
            min(settings.repeats, 3) if settings.full else settings.repeats,
        )
    ratio = paired.ratio("ours", "other")
    note = f"seconds; {items:,} x {DIMENSION} float16, max_rank {RANK}"
    return Measured(ratio.median, paired.median("ours"), paired.median("other"), (ratio.low, ratio.high), note)


@bar("decomposition_memory", "Peak anonymous MiB of a process that decomposes to disk", at_most=LIMIT_MIB)
def decomposition_memory(settings: Settings) -> Measured:
    """In a process of its own."""
    if not anonymous_kib():
        raise Unavailable("this system does not tell a process's memory; Linux does")
    items = rows(settings)
    with embeddings(settings.workdir / "decomposition_memory", items) as (source, out):
        found = run_probe("decompose", source=str(source), out=str(out), max_rank=RANK)
    note = f"{items:,} x {DIMENSION} float16, max_rank {RANK}; as float64 the embeddings are other"
    return Measured(ratio=found["peak_mib"], ours=found["peak_mib"], other=items * DIMENSION * 8 / 2**20, note=note)


def synced(path: Path, result: str) -> str:
    """The result, once the file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return result


def rows(settings: Settings) -> int:
    """Items of the catalogue that is decomposed."""
    return 2_000_000 if settings.full else 100_000


@contextlib.contextmanager
def embeddings(folder: Path, items: int) -> Iterator[tuple[Path, Path]]:
    """Random embeddings with a decaying spectrum in a .npy file, and a place for u; both are removed again."""
    folder.mkdir(parents=True, exist_ok=True)
    source, out = folder / "x.npy", folder / "u.npy"
    try:
        matrix = np.lib.format.open_memmap(source, mode="w+", dtype=np.float16, shape=(items, DIMENSION))
        rng = np.random.default_rng(0)
        decay = np.geomspace(1, 0.02, DIMENSION).astype(np.float32)
        for start in range(0, items, 16_384):
            part = matrix[start : start + 16_384]
            part[:] = rng.standard_normal(part.shape, np.float32) * decay
        matrix.flush()
        del matrix
        yield source, out
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def bare(items: int, out: Path) -> Callable[[], float]:
    """chunk^T chunk, chunk basis in float64 over all chunks, and a file of the bytes of u, down to the disk."""
    rng = np.random.default_rng(0)
    size = CHUNK_BYTES // (8 * DIMENSION)
    chunk = rng.standard_normal((size, DIMENSION))
    basis = rng.standard_normal((DIMENSION, RANK))
    block = np.zeros((size, RANK), np.float32)
    sizes = [min(size, items - start) for start in range(0, items, size)]

    def work() -> float:
        gram, product = np.zeros((DIMENSION, DIMENSION)), np.empty((DIMENSION, DIMENSION))
        for n in sizes:
            gram += np.matmul(chunk[:n].T, chunk[:n], out=product)
        projected = np.empty((size, RANK))
        with out.open("wb") as file:
            for n in sizes:
                np.matmul(chunk[:n], basis, out=projected[:n])
                file.write(block[:n].data)
            file.flush()
            os.fsync(file.fileno())
        return float(gram[0, 0])

    return work
