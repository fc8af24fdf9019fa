"""Decompositions that go to disk as they are computed: the same numbers, two passes, little memory."""

import errno
import tracemalloc

import numpy as np
import pytest

from spectran_jax.errors import InputError, RunError
from spectran_jax.npy import open_array
from spectran_jax.spectral import DTYPES, coordinates, decompose, decompose_shared, decompose_to, routes, rows
from spectran_jax.text.digests import checksum


def text_like(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, m)) * np.linspace(1, 0.1, m) + 0.5 * rng.normal(size=m)


def centred_with(values, n, m, common, seed=0):
    """Rows whose centred singular values are known, plus a common row of length `common` times S[0] / sqrt(n)."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(n, len(values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(m, len(values))))[0]
    direction = rng.normal(size=m)
    return (left * values) @ right.T + common * values[0] / n**0.5 * direction / np.linalg.norm(direction)


@pytest.fixture
def rows_read(monkeypatch):
    """How many rows each pass has brought in, added up."""
    read, original = [0], rows._fill

    def counted(pool, out, x, part, finish):
        read[0] += len(x)
        return original(pool, out, x, part, finish)

    monkeypatch.setattr(rows, "_fill", counted)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2**16)
    return read


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("method", "shape"), [("exact", (300, 20)), ("gram", (300, 20)), ("gram", (20, 70))])
def test_to_disk_as_in_memory(tmp_path, method, shape, dtype, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 8 * 7 * 20)
    x = text_like(*shape).astype(np.float16)
    x[5] = 0
    has_text = np.arange(shape[0]) % 7 != 2
    options = {"method": method, "dtype": dtype}
    want = decompose(x, has_text, **options)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    got, sha256 = decompose_to(tmp_path / "u.npy", mapped, has_text, **options)
    for name in ("u", "sigma", "basis", "mean", "scale", "count", "u_scale"):
        one, two = getattr(got, name), getattr(want, name)
        np.testing.assert_array_equal(one, two)
        assert one is two is None or one.dtype == two.dtype
    assert isinstance(got.u, np.memmap)
    assert sha256 == checksum(np.array(got.u))
    assert not np.asarray(got.u, np.float32)[[2, 5, 9]].any()
    np.testing.assert_array_equal(open_array(tmp_path / "u.npy", DTYPES[dtype]), want.u)
    assert (tmp_path / "u.npy").stat().st_size == 128 + want.u.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_passes_over_the_embeddings(tmp_path, rows_read, dtype):
    x = text_like(5000, 16).astype(np.float32)
    decompose_to(tmp_path / "u.npy", x, method="gram", dtype=dtype)
    assert rows_read[0] - 2 * 5000 == len(x[:: 5000 // 1024])  # and a sample


@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_matrix_is_ever_in_memory(tmp_path, monkeypatch, dtype):
    n, m = 60_000, 64
    np.save(tmp_path / "x.npy", text_like(n, m).astype(np.float16))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2**19)
    monkeypatch.setattr(coordinates, "_STEP_BYTES", 2**19)
    monkeypatch.setattr("spectran_jax.npy._REWRITE_BYTES", 2**19)
    tracemalloc.start()
    spectrum, _ = decompose_to(tmp_path / "u.npy", x, method="gram", rtol=1e-5, dtype=dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spectrum.u.shape == (n, m)
    assert peak < n * m  # a byte a number; u takes four, two or one, X two


def test_coordinates_are_not_rewritten_for_less_than_rounding(tmp_path, monkeypatch):
    rewritten, original = [], coordinates.rewrite
    monkeypatch.setattr(coordinates, "rewrite", lambda *a, **k: rewritten.append(a) or original(*a, **k))
    options = {"method": "gram", "normalize_rows": False}
    good = centred_with(np.logspace(0, -3, 40), 500, 40, common=3)
    for cut in ({}, {"max_rank": 10}, {"rtol": 0.01}):
        spectrum, _ = decompose_to(tmp_path / "u.npy", good, **options, **cut)
        u = np.asarray(spectrum.u, np.float64)
        np.testing.assert_allclose((u**2).mean(axis=0), 1, rtol=2e-7)
    assert not rewritten
    bad = centred_with(np.logspace(0, -6.3, 40), 500, 40, common=3)  # some are below the floor, some in doubt
    spectrum, sha256 = decompose_to(tmp_path / "u.npy", bad, rtol=1e-6, **options)
    assert len(rewritten) == 1
    u = np.asarray(spectrum.u, np.float64)
    np.testing.assert_allclose((u**2).mean(axis=0), 1, rtol=1e-6)
    assert (np.diff(spectrum.sigma) <= 0).all()
    assert spectrum.sigma[-1] >= 1e-6
    assert sha256 == checksum(spectrum.u)


@pytest.mark.parametrize("smallest", [-4, -5, -5.9])
@pytest.mark.parametrize("common", [1, 30])
def test_centring_after_the_products(smallest, common, monkeypatch):
    values = np.logspace(0, smallest, 60)
    x = centred_with(values, 2000, 60, common)
    exact = decompose(x, normalize_rows=False, rtol=1e-6, method="exact")
    options = {"normalize_rows": False, "rtol": 1e-6, "method": "gram"}

    def errors():
        spectrum = decompose(x, **options)
        assert spectrum.rank == exact.rank == 60
        return np.abs(spectrum.sigma / exact.sigma - 1).max(), np.abs(spectrum.u - exact.u).max()

    sigma, u = errors()
    # Centred first, the Gram route is off by eps / (2 gap) relative to the smallest eigenvalue; so is this.
    first = x - x.mean(axis=0)
    before = np.abs(decompose(first, center=False, **options).u - exact.u).max()
    assert sigma < 3e-7
    assert u < max(3 * before, 2e-5)
    # Without the provisional mean, what is subtracted is common**2 times what remains.
    monkeypatch.setattr(routes, "provisional_mean", lambda x, part, normalize: np.zeros(x.shape[1]))
    plain_sigma, plain_u = errors()
    assert plain_sigma < (3e-7 if smallest >= -5 or common == 1 else 1e-2)
    assert plain_u < max(6 * common**2 * before, 2e-5)


def test_bad_rows_are_named_whatever_the_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 8 * 6 * 10)
    x = text_like(100, 6)
    x[[13, 55, 99], 2] = [np.nan, np.inf, -np.inf]
    with pytest.raises(InputError, match="NaN or inf in 3 of 100 rows, the first: 13, 55, 99"):
        decompose_to(tmp_path / "u.npy", x, method="gram")
    assert not (tmp_path / "u.npy").exists()
    with pytest.raises(InputError, match=r"none can't be written .*--data_dir"):
        decompose_to(tmp_path / "none" / "u.npy", text_like(9, 4))
    with pytest.raises(InputError, match="dtype must be one of float32, bfloat16, int8, got 'float16'"):
        decompose_to(tmp_path / "u.npy", text_like(9, 4), dtype="float16")


def test_a_full_disk_is_told_for_what_lies_beside_the_coordinates_too(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(RunError, match="The disk is full: "):
        decompose_shared(tmp_path / "u.npy", text_like(40, 6))
