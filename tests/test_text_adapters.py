"""The encoders mlp, moe, whiten and llminit against NumPy float64 from their formulas; their scale at start."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_item_encoders import COLD, WITHOUT_TEXT, D, M, N, encoder, make_source, table, whitened

from spectran_jax import item_encoders
from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.moe import WhiteningExperts

TEXTS = np.setdiff1d(np.arange(N), WITHOUT_TEXT)


def read_text(normalize=True, center=True):
    """Rows as the encoders read them, from the definition."""
    x = make_source().text[TEXTS].astype(np.float64)
    if normalize:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    if center:
        x -= x.mean(axis=0)
    return x / np.sqrt(np.mean(x**2))


def randomized(params):
    """Parameters at random: biases and gates that are zero at start too."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


def semantic_of(x):
    """[N, D] with rows for items with text."""
    whole = np.zeros((N, D))
    whole[TEXTS] = x
    return 0.1 * whole


def identity_of(params):
    return np.where(np.isin(np.arange(N), COLD)[:, None], 0, params["id_embedding"])


def two_layers(x, params):
    hidden = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def test_mlp_is_its_formula():
    module, frozen, params = encoder("mlp")
    assert frozen["text"].dtype == np.float16
    assert params["adapter"]["hidden"]["kernel"].shape == (M, 16)
    params = randomized(params)
    want = semantic_of(two_layers(read_text(), params["adapter"])) + identity_of(params)
    np.testing.assert_allclose(table(module, frozen, params), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("normalize", "center"), [(True, False), (False, True)])
def test_text_is_read_as_the_spectrum_reads_it(normalize, center):
    source = dataclasses.replace(make_source(), normalize_rows=normalize, center=center)
    config = whitened(item_encoder="mlp", fusion="none")
    module, frozen = item_encoders.build(config, source)
    params = randomized(encoder("mlp", fusion="none")[2])
    want = semantic_of(two_layers(read_text(normalize, center), params["adapter"]))
    np.testing.assert_allclose(table(module, frozen, params), want, rtol=1e-4, atol=1e-5)


def mixture(x, params, noise=0.0):
    """One expert after the other."""
    kernel, shift = np.asarray(params["kernel"], np.float64), np.reshape(params["shift"], (3, -1))
    logits = x @ params["gate"] + noise * (np.log1p(np.exp(x @ params["noise"])) + 0.01)
    gates = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return sum(gates[:, k, None] * ((x - shift[k]) @ kernel[:, k]) for k in range(3))


def test_moe_is_its_formula():
    module, frozen, params = encoder("moe")
    for name in ("gate", "noise", "shift"):
        np.testing.assert_array_equal(params["mixture"][name], 0)
    assert params["mixture"]["shift"].ndim == 1, "no weight decay on biases"
    params = randomized(params)
    want = semantic_of(mixture(read_text(), params["mixture"])) + identity_of(params)
    np.testing.assert_allclose(table(module, frozen, params), want, rtol=1e-4, atol=1e-5)


def test_the_gate_is_noisy_in_training_alone():
    module, frozen, params = encoder("moe", fusion="none")
    params = randomized(params)
    noise = np.random.default_rng(1).normal(size=(len(TEXTS), 3)).astype(np.float32)
    x = read_text()
    got = WhiteningExperts(3, D).apply({"params": params["mixture"]}, x.astype(np.float32), noise)
    np.testing.assert_allclose(got, mixture(x, params["mixture"], noise), rtol=1e-4, atol=1e-4)

    @jax.jit
    def train(params, key):
        vectors = module.apply(
            {"params": params, "frozen": frozen}, train=True, rngs={"dropout": key}, method=module.table
        )
        return jnp.sum(jnp.sin(vectors)), vectors

    (_, first), gradient = jax.value_and_grad(train, has_aux=True)(params, jax.random.PRNGKey(0))
    (_, other), _ = jax.value_and_grad(train, has_aux=True)(params, jax.random.PRNGKey(1))
    assert np.abs(first - other)[TEXTS].max(axis=1).min() > 1e-4
    np.testing.assert_array_equal(first[np.array(WITHOUT_TEXT)], 0)
    assert np.abs(gradient["mixture"]["noise"]).max() > 1e-4


def zca(x):
    """sqrt(n) U V^T of the centred rows: what C^(-1/2) makes of them."""
    left, _, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return np.sqrt(len(x)) * left @ right


@functools.cache
def whitened_by_numpy(groups):
    x = read_text()
    views = [zca(x)]
    if groups > 1:
        views.append(np.concatenate([zca(part) for part in np.array_split(x, groups, axis=1)], axis=1))
    return np.stack(views, axis=1)


@pytest.mark.parametrize("groups", [1, 4, 5])
def test_whitening(groups):
    """Of all dimensions, the identity; of groups, the identity within each; 5 groups of 12 are of 3, 3, 2, 2, 2."""
    _, frozen, _ = encoder("whiten", whiten_groups=groups)
    whitened = frozen["whitened"][TEXTS].astype(np.float64)
    assert whitened.shape == (len(TEXTS), min(groups, 2), M)
    np.testing.assert_array_equal(frozen["whitened"][WITHOUT_TEXT], 0)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(whitened, whitened_by_numpy(groups), atol=1e-4)
    full = np.cov(whitened[:, 0], rowvar=False, bias=True)
    np.testing.assert_allclose(full, np.eye(M), atol=1e-4)
    if groups > 1:
        relaxed = np.cov(whitened[:, 1], rowvar=False, bias=True)
        block = np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(np.arange(M), groups))])
        same = block[:, None] == block
        np.testing.assert_allclose(relaxed[same], np.eye(M)[same], atol=1e-4)
        assert np.abs(relaxed[~same]).max() > 0.1, "between groups it stays"


@pytest.mark.parametrize("groups", [1, 4])
def test_whiten_is_its_formula(groups):
    module, frozen, params = encoder("whiten", whiten_groups=groups)
    params = randomized(params)
    views = whitened_by_numpy(groups)
    want = sum(two_layers(views[:, v], params["head"]) for v in range(views.shape[1])) * frozen["sum_scale"]
    np.testing.assert_allclose(
        table(module, frozen, params), semantic_of(want) + identity_of(params), rtol=1e-3, atol=1e-4
    )


def test_fewer_items_than_dimensions_are_whitened_within_their_span():
    """And dimensions that never vary stay zero, alone in their group or not."""
    text = np.random.default_rng(0).normal(size=(7, 12))
    text[:, 9:] = 0.5
    source = item_encoders.ItemSource(num_items=7, counts=np.ones(7, np.int32), text=text, normalize_rows=False)
    config = EncoderConfig(item_encoder="whiten", dimension=D, whiten_groups=4)
    whitened = item_encoders.build(config, source)[1]["whitened"].astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(whitened[:, 0], rowvar=False, bias=True))
    np.testing.assert_allclose(values, [0] * 6 + [1] * 6, atol=1e-5)
    np.testing.assert_allclose(whitened[:, :, 9:], 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(whitened[:, 1, :3], rowvar=False, bias=True), np.eye(3), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "moe", "whiten"])
def test_the_semantic_part_starts_at_its_scale_and_all_of_it_learns(name):
    module, frozen, params = encoder(name, fusion="none", dimension=128, adapter_width=256, experts=8)

    @jax.jit
    def run(params):
        variables = {"params": params, "frozen": frozen}
        rngs = {"dropout": jax.random.PRNGKey(0)}
        trained = module.apply(variables, train=True, rngs=rngs, method=module.table)
        return jnp.sum(jnp.sin(3 * trained)), (
            module.apply(variables, method=module.table),
            module.apply(variables, method=module.diagnostics),
        )

    (_, (vectors, diagnostics)), gradient = jax.value_and_grad(run, has_aux=True)(params)
    rms = np.sqrt(np.mean(np.square(vectors[TEXTS])))
    assert rms == pytest.approx(0.1, rel=0.06)
    assert diagnostics["semantic_rms"] == pytest.approx(rms, rel=1e-4)
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(gradient))


def test_llminit_starts_as_the_text_and_learns_as_a_table_that_starts_there():
    module, frozen, params = encoder("llminit", semantic_scale=0.3, spectral_power=0.5)
    svd = encoder("svd", semantic_scale=0.3, spectral_power=0.5, fusion="none")
    assert set(params) == {"id_embedding"}
    np.testing.assert_array_equal(params["id_embedding"], 0)
    whole, start = table(module, frozen, params), table(*svd)
    np.testing.assert_allclose(whole[TEXTS], start[TEXTS], atol=1e-6)
    assert np.sqrt(np.mean(whole[TEXTS] ** 2)) == pytest.approx(0.3, rel=0.01)
    # Without text: nothing where it is cold, else not zero, which a cosine could not leave.
    np.testing.assert_array_equal(whole[17], 0)
    assert 0.005 < np.sqrt(np.mean(whole[5] ** 2)) < 0.05

    loss = lambda e: jnp.sum(jnp.sin(3 * e) ** 2)  # noqa: E731
    run = lambda p: loss(module.apply({"params": p, "frozen": frozen}, method=module.table))  # noqa: E731
    gradient = jax.jit(jax.grad(run))(params)["id_embedding"]
    direct = np.array(jax.grad(loss)(whole))
    direct[COLD] = 0  # in no training
    np.testing.assert_allclose(gradient, direct, rtol=1e-5, atol=1e-6)

    moved = {"id_embedding": jnp.full((N, D), 0.5)}
    np.testing.assert_allclose(table(module, frozen, moved)[TEXTS[0]], whole[TEXTS[0]] + 0.5, atol=1e-6)
    got = module.apply({"params": moved, "frozen": frozen}, method=module.diagnostics)
    assert {name: float(value) for name, value in got.items()} == {"moved_rms": 0.5}


def test_int8_coordinates_give_the_same_start():
    source = make_source()
    scale = np.abs(source.spectrum.u).max(axis=0) / 127
    stored = np.round(source.spectrum.u / scale).astype(np.int8)
    source.spectrum.u, source.spectrum.u_scale = stored, scale.astype(np.float32)
    _, frozen = item_encoders.build(whitened(item_encoder="llminit"), source)
    np.testing.assert_allclose(frozen["start"][TEXTS], encoder("llminit")[1]["start"][TEXTS], atol=0.1 * 0.02)


@pytest.mark.parametrize("name", ["mlp", "moe", "whiten"])
def test_text_that_does_not_fit_is_refused(name):
    config = EncoderConfig(item_encoder=name, dimension=D, whiten_groups=13)
    source = make_source()
    assert not item_encoders.lookup(name).needs_spectrum
    cases = [
        ({"text": None}, f"--item_encoder={name} needs item text"),
        ({"text": source.text[1:]}, "have 49 rows, the catalogue 50 items"),
        ({"text": np.where(np.arange(N)[:, None] == 4, np.nan, source.text)}, "NaN or inf in 1 of 50 rows"),
        ({"text": np.ones((N, M), np.float32)}, "needs text embeddings that differ"),
    ]
    if name == "whiten":
        cases.append(({}, "--whiten_groups=13 is more than the 12 dimensions"))
    for changes, words in cases:
        with pytest.raises(InputError, match=words):
            item_encoders.build(config, dataclasses.replace(source, **changes))
