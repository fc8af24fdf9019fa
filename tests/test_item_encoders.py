"""Item encoders and fusion: rows on demand, cold items, frozen arrays, identities, refusals."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spectran_jax import fusion, item_encoders
from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders import ItemSource

N, R, D, M = 50, 20, 8, 12
COLD = [3, 17, 49]
WITHOUT_TEXT = [5, 17]


def make_source(order=None):
    """Items with a falling spectrum; some cold, some without text, one both."""
    rng = np.random.default_rng(0)
    texts = np.setdiff1d(np.arange(N), WITHOUT_TEXT)
    left, _ = np.linalg.qr(rng.normal(size=(len(texts), R)))
    u = np.zeros((N, R), np.float32)
    u[texts] = np.sqrt(len(texts)) * left
    counts = rng.integers(1, 9, N).astype(np.int32)
    counts[COLD] = 0
    order = np.arange(N) if order is None else order
    spectrum = types.SimpleNamespace(u=u[order], sigma=(np.arange(1, R + 1) ** -0.6).astype(np.float32), u_scale=None)
    text = rng.normal(size=(N, M)) @ rng.normal(size=(M, M)) + 2
    text[WITHOUT_TEXT] = 0
    return ItemSource(num_items=N, counts=counts[order], spectrum=spectrum, text=text.astype(np.float16)[order])


whitened = functools.partial(
    EncoderConfig,
    dimension=D,
    attention_dimension=4,
    adapter_width=16,
    experts=3,
    semantic_scale=0.1,
    spectral_power=0.0,
)


@functools.cache
def encoder(name, dtype=jnp.float32, **options):
    """A module, its frozen arrays and its initial parameters."""
    config = whitened(item_encoder=name, **options)
    module, frozen = item_encoders.build(config, make_source(), dtype=dtype)
    init = jax.jit(lambda key, f: module.apply({"frozen": f}, jnp.arange(2), rngs={"params": key}, mutable=["params"]))
    _, variables = init(jax.random.key(0, impl="rbg"), frozen)
    assert set(variables) <= {"params"}
    return module, frozen, variables.get("params", {})


def table(module, frozen, params):
    return np.asarray(
        jax.jit(lambda p, f: module.apply({"params": p, "frozen": f}, method=module.table))(params, frozen)
    )


@pytest.mark.parametrize("name", sorted(item_encoders.REGISTRY))
def test_rows_on_demand_equal_the_table(name):
    module, frozen, params = encoder(name)
    whole = table(module, frozen, params)
    assert whole.shape == (N, D)
    assert whole.dtype == np.float32
    ids = np.array([[0, 3, 5], [17, 49, 0]])
    got = jax.jit(module.apply)({"params": params, "frozen": frozen}, ids)
    np.testing.assert_allclose(got, whole[ids], rtol=1e-5, atol=1e-6)
    if name == "svd":  # without jit; tests/test_adapter.py does it for the adapter
        got = module.apply({"params": params, "frozen": frozen}, ids)
        np.testing.assert_allclose(got, whole[ids], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(item_encoders.REGISTRY))
def test_permutation_of_items_permutes_vectors(name):
    module, frozen, params = encoder(name)
    order = np.random.default_rng(1).permutation(N)
    config = whitened(item_encoder=name)
    _, permuted = item_encoders.build(config, make_source(order))
    shuffled = {**params, "id_embedding": params["id_embedding"][order]}
    np.testing.assert_allclose(
        table(module, permuted, shuffled), table(module, frozen, params)[order], rtol=1e-5, atol=1e-6
    )


def test_id_part_of_cold_items_is_zero_and_stays_zero():
    module, frozen, params = encoder("id")
    whole = table(module, frozen, params)
    np.testing.assert_array_equal(whole[COLD], 0)
    warm = np.setdiff1d(np.arange(N), COLD)
    np.testing.assert_array_equal(whole[warm], params["id_embedding"][warm])
    loss = lambda p: jnp.sum(module.apply({"params": p, "frozen": frozen}, jnp.arange(N)))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)["id_embedding"]
    np.testing.assert_array_equal(gradient[np.array(COLD)], 0)
    np.testing.assert_array_equal(gradient[warm], 1)


SEMANTIC = ["mlp", "moe", "spectran", "svd", "whiten"]


@pytest.mark.parametrize("name", SEMANTIC)
def test_cold_items_keep_their_text_and_textless_items_their_id(name):
    module, frozen, params = encoder(name)
    whole = table(module, frozen, params)
    loud = table(module, frozen, {**params, "id_embedding": params["id_embedding"] + 5})
    np.testing.assert_array_equal(loud[COLD], whole[COLD])
    assert np.all(np.linalg.norm(whole[[3, 49]], axis=1) > 0)
    np.testing.assert_array_equal(whole[17], 0)  # neither text nor training
    np.testing.assert_allclose(whole[5], params["id_embedding"][5], rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_svd_is_the_weighted_head_of_the_spectrum(power):
    module, frozen, params = encoder("svd", spectral_power=power, semantic_scale=0.3)
    assert set(frozen) == {"u", "weights", "trained"}
    assert frozen["u"].shape == (N, D)
    source = make_source()
    head = source.spectrum.u[:, :D].astype(np.float64) * source.spectrum.sigma[:D].astype(np.float64) ** power
    texts = np.setdiff1d(np.arange(N), WITHOUT_TEXT)
    head /= np.sqrt(np.mean(head[texts] ** 2))
    identity = np.where((source.counts > 0)[:, None], params["id_embedding"], 0)
    np.testing.assert_allclose(table(module, frozen, params), 0.3 * head + identity, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_spectran_without_attention_starts_as_svd(power):
    svd = encoder("svd", spectral_power=power)
    spectran = encoder("spectran", spectral_power=power, attention="none")
    np.testing.assert_array_equal(svd[2]["id_embedding"], spectran[2]["id_embedding"])
    np.testing.assert_allclose(table(*spectran), table(*svd), atol=1e-5)


@pytest.mark.parametrize("name", SEMANTIC)
def test_without_fusion_an_item_is_its_text(name):
    """No ID table at all, no parameter of a fusion, and nothing that reads them."""
    module, frozen, params = encoder(name, fusion="none")
    whole = encoder(name)
    assert set(whole[2]) - set(params) == {"id_embedding"}
    assert all(N not in leaf.shape for leaf in jax.tree.leaves(params))
    silent = table(whole[0], frozen, {**params, "id_embedding": jnp.zeros((N, D))})
    np.testing.assert_array_equal(table(module, frozen, params), silent)
    got = jax.jit(lambda p, f: module.apply({"params": p, "frozen": f}, method=module.diagnostics))(params, frozen)
    assert {"semantic_rms", "semantic_scale"} <= set(got)
    assert not {"id_rms", "semantic_to_id"} & set(got)


@pytest.mark.parametrize("kind", ["concat", "gate"])
def test_every_fusion_starts_as_the_sum(kind):
    plain, fused = encoder("svd"), encoder("svd", fusion=kind)
    params = {**fused[2], "id_embedding": plain[2]["id_embedding"]}
    np.testing.assert_allclose(table(fused[0], fused[1], params), table(*plain), atol=1e-6)
    loss = lambda p: jnp.sum(jnp.sin(fused[0].apply({"params": p, "frozen": fused[1]}, jnp.arange(N))))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert np.abs(gradient["fuse"]["kernel"]).max() > 1e-3
    assert np.abs(gradient["id_embedding"]).max() > 1e-3


def test_fusions_equal_numpy():
    rng = np.random.default_rng(0)
    s, e, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4), (5, 4), (8, 4)))
    bias = rng.normal(size=4).astype(np.float32)
    logits = s @ kernel[:4] + e @ kernel[4:]
    np.testing.assert_allclose(fusion.fuse_concat(s, e, kernel), logits, rtol=1e-4, atol=1e-5)
    gate = 1 / (1 + np.exp(-(logits + bias)))
    want = 2 * gate * s + 2 * (1 - gate) * e
    np.testing.assert_allclose(fusion.fuse_gate(s, e, kernel, bias), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(item_encoders.REGISTRY))
def test_bfloat16_computes_in_bfloat16_with_float32_parameters(name):
    module, frozen, params = encoder(name, dtype=jnp.bfloat16)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    half = jax.jit(module.apply)({"params": params, "frozen": frozen}, np.arange(N))
    assert half.dtype == jnp.bfloat16
    full = table(*encoder(name))
    np.testing.assert_allclose(np.asarray(half, np.float32), full, atol=0.02 * np.abs(full).max())


def test_diagnostics_are_what_the_vectors_show():
    """The scale of E_s against E_id: semantic_scale / id_scale at start."""
    for name in ("svd", "spectran"):
        module, frozen, params = encoder(name)
        run = jax.jit(lambda p, f, m=module: m.apply({"params": p, "frozen": f}, method=m.diagnostics))
        got = run(params, frozen)
        silent = {**params, "id_embedding": jnp.zeros((N, D))}
        texts = np.setdiff1d(np.arange(N), WITHOUT_TEXT)
        semantic = table(module, frozen, silent)[texts]
        np.testing.assert_allclose(np.mean(semantic**2, axis=0), 0.1**2, rtol=2e-3)
        assert got["semantic_rms"] == pytest.approx(0.1, rel=1e-3)
        warm = np.setdiff1d(np.arange(N), COLD)
        identity = np.sqrt(np.mean(np.square(params["id_embedding"][warm])))
        assert got["id_rms"] == pytest.approx(identity, rel=1e-4)
        assert got["semantic_to_id"] == pytest.approx(0.1 / identity, rel=1e-3)
        assert 0.9 < got["semantic_to_id"] / 5 < 1.1
    assert {"attention_live", "attention_energy", "threshold", "taylor", "tail_energy"} <= set(got)


def test_semantic_rms_follows_free_rows():
    module, frozen, params = encoder("spectran", spectral_norm="none", spectral_power=0.5)
    semantic = table(module, frozen, {**params, "id_embedding": jnp.zeros((N, D))})
    texts = np.setdiff1d(np.arange(N), WITHOUT_TEXT)
    got = jax.jit(lambda v: module.apply(v, method=module.diagnostics))({"params": params, "frozen": frozen})
    assert got["semantic_rms"] == pytest.approx(np.sqrt(np.mean(semantic[texts] ** 2)), rel=1e-3)


def test_learned_scale_is_one_parameter():
    fixed, learned = encoder("svd"), encoder("svd", learn_scale=True)
    assert set(learned[2]) - set(fixed[2]) == {"learned_scale"}
    assert learned[2]["learned_scale"] == pytest.approx(0.1)
    params = {**learned[2], "id_embedding": fixed[2]["id_embedding"]}
    np.testing.assert_allclose(table(learned[0], learned[1], params), table(*fixed), rtol=1e-6)


def test_nested_in_a_model_the_collections_nest_alike():
    class Model(nn.Module):
        item_encoder: nn.Module

        def __call__(self, ids):
            return self.item_encoder(ids, train=True)

    module, frozen, params = encoder("spectran")
    ids = jnp.array([1, 2])
    nested = {name: {"item_encoder": value} for name, value in (("params", params), ("frozen", frozen))}
    got = jax.jit(Model(module).apply)(nested, ids)
    np.testing.assert_allclose(got, table(module, frozen, params)[ids], rtol=1e-5, atol=1e-6)
    assert {"query", "key", "threshold", "taylor"} == set(params["adapter"])
    parts = jax.jit(lambda v: module.apply(v, method=module.parts))({"params": params, "frozen": frozen})
    assert parts.attention.shape == parts.weights.shape == (D, R)


def test_frozen_arrays_are_arguments_of_the_program():
    """Neither constants baked into it nor parameters that an optimiser would carry."""
    module, frozen, params = encoder("spectran")
    assert sorted(frozen) == ["sigma", "trained", "u"]
    run = lambda p, f, ids: module.apply({"params": p, "frozen": f}, ids)  # noqa: E731
    jaxpr = jax.make_jaxpr(run)(params, frozen, jnp.arange(3))
    assert all(np.size(constant) < N for constant in jaxpr.consts)
    missing = {name: value for name, value in frozen.items() if name != "u"}
    with pytest.raises(ValueError, match="no array 'u'"):
        run(params, missing, jnp.arange(3))


def test_only_the_rows_asked_for_are_computed():
    module, frozen, params = encoder("spectran")
    run = lambda p, f, ids: module.apply({"params": p, "frozen": f}, ids)  # noqa: E731
    jaxpr = str(jax.make_jaxpr(run)(params, frozen, jnp.arange(3)))
    # Arrays over all items occur as the arguments id_embedding, trained and u, and nowhere else.
    assert jaxpr.count(f"[{N},") + jaxpr.count(f"[{N}]") == 3


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(InputError, match=r"Unknown item encoder 'spectrun'. Known: alphafuse, id, .*mean 'spectran'"):
        item_encoders.build(EncoderConfig(item_encoder="spectrun"), make_source())


@pytest.mark.parametrize("name", ["svd", "spectran"])
def test_rank_below_dimension_is_refused_or_padded(name):
    config = whitened(item_encoder=name, dimension=R + 4)
    with pytest.raises(
        InputError, match=r"rank 20, below --dimension=24.*at most 20 that --heads divides, or --pad_rank"
    ):
        item_encoders.build(config, make_source())
    module, frozen = item_encoders.build(whitened(item_encoder=name, dimension=R + 4, pad_rank=True), make_source())
    key = jax.random.key(0, impl="rbg")
    init = jax.jit(lambda f: module.apply({"frozen": f}, np.arange(2), rngs={"params": key}, mutable=["params"]))
    _, variables = init(frozen)
    vectors = table(module, frozen, {**variables["params"], "id_embedding": jnp.zeros((N, R + 4))})
    assert np.isfinite(vectors).all()
    if name == "svd":
        np.testing.assert_array_equal(vectors[:, R:], 0)
        np.testing.assert_allclose(vectors[:, :R], 0.1 * make_source().spectrum.u, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "source", "words"),
    [
        ({}, {"spectrum": None}, "needs item text"),
        ({"item_encoder": "svd"}, {"spectrum": None}, "--item_encoder=svd needs item text"),
        ({}, {"num_items": N + 1, "counts": np.ones(N + 1, np.int32)}, "50 rows, the catalogue 51 items"),
        ({}, {"counts": np.ones(N - 1, np.int32)}, "49 entries for 50 items"),
        ({"attention": "none", "position_encoding": False}, {}, "leaves nothing of the text"),
    ],
)
def test_what_does_not_fit_is_refused(config, source, words):
    full = make_source()
    values = {"num_items": N, "counts": full.counts, "spectrum": full.spectrum, **source}
    with pytest.raises(InputError, match=words):
        item_encoders.build(EncoderConfig(**{"dimension": D, **config}), ItemSource(**values))


def test_id_needs_no_text():
    assert not item_encoders.lookup("id").needs_spectrum
    assert item_encoders.lookup("spectran").needs_spectrum
    assert item_encoders.lookup("svd").needs_spectrum
    module, frozen = item_encoders.build(
        EncoderConfig(item_encoder="id", dimension=D), ItemSource(num_items=N, counts=make_source().counts)
    )
    assert set(frozen) == {"trained"}
    assert module.num_items == N
