"""The adapter against NumPy and the formulas: identities, gradients, diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_runs import apply, start

from spectran_jax import adapter
from spectran_jax.adapter import SpectralParts, SpecTranAdapter, diagnostics
from spectran_jax.errors import InputError


@pytest.fixture(scope="module")
def text():
    """Text-like embeddings [60, 24] with a falling spectrum, their SVD in float64, u and sigma."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 24)) * np.arange(1, 25) ** -0.7
    x -= x.mean(0)
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    return {"x": x, "left": left, "s": singular, "v": right.T, "u": np.sqrt(60) * left, "sigma": singular / singular[0]}


def reference_weights(params, sigma, d, *, power=0.0, norm="rows"):
    """W in float64, entry by entry, from the formulas of the design."""
    q, k, c = (np.asarray(params[name], np.float64) for name in ("query", "key", "taylor"))
    threshold = np.log1p(np.exp(float(params["threshold"])))
    r = len(sigma)
    w = np.zeros((d, r))
    for i in range(d):
        for j in range(r):
            z = q[i] @ k[j] / np.sqrt(q.shape[1])
            w[i, j] = np.sign(z) * max(abs(z) - threshold, 0)
            if i == j:
                w[i, j] += sum(c[n] * sigma[j] ** n for n in range(len(c)))
    scale = sigma**power / np.sqrt(np.mean(sigma[:d] ** (2 * power)))
    if norm == "orthonormal":
        left, _, right = np.linalg.svd(w, full_matrices=False)
        w = left @ right
    w = w * scale
    if norm != "none":
        lengths = np.array([scale[min(i, r - 1)] for i in range(d)])
        w = w / np.sqrt((w**2).sum(1, keepdims=True)) * lengths[:, None]
    return w


def random_params(d, r, k, order, seed=3):
    rng = np.random.default_rng(seed)
    return {
        "query": rng.normal(size=(d, k)).astype(np.float32),
        "key": rng.normal(size=(r, k)).astype(np.float32),
        "threshold": np.float32(-0.3),
        "taylor": rng.normal(size=order + 1).astype(np.float32),
    }


@pytest.mark.parametrize(
    ("power", "norm", "d", "jit"),
    [
        (0.0, "orthonormal", 8, True),
        (0.5, "orthonormal", 8, False),
        (0.0, "rows", 8, True),
        (0.5, "rows", 30, True),
        (0.5, "rows", 30, False),
        (1.0, "none", 8, True),
    ],
)
def test_vectors_equal_numpy(text, power, norm, d, jit):
    """Also with d above the rank 24, where rows beyond it rest on attention alone."""
    module = SpecTranAdapter(d, 24, attention_dimension=5, taylor_order=3, spectral_power=power, spectral_norm=norm)
    params = random_params(d, 24, 5, 3)
    want = text["u"] @ reference_weights(params, text["sigma"], d, power=power, norm=norm).T
    run = jax.jit(module.apply) if jit else module.apply
    got = run({"params": params}, jnp.asarray(text["u"], jnp.float32), text["sigma"].astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_softshrink_closed_form():
    z = jnp.array([-2.0, -0.5, -0.2, 0.0, 0.5, 0.7, 3.0])
    np.testing.assert_allclose(adapter.softshrink(z, 0.5), [-1.5, 0, 0, 0, 0, 0.2, 2.5], rtol=1e-6)
    gradient = jax.vmap(jax.grad(adapter.softshrink, (0, 1)), (0, None))(z, 0.5)
    np.testing.assert_array_equal(gradient[0], [1, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(gradient[1], [1, 0, 0, 0, 0, -1, -1])


def test_softshrink_is_the_proximal_operator_of_the_l1_norm():
    grid = np.linspace(-3, 3, 60001)
    for z in (-1.7, -0.3, 0.1, 2.2):
        best = grid[np.argmin((grid - z) ** 2 / 2 + 0.6 * np.abs(grid))]
        assert abs(float(adapter.softshrink(jnp.float32(z), 0.6)) - best) < 2e-4


def test_taylor_map_is_the_polynomial():
    sigma = np.linspace(0.01, 1, 50, dtype=np.float32)
    c = np.array([0.3, -1.0, 2.0, 0.7], np.float32)
    np.testing.assert_allclose(adapter.taylor_map(jnp.asarray(sigma), c), np.polyval(c[::-1], sigma), rtol=1e-5)


@pytest.mark.parametrize(("d", "r"), [(3, 5), (5, 3), (4, 4)])
def test_principal_diagonal(d, r):
    want = np.zeros((d, r))
    for i in range(min(d, r)):
        want[i, i] = i + 2
    got = adapter.principal_diagonal(jnp.arange(2.0, 2 + min(d, r)), d, r)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("norm", adapter.NORMS)
def test_without_attention_at_start_it_is_the_whitened_svd(text, norm):
    module = SpecTranAdapter(10, 24, attention="none", spectral_norm=norm)
    sigma = text["sigma"].astype(np.float32)
    params = start(module)
    assert set(params["params"]) == {"taylor"}
    got = apply(module, params, text["u"].astype(np.float32), sigma)
    left, _, _ = np.linalg.svd(text["x"], full_matrices=False)
    np.testing.assert_allclose(got, np.sqrt(60) * left[:, :10], atol=1e-5)


def test_identity_map_is_pca(text):
    module = SpecTranAdapter(10, 24, attention="none", spectral_norm="none")
    params = {"params": {"taylor": np.array([0, 1, 0], np.float32)}}
    got = apply(module, params, text["u"].astype(np.float32), text["sigma"].astype(np.float32))
    pca = text["x"] @ text["v"][:, :10]
    np.testing.assert_allclose(got, pca * np.sqrt(60) / text["s"][0], atol=1e-5)


def test_power_one_with_unit_rows_is_pca_of_unit_mean_variance(text):
    module = SpecTranAdapter(10, 24, attention="none", spectral_power=1.0)
    got = apply(module, start(module), text["u"].astype(np.float32), text["sigma"].astype(np.float32))
    pca = text["x"] @ text["v"][:, :10]
    np.testing.assert_allclose(got, pca / np.sqrt(np.mean(pca**2)), atol=1e-5)


@pytest.mark.parametrize(("power", "norm"), [(0.5, "orthonormal"), (0.5, "rows"), (0.0, "none")])
def test_gradients_equal_finite_differences(text, power, norm):
    rng = np.random.default_rng(1)
    d, r, k = 6, 24, 4
    values = {name: np.asarray(x, np.float64) for name, x in random_params(d, r, k, 2).items()}
    with jax.enable_x64(True):
        cotangent = jnp.asarray(rng.normal(size=(60, d)))
        u, sigma = jnp.asarray(text["u"]), jnp.asarray(text["sigma"])

        @jax.jit
        def loss(p):
            attention = adapter.softshrink(
                adapter.spectral_scores(p["query"], p["key"]), jax.nn.softplus(p["threshold"])
            )
            diagonal = adapter.taylor_map(sigma[:d], p["taylor"])
            w = adapter.spectral_weights(attention, diagonal, sigma, dimension=d, power=power, norm=norm)
            return jnp.sum(cotangent * jnp.tanh(u @ w.T))

        gradient = jax.grad(loss)(values)
        for name, value in values.items():
            assert np.abs(gradient[name]).max() > 1e-2
            for index in np.ndindex(value.shape):
                if name == "key" and index[0] % 5:
                    continue
                step = np.zeros_like(value)
                step[index] = 1e-6
                high, low = (loss({**values, name: value + sign * step}) for sign in (1, -1))
                np.testing.assert_allclose(gradient[name][index], (high - low) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["softshrink", "softmax"])
def test_every_parameter_has_a_gradient_at_start(attention):
    module = SpecTranAdapter(16, 100, attention=attention, attention_live=0.05)
    rng = np.random.default_rng(0)
    u, cotangent = rng.normal(size=(40, 100)), rng.normal(size=(40, 16))
    sigma = np.arange(1, 101, dtype=np.float32) ** -0.5
    params = start(module)
    loss = lambda p: jnp.sum(cotangent * module.apply(p, jnp.asarray(u, jnp.float32), sigma))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)["params"]
    assert set(gradient) == {"query", "key", "taylor"} | ({"threshold"} if attention == "softshrink" else set())
    for name, value in gradient.items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 1e-3, name
    assert (np.abs(gradient["query"]).max(1) > 0).all()
    live = np.abs(gradient["key"]).max(1) > 0
    # A key learns where any of the 16 dimensions attends to its component: 1 - 0.95^16 = 0.56 of them.
    assert live.mean() > (0.4 if attention == "softshrink" else 0.99)


def test_a_spread_below_the_threshold_is_dead():
    """The reason for the scale at start: no gradient reaches Q, K or lambda there."""
    z = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32) * 0.01
    gradient = jax.grad(lambda z, t: jnp.sum(adapter.softshrink(z, t) ** 2), (0, 1))(z, 0.5)
    assert not np.any(gradient[0])
    assert gradient[1] == 0


@pytest.mark.parametrize(
    ("d", "r", "position_encoding"), [(16, 100, True), (64, 20, True), (16, 100, False), (5, 1, False)]
)
def test_rows_have_unit_length_and_finite_gradients(d, r, position_encoding):
    module = SpecTranAdapter(d, r, position_encoding=position_encoding, attention_dimension=16)
    sigma = np.linspace(1, 0.2, r, dtype=np.float32)
    params = start(module)

    @jax.jit
    def both(p):
        loss = lambda p: jnp.sum(jnp.sin(module.apply(p, jnp.ones((2, r)), sigma)))  # noqa: E731
        return module.apply(p, sigma, method=module.parts).weights, jax.grad(loss)(p)

    weights, gradient = both(params)
    length = np.linalg.norm(weights, axis=1)
    rests = np.arange(d) < r if position_encoding else np.zeros(d, bool)
    np.testing.assert_allclose(length[rests], 1, rtol=1e-5)
    dead = ~np.isclose(length, 1, rtol=1e-5)
    np.testing.assert_array_equal(length[dead], 0)
    if r >= 16:
        assert not dead.any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_a_zero_row_stays_zero_without_nan():
    w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(adapter.scale_rows(w, jnp.array([2.0, 1.0])), [[1.2, 1.6], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda w: jnp.sum(adapter.scale_rows(w, jnp.ones(2)) * jnp.arange(4.0).reshape(2, 2)))(w)
    assert np.isfinite(gradient).all()


def test_training_cannot_shrink_the_semantic_part(text):
    """With rows of unit length, shrinking every parameter leaves the variance of every dimension alone."""
    module = SpecTranAdapter(10, 24, attention_dimension=8, spectral_norm="rows")
    params = {"params": random_params(10, 24, 8, 2)}
    for factor in (1.0, 1e-3):
        small = jax.tree.map(lambda x, f=factor: x * f, params)
        vectors = apply(module, small, text["u"].astype(np.float32), text["sigma"].astype(np.float32))
        np.testing.assert_allclose(np.mean(np.square(vectors), axis=0), 1, rtol=1e-4)


def test_permutation_of_items_permutes_vectors(text):
    module = SpecTranAdapter(10, 24, attention_dimension=8)
    params, sigma = start(module), text["sigma"].astype(np.float32)
    order = np.random.default_rng(0).permutation(60)
    u = text["u"].astype(np.float32)
    np.testing.assert_allclose(
        apply(module, params, u[order], sigma), apply(module, params, u, sigma)[order], rtol=1e-5, atol=1e-6
    )


def test_bfloat16_is_close_to_float32(text):
    sigma = text["sigma"].astype(np.float32)
    full = SpecTranAdapter(10, 24)
    half = SpecTranAdapter(10, 24, dtype=jnp.bfloat16)
    params = start(half)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    u = text["u"].astype(np.float32)
    difference = np.asarray(apply(half, params, u, sigma) - apply(full, params, u, sigma))
    assert 0 < np.abs(difference).max() < 0.05


def test_leading_axes_are_kept():
    module = SpecTranAdapter(4, 6)
    u = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    sigma = np.linspace(1, 0.5, 6, dtype=np.float32)
    params = start(module)
    got = apply(module, params, u, sigma)
    assert got.shape == (2, 3, 4)
    np.testing.assert_allclose(got[1, 2], apply(module, params, u[1, 2], sigma), rtol=1e-5)


@pytest.mark.parametrize(("k", "count"), [(64, 270_340), (512, 2_162_692)])
def test_parameter_count(k, count):
    """m = 4096, d = 128: below the paper's 2.21 M, and independent of N."""
    module = SpecTranAdapter(128, 4096, attention_dimension=k)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4096)), jnp.ones(4096))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    assert total == count == k * (128 + 4096) + 3 + 1
    assert total <= 2.3e6


def test_whatever_is_learned_the_output_stays_whitened(text):
    """Even where all rows of phi(Z) + A point nearly the same way, which with unit rows is a collapse."""
    params = random_params(10, 24, 8, 2)
    params["query"] = params["query"][:1] + 0.2 * params["query"]
    u, sigma = text["u"].astype(np.float32), text["sigma"].astype(np.float32)
    for norm, whitened in (("orthonormal", True), ("rows", False)):
        module = SpecTranAdapter(10, 24, attention_dimension=8, spectral_norm=norm)
        vectors = apply(module, {"params": params}, u, sigma)
        assert np.allclose(vectors.T @ vectors / len(vectors), np.eye(10), atol=2e-3) == whitened


@pytest.mark.parametrize("names", [{"attention": "softshrnk"}, {"spectral_norm": "orthonormol"}])
def test_unknown_names_name_the_nearest(names):
    with pytest.raises(InputError, match=r"softshrink|orthonormal"):
        start(SpecTranAdapter(4, 6, **names))


def test_diagnostics_match_their_definition(text):
    module = SpecTranAdapter(10, 24, attention_dimension=8)
    params = {"params": random_params(10, 24, 8, 2)}
    sigma = text["sigma"].astype(np.float32)
    got = jax.jit(lambda p: module.apply(p, sigma, method=module.diagnostics))(params)
    parts = apply(module, params, sigma, method=module.parts)
    phi, diagonal, w = (np.asarray(x, np.float64) for x in parts)
    np.testing.assert_allclose(got["attention_live"], np.mean(phi != 0), rtol=1e-6)
    np.testing.assert_allclose(got["attention_row_energy"], np.mean((phi**2).sum(1)), rtol=1e-5)
    np.testing.assert_allclose(got["attention_energy"], (phi**2).sum() / (diagonal**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(got["tail_energy"], (w[:, 10:] ** 2).sum() / (w**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(got["threshold"], np.log1p(np.exp(-0.3)), rtol=1e-5)
    np.testing.assert_array_equal(got["taylor"], params["params"]["taylor"])


@pytest.mark.parametrize(("rank", "bins", "width"), [(5, 5, 1), (64, 64, 1), (65, 33, 2), (4096, 64, 64)])
def test_energy_by_component_is_binned_evenly(rank, bins, width):
    weights = np.random.default_rng(rank).normal(size=(3, rank)).astype(np.float32)
    got = np.asarray(diagnostics(SpectralParts(None, None, weights))["component_energy"])
    share = (weights**2).sum(0) / (weights**2).sum()
    assert got.shape == (bins,)
    np.testing.assert_allclose(got, [share[i * width : (i + 1) * width].sum() for i in range(bins)], rtol=1e-4)


def test_diagnostics_leave_out_what_does_not_exist():
    sigma = np.ones(6, np.float32)
    none = SpecTranAdapter(4, 6, attention="none")
    assert set(apply(none, start(none), sigma, method=none.diagnostics)) == {
        "tail_energy",
        "component_energy",
        "diagonal_row_energy",
        "taylor",
    }
    bare = SpecTranAdapter(4, 6, position_encoding=False)
    assert not {"attention_energy", "diagonal_row_energy", "taylor"} & set(
        apply(bare, start(bare), sigma, method=bare.diagnostics)
    )
