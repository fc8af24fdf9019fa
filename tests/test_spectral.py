"""The spectrum against NumPy's float64 SVD, on every route and shape."""

import os
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.spectral import decompose, project, routes, rows

SHAPES = [(60, 20), (20, 60), (33, 33)]
ROUTES = ["exact", "gram"]
BENCH = Path(os.environ.get("SPECTRAN_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def text_like(n, m, seed=0):
    """Rows with a common direction and a decaying spectrum, as text embeddings have."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, m)) * np.linspace(1, 0.1, m) + 0.5 * rng.normal(size=m)


def with_singular_values(n, m, values, seed=0):
    """A matrix whose singular values are known."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(n, len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(m, len(values))))[0]
    return (left * values) @ right.T


def reference(x, normalize_rows=True, center=True):
    """u, sigma, scale by the formulas of the design, in float64."""
    x = np.asarray(x, np.float64)
    if normalize_rows:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    if center:
        x = x - x.mean(axis=0)
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    keep = singular >= 1e-4 * singular[0]
    left, singular, right = left[:, keep], singular[keep], right[keep]
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    return np.sqrt(len(x)) * left * sign, singular / singular[0], singular[0], right.T * sign


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_equals_numpy(shape, method, normalize_rows, center):
    x = text_like(*shape)
    spectrum = decompose(x, method=method, normalize_rows=normalize_rows, center=center)
    u, sigma, scale, basis = reference(x, normalize_rows, center)
    assert spectrum.u.shape == u.shape == (spectrum.num_items, spectrum.rank)
    np.testing.assert_allclose(spectrum.sigma, sigma, rtol=1e-6)
    np.testing.assert_allclose(spectrum.scale, scale, rtol=1e-12)
    np.testing.assert_allclose(spectrum.u, u, atol=2e-5)
    np.testing.assert_allclose(spectrum.basis, basis, atol=1e-7)
    assert spectrum.u.dtype == spectrum.sigma.dtype == np.float32
    assert int(spectrum.count) == shape[0]


@pytest.mark.parametrize("method", ROUTES)
def test_dimension_4096(method):
    x = np.random.default_rng(0).normal(size=(50, 4096)).astype(np.float16)
    spectrum = decompose(x, method=method)
    u, sigma, _, _ = reference(x)
    assert spectrum.rank == 49  # centring takes one
    assert spectrum.basis.shape == (4096, 49)
    np.testing.assert_allclose(spectrum.sigma, sigma, rtol=1e-6)
    np.testing.assert_allclose(spectrum.u @ spectrum.u.T, u @ u.T, atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
@pytest.mark.parametrize("smallest", [-5, -5.9])
def test_gram_is_exact_where_float32_fails(shape, smallest):
    values = np.logspace(0, smallest, 120)
    x = with_singular_values(*shape, values)
    ours = decompose(x, normalize_rows=False, center=False, rtol=1e-6, method="gram")
    assert np.abs(ours.sigma / values - 1).max() < 1e-7
    single = x.astype(np.float32)
    gram = single.T @ single if shape[0] > shape[1] else single @ single.T
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    assert np.abs(roots / values - 1)[values < 5e-4].max() > 1e-2


@pytest.mark.parametrize("method", ROUTES)
def test_dtypes_and_jax_arrays(method):
    x = text_like(40, 12).astype(np.float32)
    want = decompose(x, method=method)
    got = decompose(jnp.asarray(x), jnp.ones(40, bool), method=method)
    np.testing.assert_array_equal(got.u, want.u)
    half = decompose(jnp.asarray(x, jnp.bfloat16), method=method)
    np.testing.assert_allclose(half.sigma, want.sigma, rtol=2e-2)
    whole = decompose(np.arange(12).reshape(6, 2) ** 2, method=method)
    assert whole.rank == 2


def test_same_input_gives_the_same_bits():
    x = text_like(50, 16)
    for method in ROUTES:
        one, two = (jax.tree.leaves(decompose(x, method=method)) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sign_is_fixed(shape, method):
    basis = decompose(text_like(*shape), method=method).basis
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])] > 0).all()


def test_sign_tie_goes_to_the_first_entry():
    # One component along (1, -1): entries of equal magnitude, so the first must be the positive one.
    x = np.array([[1.0, -1.0], [-2.0, 2.0], [3.0, -3.0]])
    for sign in (1, -1):
        basis = decompose(sign * x, normalize_rows=False, center=False).basis
        np.testing.assert_allclose(basis[:, 0], [0.5**0.5, -(0.5**0.5)])


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
def test_permutation_of_items_permutes_u(shape, method):
    x = text_like(*shape)
    order = np.random.default_rng(1).permutation(shape[0])
    one, two = decompose(x, method=method), decompose(x[order], method=method)
    np.testing.assert_allclose(two.u, one.u[order], atol=2e-5)
    np.testing.assert_allclose(two.basis, one.basis, atol=1e-7)


@pytest.mark.parametrize("method", ROUTES)
def test_u_is_white(method):
    x = text_like(200, 30)
    u = decompose(x, method=method).u.astype(np.float64)
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(u.T @ u / 200, np.eye(u.shape[1]), atol=1e-5)


@pytest.mark.parametrize("method", ROUTES)
def test_weighted_by_sigma_it_is_pca(method):
    x = text_like(80, 10)
    spectrum = decompose(x, method=method, normalize_rows=False)
    scores = (x - x.mean(axis=0)) @ spectrum.basis
    np.testing.assert_allclose(spectrum.u * spectrum.sigma, np.sqrt(80) / float(spectrum.scale) * scores, atol=1e-5)


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"normalize_rows": False}, {"center": False}])
def test_project_gives_old_items_their_coordinates(shape, method, options):
    x = text_like(*shape)
    spectrum = decompose(x, method=method, **options)
    normalize = {"normalize_rows": options.get("normalize_rows", True)}
    np.testing.assert_allclose(project(spectrum, x, **normalize), spectrum.u, atol=1e-5)
    np.testing.assert_allclose(project(spectrum, x[3:4], **normalize), spectrum.u[3:4], atol=1e-5)


def test_project_at_the_edge_of_rtol():
    x = with_singular_values(200, 60, np.logspace(0, -4, 60))
    spectrum = decompose(x, normalize_rows=False, center=False, rtol=5e-5, method="gram")
    assert spectrum.rank == 60
    np.testing.assert_allclose(project(spectrum, x, normalize_rows=False), spectrum.u, atol=1e-5)


@pytest.mark.parametrize("method", ROUTES)
def test_items_without_text_take_no_part(method):
    x = text_like(40, 12)
    has_text = np.ones(40, bool)
    has_text[[0, 7, 39]] = False
    spoiled = x.copy()
    spoiled[7] = np.nan  # what lies there is not looked at
    whole = decompose(spoiled, has_text, method=method)
    alone = decompose(x[has_text], method=method)
    np.testing.assert_array_equal(whole.u[~has_text], 0)
    np.testing.assert_allclose(whole.u[has_text], alone.u, atol=1e-6)
    np.testing.assert_allclose(whole.mean, alone.mean, atol=1e-15)
    assert int(whole.count) == 37
    np.testing.assert_allclose(project(whole, spoiled, has_text), whole.u, atol=1e-5)


def test_zero_row_has_no_direction():
    x = text_like(30, 8)
    x[4] = 0
    directed = decompose(x)
    assert int(directed.count) == 29
    assert not directed.u[4].any()
    assert not project(directed, x)[4].any()
    # Not scaled, the origin is a point like any other.
    assert int(decompose(x, normalize_rows=False).count) == 30


def test_rank_by_rtol_and_max_rank():
    x = with_singular_values(50, 30, np.array([1, 0.5, 1e-2, 1e-5]))
    for method in ROUTES:
        rank = {
            rtol: decompose(x, normalize_rows=False, center=False, rtol=rtol, method=method).rank
            for rtol in (0.1, 1e-4, 2e-6)
        }
        assert rank == {0.1: 2, 1e-4: 3, 2e-6: 4}
        small = decompose(x, normalize_rows=False, center=False, max_rank=2, method=method)
        assert small.u.shape == (50, 2)
        assert small.basis.shape == (30, 2)
    # rtol = 0 keeps what is above rounding, not all 30 columns.
    assert decompose(x, normalize_rows=False, center=False, rtol=0, method="exact").rank == 4


def test_auto_takes_the_cheap_route(monkeypatch):
    x = text_like(30, 10)
    used = []
    for name in ("exact", "gram_of_columns"):
        original = getattr(routes, name)
        monkeypatch.setattr(routes, name, lambda *a, _f=original, _n=name, **k: used.append(_n) or _f(*a, **k))
    decompose(x)
    monkeypatch.setattr(routes, "EXACT_COST", 10)
    decompose(x)
    decompose(x, rtol=1e-9)  # more than Gram keeps
    assert used == ["exact", "gram_of_columns", "exact"]


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_change_nothing(shape, method, monkeypatch):
    x = text_like(*shape)
    has_text = np.arange(shape[0]) % 5 != 1
    want = decompose(x, has_text, method=method)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 8 * 7 * 20)
    got = decompose(x, has_text, method=method)
    np.testing.assert_allclose(got.u, want.u, atol=1e-6)


def test_gram_never_copies_a_memory_mapped_matrix(tmp_path, monkeypatch):
    n, m = 40_000, 64
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(n, m)).astype(np.float16))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2**20)
    tracemalloc.start()
    spectrum = decompose(x, method="gram", max_rank=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spectrum.rank == 4
    assert peak < n * m * 8 / 3  # the float64 copy would take three times as much


def test_spectrum_is_a_pytree():
    spectrum = decompose(text_like(20, 6))
    assert len(jax.tree.leaves(spectrum)) == 6
    doubled = jax.jit(lambda s: jax.tree.map(lambda leaf: 2 * leaf, s))(spectrum)
    np.testing.assert_allclose(doubled.u, 2 * spectrum.u)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (np.ones(3), {}, ["matrix", "(3,)"]),
        (np.ones((0, 3)), {}, ["matrix", "(0, 3)"]),
        (np.array([["a", "b"]]), {}, ["floating point", "<U1"]),
        (np.where(np.eye(9, 4) > 0, np.nan, 1), {}, ["NaN or inf in 4 of 9 rows", "0, 1, 2 (counted"]),
        (np.where(np.eye(9, 4) > 0, np.inf, 1), {"normalize_rows": False}, ["NaN or inf in 4 of 9 rows"]),
        (np.ones((5, 4)), {"has_text": np.arange(5) == 2}, ["at least two items", "1 of 5"]),
        (np.zeros((5, 4)), {}, ["at least two items", "0 of 5"]),
        (np.zeros((5, 4)), {"normalize_rows": False}, ["no spectrum", "the same"]),
        (np.full((5, 4), 0.3), {}, ["no spectrum", "the same"]),
        (np.ones((5, 4)), {"has_text": np.ones(4, bool)}, ["one entry per item, 5", "(4,)"]),
        (np.ones((5, 4)), {"method": "qr"}, ["auto, exact, gram, randomized", "'qr'"]),
        (np.ones((5, 4)), {"rtol": 1.0}, ["rtol", "1.0"]),
        (np.ones((5, 4)), {"max_rank": -1}, ["max_rank", "-1"]),
    ],
)
@pytest.mark.parametrize("method", ROUTES)
def test_bad_input(x, options, words, method):
    with pytest.raises(InputError) as error:
        decompose(x, **{"method": method, **options})
    for word in words:
        assert word in str(error.value)


def test_project_bad_input():
    spectrum = decompose(text_like(20, 6))
    with pytest.raises(InputError, match="dimension 5, but the spectrum was made from dimension 6"):
        project(spectrum, np.ones((2, 5)))
    with pytest.raises(InputError, match="NaN or inf in 1 of 2 rows, the first: 1"):
        project(spectrum, np.array([[1.0] * 6, [np.nan] * 6]))


@pytest.mark.skipif(not (BENCH / "office").is_dir(), reason="benchmark data absent")
def test_routes_agree_on_real_embeddings():
    x = np.load(BENCH / "office" / "embeddings.minilm.npy", mmap_mode="r")[:500]
    exact, gram = decompose(x, method="exact"), decompose(x, method="gram")
    np.testing.assert_allclose(gram.sigma, exact.sigma, rtol=1e-6)
    np.testing.assert_allclose(gram.u, exact.u, atol=1e-4)
    np.testing.assert_allclose(project(gram, x), gram.u, atol=1e-4)
