"""The Gram decomposition over a mesh equals NumPy's, and talks once."""

import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from spectran_jax.errors import InputError
from spectran_jax.spectral import decompose, sharded, sharded_route
from spectran_jax.spectral.routes import Options

N, M = 203, 12  # not divisible by the devices


@pytest.fixture
def mesh():
    """As `decompose` makes it."""
    return Mesh(np.asarray(jax.devices()), ("row",))


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, M)) * np.linspace(1, 0.1, M) + 1).astype(np.float32)
    x[5] = 0
    part = np.arange(N) % 7 != 2
    x[2] = np.nan  # takes no part
    return x, part


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("normalize_rows", "center"), [(True, True), (False, True), (True, False)])
def test_equals_the_svd(mesh, case, precision, normalize_rows, center, monkeypatch):
    monkeypatch.setattr(sharded_route, "BLOCK_BYTES", 50 * M * 8)  # several blocks, the last one not full
    x, part = case
    options = Options(normalize_rows, center, 0.0, method="gram", precision=precision)
    solution = sharded_route.gram_over_mesh(x, part, options, mesh)

    present = part & x.any(axis=1) if normalize_rows else part
    dense = x[present].astype(np.float64)
    if normalize_rows:
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    dense -= dense.mean(axis=0) if center else 0
    _, singular, right = np.linalg.svd(dense, full_matrices=False)
    close = 1e-10 if precision == "float64" else 2e-5
    assert solution.rows.count == len(dense)
    np.testing.assert_allclose(solution.singular, singular, rtol=0, atol=close * singular[0])
    np.testing.assert_allclose(np.abs(np.sum(solution.basis.T * right, axis=1)), 1, atol=close)

    weights = np.random.default_rng(1).normal(size=(M, 3))
    got, at = np.zeros((N, 3)), 0
    for where, whole, rows in solution.project(weights):
        assert whole.all()
        assert where.start == at
        got[where], at = rows, where.stop
    assert at == N
    want = np.zeros((N, 3))
    want[present] = dense @ weights
    np.testing.assert_allclose(got, want, atol=close * 10)


def test_a_bad_row_is_named(mesh, case, monkeypatch):
    monkeypatch.setattr(sharded_route, "BLOCK_BYTES", 50 * M * 8)
    x, part = case
    options = Options(method="gram", precision="float64")
    with pytest.raises(InputError, match=r"NaN or inf in 1 of 203 rows, the first: 2 \(counted from 0\)"):
        sharded_route.gram_over_mesh(x, np.ones_like(part), options, mesh)
    with pytest.raises(InputError, match="at least two items with text, got 1 of 203"):
        sharded_route.gram_over_mesh(x, np.arange(N) == 9, options, mesh)
    alike = np.ones((N, M), np.float32) / 3
    for precision, more in (("float64", ""), ("float32", ", or differ by less .* --decomposition_precision=float64")):
        with pytest.raises(InputError, match=rf"all items with text have the same embedding{more}\. Give"):
            sharded_route.gram_over_mesh(alike, part, Options(method="gram", precision=precision), mesh)


@pytest.mark.parametrize("bad", [False, True])
def test_processes_meet_before_they_read_and_before_what_all_take_part_in(mesh, case, monkeypatch, bad):
    """As processes of one that is alone; who reads for hours must not find that the others have given up."""
    x, part = case
    done, every_sum = [], sharded_route.processes.gathered
    blocks, run = sharded_route._Feed.blocks, sharded_route._Feed.run

    def told(name, function):
        return lambda *args: done.append(name(*args)) or function(*args)

    monkeypatch.setattr(sharded_route._Feed, "shared", True)
    monkeypatch.setattr(sharded_route.processes, "wait", lambda: done.append("wait"))
    monkeypatch.setattr(sharded_route.processes, "gathered", told(lambda *_: "exchange", every_sum))
    monkeypatch.setattr(sharded_route._Feed, "blocks", told(lambda *_: "read", blocks))
    solve = sharded_route._Feed(x, part, mesh, Options(method="gram")).programs.solve
    monkeypatch.setattr(
        sharded_route._Feed, "run", told(lambda feed, f, *_: "exchange" if f is solve else "compute", run)
    )
    if bad:
        with pytest.raises(InputError):
            sharded_route.gram_over_mesh(x, np.ones_like(part), Options(method="gram"), mesh)
    else:
        sharded_route.gram_over_mesh(x, part, Options(method="gram"), mesh)
    shown = [name for name in done if name != "compute"]
    assert shown[0] == "wait"
    assert "read" in shown
    assert all(before == "wait" for before, name in itertools.pairwise(shown) if name == "exchange")


def test_one_reduction(mesh):
    """Nothing crosses between devices but the m x m sums, once."""
    programs = sharded.programs(mesh, dtype="float32")
    put = lambda shape, sharding, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    rows, whole = programs.rows, programs.whole
    x, part, vector = put((64, M), rows), put((64,), rows, bool), put((M,), whole)
    sums = jax.tree.map(lambda leaf: put(leaf.shape, rows, leaf.dtype), jax.eval_shape(lambda: programs.start(M)))
    crossing = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    silent = [
        programs.accumulate.lower(sums, x, part, vector),
        programs.project.lower(x, part, vector, put((M, 4), whole)),
    ]
    for lowered in silent:
        assert not re.search(crossing, lowered.compile().as_text())
    text = programs.solve.lower(sums, vector).compile().as_text()
    assert set(re.findall(crossing, text)) == {"all-reduce"}
    assert len(re.findall(rf"f32\[(?:1,)?{M},{M}\]\S* all-reduce\(", text)) <= 1
    # Each device holds its own sums, and no more.
    assert {shard.data.shape for shard in programs.start(M).gram.addressable_shards} == {(1, M, M)}


def test_float32_through_decompose():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, M)) * np.linspace(1, 0.3, M)).astype(np.float16)
    want = decompose(x, method="gram")
    for dtype in ("float32", "int8"):
        got = decompose(x, method="gram", dtype=dtype, precision="float32")
        np.testing.assert_allclose(got.sigma, want.sigma, atol=1e-5)
        u = got.u if got.u_scale is None else got.u * got.u_scale
        np.testing.assert_allclose(u, want.u, atol=1e-3 if got.u_scale is None else 0.03)


def test_float32_does_not_call_rows_that_are_close_the_same():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=M) + 1e-6 * rng.normal(size=(500, M))).astype(np.float32)
    with pytest.raises(InputError, match=r"or differ by less than float32 tells; take --decomposition_precision"):
        decompose(x, method="gram", precision="float32")
    assert decompose(x, method="gram").rank == M - 1  # of unit length, they differ across their direction alone


def test_float32_takes_every_magnitude_of_float32():
    x = np.random.default_rng(0).normal(size=(500, M)).astype(np.float32)
    want = decompose(x, method="gram")
    for scale in (1e-30, 1e30, np.where(np.arange(500) % 2, 1e-23, 1e25)[:, None]):
        got = decompose(x * np.asarray(scale, np.float32), method="gram", precision="float32")
        assert got.count == 500
        np.testing.assert_allclose(got.sigma, want.sigma, atol=1e-5)
        np.testing.assert_allclose(got.u, want.u, atol=1e-3)


@pytest.mark.parametrize("scale", [3e17, 1e25])  # the sum is too large, or one square
def test_rows_as_they_are_whose_squares_float32_does_not_hold_are_told_so(scale):
    x = (np.random.default_rng(0).normal(size=(500, M)) * scale).astype(np.float32)
    with pytest.raises(InputError, match=r"sum up to more than float32 holds: take --decomposition_precision=float64"):
        decompose(x, method="gram", precision="float32", normalize_rows=False)
    assert decompose(x, method="gram", normalize_rows=False).count == 500
