"""Matrices written row after row and changed in place."""

import ml_dtypes
import numpy as np
import pytest

from spectran_jax import npy
from spectran_jax.text.digests import checksum

DTYPES = [np.dtype(np.float32), np.dtype(np.int8), npy.BFLOAT16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(tmp_path, dtype):
    x = np.arange(21).reshape(7, 3).astype(dtype)
    with npy.ArrayWriter(tmp_path / "x.npy", shape=(7, 3), dtype=dtype) as writer:
        for rows in (x[:2], x[2:2], x[2:].T.copy().T):  # no rows, and rows that do not lie in C order
            writer.write(rows)
    got = npy.open_array(tmp_path / "x.npy", dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x)
    assert writer.sha256 == checksum(x)
    # Anybody's NumPy can open it, the bits of bfloat16 as uint16.
    plain = np.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(plain, x.view(np.uint16) if dtype == npy.BFLOAT16 else x)


@pytest.mark.parametrize("step_rows", [1, 3, 1000])
@pytest.mark.parametrize("rows", [1, 99, 100_000])
@pytest.mark.parametrize(
    ("dtype", "into", "columns"),
    [("f4", "f4", 12), ("f4", "f4", 5), ("f4", "i1", 12), ("f4", "i1", 1), (ml_dtypes.bfloat16, ml_dtypes.bfloat16, 9)],
)
def test_rewritten_in_place(tmp_path, monkeypatch, step_rows, rows, dtype, into, columns):
    dtype, into = np.dtype(dtype), np.dtype(into)
    rows = min(rows, 200 * step_rows)
    monkeypatch.setattr(npy, "_REWRITE_BYTES", step_rows * 12 * dtype.itemsize)
    x = np.random.default_rng(0).integers(-50, 50, size=(rows, 12)).astype(dtype)
    with npy.ArrayWriter(tmp_path / "x.npy", shape=x.shape, dtype=dtype) as writer:
        writer.write(x)

    def change(block):
        return (block[:, ::-1][:, :columns].astype(np.float32) * 2).astype(into)

    sha256 = npy.rewrite(tmp_path / "x.npy", change, dtype=dtype, columns=columns, into=into)
    got = npy.open_array(tmp_path / "x.npy", into)
    np.testing.assert_array_equal(got, change(x))
    assert sha256 == checksum(got)
    assert (tmp_path / "x.npy").stat().st_size == got.offset + got.nbytes


def test_rows_that_would_overtake_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.int8))
    with pytest.raises(ValueError, match="do not fit in place"):
        npy.rewrite(tmp_path / "x.npy", lambda b: b, dtype=np.dtype("i1"), columns=3, into=np.dtype("f4"))
    assert np.load(tmp_path / "x.npy").shape == (4, 3)
