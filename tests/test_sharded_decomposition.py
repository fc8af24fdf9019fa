"""Four real processes decompose and encode what one does, each its own rows."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO

from spectran_jax import spectral
from spectran_jax.benchmarks.local_run import free_port
from spectran_jax.config import Config
from spectran_jax.spectral import dequantise
from spectran_jax.text import TextEmbeddings, encoders, item_embeddings, load_or_decompose

PROCESSES = 4
CLUSTERS = [(0, 1), (1, 3), (3, 6), (6, 7), (7, 8)]
VALUES = np.array([1, 0.5, 0.5 - 1e-6, 0.2, 0.2, 0.2, 0.05, 0.01])
LARGE = (600_000, 128)


def small():
    """Singular values of which some are equal, a common direction, items without text."""
    rng = np.random.default_rng(0)
    n, has_text = 20_000, np.arange(20_000) % 11 != 3
    count = int(has_text.sum())
    left = np.linalg.qr(rng.normal(size=(count, 8)))[0]
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    x = np.zeros((n, 24), np.float32)
    x[has_text] = ((left * VALUES) @ right[:, :8].T) * count**0.5 + 3 * right[:, 8]
    return x, has_text


def texts():
    rng = np.random.default_rng(1)
    return [
        "".join("abcde "[i] for i in row) if k % 5 else " " for k, row in enumerate(rng.integers(0, 6, (20_000, 6)))
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    x, has_text = small()
    rng = np.random.default_rng(2)
    bad = x.copy()
    bad[np.flatnonzero(has_text)[[10, 15_000]], 3] = np.inf
    large = np.lib.format.open_memmap(folder / "large.npy", mode="w+", dtype=np.float32, shape=LARGE)
    for start in range(0, LARGE[0], 50_000):
        large[start : start + 50_000] = rng.random((50_000, LARGE[1]), np.float32)
    del large
    tiny = rng.normal(size=(40, 6)).astype(np.float32)
    for name, matrix in {"small": x, "bad": bad, "tiny": tiny}.items():
        np.save(folder / f"{name}.npy", matrix)
        np.save(folder / f"{name}.has_text.npy", has_text[: len(matrix)])
    np.save(folder / "large.has_text.npy", np.ones(LARGE[0], bool))
    np.save(folder / "rows.npy", rng.permutation(20_000)[:9_000].astype(np.int32))
    (folder / "texts.json").write_text(json.dumps(texts()))
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "tests/sharded_decomposition.py", str(folder), address, str(PROCESSES)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)}
    said = [folder / f"{i}.err" for i in range(PROCESSES)]  # a pipe that nobody reads yet would hold one up
    started = []
    try:
        for i, path in enumerate(said):
            with path.open("w") as err:
                started.append(subprocess.Popen([*command, str(i)], cwd=REPO, env=env, stderr=err))
        left = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert left == [0] * PROCESSES, "\n".join(path.read_text()[-3000:] for path in said)
    return folder, [json.loads((folder / f"report-{i}.json").read_text()) for i in range(PROCESSES)]


def stored(run, monkeypatch, name="small", **options):
    """What the processes left in the cache: read by one process, its checksums verified, not made again."""
    folder = run[0]
    monkeypatch.setattr(spectral, "decompose_to", None)
    embeddings = TextEmbeddings(
        np.load(folder / f"{name}.npy"), np.load(folder / f"{name}.has_text.npy"), name * 8, "test"
    )
    return load_or_decompose(Config().replace(**options), embeddings, folder / "cache")


def test_float64_equals_one_process(run, monkeypatch):
    want = spectral.decompose(*small(), method="gram")
    got = stored(run, monkeypatch, decomposition="gram")
    np.testing.assert_allclose(got.sigma, want.sigma, atol=1e-6)
    np.testing.assert_allclose([got.scale, got.count], [want.scale, want.count], rtol=1e-12)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-10)
    for name in ("u", "basis"):
        a, b = getattr(got, name)[:, :1], getattr(want, name)[:, :1]
        np.testing.assert_allclose(a, b, atol=1e-5)
    same_up_to_rotation(got, want, 1e-8, 1e-5)
    assert not got.u[~small()[1]].any()
    for report in run[1]:
        assert report["sigma"] == got.sigma.tolist()


def same_up_to_rotation(got, want, of_basis, of_rows):
    assert got.rank == want.rank
    for start, stop in CLUSTERS[: len(VALUES)]:
        one, two = got.basis[:, start:stop], want.basis[:, start:stop]
        np.testing.assert_allclose(one @ one.T, two @ two.T, atol=of_basis)
    rows = [dequantise(s.u, s.u_scale) * s.sigma @ s.basis.T for s in (got, want)]
    np.testing.assert_allclose(*rows, atol=of_rows)


@pytest.mark.parametrize(("dtype", "close"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_stored_smaller(run, monkeypatch, dtype, close):
    want = spectral.decompose(*small(), method="gram", dtype=dtype)
    got = stored(run, monkeypatch, decomposition="gram", spectrum_dtype=dtype)
    assert got.u.dtype == want.u.dtype
    same_up_to_rotation(got, want, 1e-8, close)


def test_float32(run, monkeypatch):
    want = spectral.decompose(*small(), method="exact", rtol=1e-3)
    options = {"decomposition": "gram", "decomposition_precision": "float32", "rtol": 1e-3}
    got = stored(run, monkeypatch, **options)
    np.testing.assert_allclose(got.sigma, want.sigma, rtol=1e-4)
    same_up_to_rotation(got, want, 2e-3, 1e-4)


def test_what_is_small_is_left_to_one(run, monkeypatch):
    got = stored(run, monkeypatch, name="tiny")
    want = spectral.decompose(np.load(run[0] / "tiny.npy"), small()[1][:40])
    np.testing.assert_array_equal(got.u, want.u)


def test_all_refuse_alike(run):
    folder, reports = run
    first = reports[0]
    bad = np.flatnonzero(small()[1])[[10, 15_000]]
    assert f"NaN or inf in 2 of 20000 rows, the first: {bad[0]}, {bad[1]} (counted" in first["bad"]
    assert "--decomposition=randomized" in first["randomized"]
    assert re.search(r"does not see .*cache-of-1.* --data_dir must lie on a file system", first["unshared"])
    for report in reports:
        for name in ("bad", "randomized", "unshared"):
            assert report[name] == first[name]
        kind, _, message = report["failed"].partition(": ")
        assert "the model is gone" in message
        assert kind == ("OSError" if report is reports[2] else "RunError")
    assert not list(folder.rglob(".*"))  # no draft is left


def test_each_encodes_its_part(run, monkeypatch):
    folder, reports = run
    monkeypatch.setitem(encoders.ENCODERS, "letters", lambda argument: Letters())
    config = Config().replace(text_encoder="letters")
    ids = list(range(20_000))
    found = item_embeddings(
        config, item_ids=ids, item_text=texts(), items_row=np.array(ids, np.int32), cache_dir=folder / "cache"
    )
    want = [[text.count(letter) for letter in "abcd"] for text in texts()]
    np.testing.assert_array_equal(found.matrix, want)
    np.testing.assert_array_equal(found.has_text, np.any(want, axis=1))
    parts = [report["encoded"] for report in reports]
    assert sum(parts) == sum(bool(text.strip()) for text in texts())
    assert max(parts) < 0.45 * sum(parts)
    assert {report["digest"] for report in reports} == {found.digest}


class Letters:
    name, version, dimension = "letters", "1", 4

    def encode(self, texts):
        raise AssertionError("encoded already")


def test_own_embeddings(run):
    folder, reports = run
    rows = np.load(folder / "rows.npy")
    found = item_embeddings(
        Config().replace(embeddings=str(folder / "small.npy")),
        item_ids=rows.tolist(),
        item_text=[""] * len(rows),
        items_row=rows,
        items_file_rows=20_000,
        cache_dir=folder / "other",
    )
    for report in reports:
        assert report["picked"] == [found.digest, True]


def test_memory_is_a_part(run):
    share = 4 * LARGE[0] * LARGE[1] / PROCESSES
    for report in run[1]:
        assert report["peak"] < share + 100 * 2**20, report["peak"] / 2**20
