"""HSTU: attention against loops written from the formula, plain and in blocks; states, causality and packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import AS_USERS_DO

from spectran_jax import backbones
from spectran_jax.backbones.hstu_attention import TIME_BUCKETS, Bias, pointwise_attention, time_bucket
from spectran_jax.config import BackboneConfig
from spectran_jax.layout import SequenceLayout
from spectran_jax.planning import topologies

B, L, H, W = 2, 11, 2, 4
D = H * W
RNG = np.random.default_rng(0)


def layout(lengths, *, timed=True, length=L):
    """Rows of histories of these lengths, packed from the left; gaps from a second to weeks."""
    mask, segment, position, time = (np.zeros((len(lengths), length), np.int32) for _ in range(4))
    for row, parts in enumerate(lengths):
        start = 0
        for number, part in enumerate(parts, 1):
            at = slice(start, start + part)
            mask[row, at], segment[row, at], position[row, at] = 1, number, np.arange(part)
            gaps = np.random.default_rng(part).integers(0, 6, part)
            time[row, at] = np.cumsum(np.where(np.arange(part) > 0, 10.0**gaps, 0))
            start += part
    return SequenceLayout(mask.astype(bool), segment, position, time if timed else None)


def bucket(seconds):
    return min(int(np.floor(np.log(max(1, seconds)) / 0.301)), TIME_BUCKETS - 1)


def silu(x):
    return x / (1 + np.exp(-x))


def attention_by_loops(q, k, v, bias, lay):
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        for j in range(i + 1):
            if lay.segment[b, i] == lay.segment[b, j] > 0:
                z = q[b, i, h] @ k[b, j, h] + bias.position[i - j]
                if bias.time is not None and lay.timestamp is not None:
                    z += bias.time[bucket(int(lay.timestamp[b, i]) - int(lay.timestamp[b, j]))]
                out[b, i, h] += silu(z) * v[b, j, h] / q.shape[1]
    return out


@pytest.fixture(scope="module")
def case():
    q, k, v, cotangent = (RNG.normal(size=(B, L, H, W)).astype(np.float32) for _ in range(4))
    bias = Bias(*(RNG.normal(size=n).astype(np.float32) for n in (L, TIME_BUCKETS)))
    return q, k, v, bias, cotangent


@pytest.mark.parametrize("block", [None, 4, 1])
@pytest.mark.parametrize("timed", [True, False])
def test_attention_is_the_formula_whole_and_in_blocks(case, block, timed):
    *arguments, _ = case
    lay = layout([[4, 5], [11]], timed=timed)
    got = pointwise_attention(*arguments, lay, block=block)
    np.testing.assert_allclose(got, attention_by_loops(*arguments, lay), atol=2e-6)
    assert not np.asarray(got)[~lay.mask].any()


def test_blocks_have_the_gradients_of_the_whole(case):
    *arguments, cotangent = case
    lay = layout([[4, 5], [11]])

    def gradients(block):
        def loss(*a):
            return jnp.sum(pointwise_attention(*a, lay, block=block) * cotangent)

        return jax.grad(loss, argnums=(0, 1, 2, 3))(*arguments)

    whole, blocks = gradients(None), gradients(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole, blocks)
    # The whole's, of one number each, by differences.
    for which, at in ((0, (0, 3, 1, 2)), (1, (1, 5, 0, 1)), (3, 2), (4, bucket(1000))):
        wide = [np.asarray(a, np.float64) for a in jax.tree.leaves(arguments)]
        ends = []
        for sign in (1, -1):
            moved = [a.copy() for a in wide]
            moved[which][at] += sign * 1e-4
            found = attention_by_loops(*moved[:3], Bias(*moved[3:]), lay)
            ends.append(np.sum(found * cotangent))
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(jax.tree.leaves(whole)[which][at], slope, rtol=1e-3, atol=1e-6)


def test_buckets_of_time():
    seconds = np.array([0, 1, 2, 60, 3600, 86_400, 2**31 - 1], np.int32)
    got = np.asarray(time_bucket(jnp.asarray(seconds)))
    assert got.tolist() == [bucket(int(s)) for s in seconds]
    assert got[0] == 0
    assert got[-1] == TIME_BUCKETS - 1


@pytest.fixture(scope="module")
def model():
    config = BackboneConfig(backbone="hstu", blocks=2, heads=H)
    module = backbones.build(config, dimension=D, max_length=L)
    x = jax.random.normal(jax.random.PRNGKey(0), (B, L, D))
    lay = layout([[4, 5], [11]])
    params = jax.jit(lambda: module.init(jax.random.PRNGKey(1), x, lay, train=False))()["params"]
    # Larger weights than at initialisation, so that a leak would show.
    params = jax.tree.map(lambda p: p * 20 if p.ndim == 2 else p + 0.1, params)
    run = jax.jit(lambda x, lay: module.apply({"params": params}, x, lay, train=False))
    return lambda x, lay: np.asarray(run(x, lay)), module, params, x


def states_by_loops(x, p, lay):
    def norm(h, q):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]

    h = x * D**0.5 + p["position_embedding"][lay.position]
    for name in ("block_0", "block_1"):
        b = p[name]
        u, v, q, k = np.split(silu(norm(h, b["input_norm"]) @ b["uvqk"]["kernel"]), 4, axis=-1)
        parts = (part.reshape(B, L, H, W) for part in (q, k, v))
        attended = attention_by_loops(*parts, Bias(b["position_bias"], b["time_bias"]), lay).reshape(B, L, D)
        h = h + (u * norm(attended, b["attention_norm"])) @ b["out"]["kernel"] + b["out"]["bias"]
    return norm(h, p["output_norm"])


@pytest.mark.parametrize("timed", [True, False])
def test_states_agree_with_the_formula(model, timed):
    run, _, params, x = model
    lay = layout([[4, 5], [11]], timed=timed)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = states_by_loops(np.asarray(x, np.float64), wide, lay)
    np.testing.assert_allclose(run(x, lay)[lay.mask], want[lay.mask], atol=1e-3)


def test_a_change_at_t_changes_no_state_before_t_and_none_of_another_history(model):
    run, _, _, x = model
    lay = layout([[4, 7], [11]])
    before = run(x, lay)
    for t in (0, 3, 4, 10):
        moved = np.abs(run(x.at[:, t, 0].add(2.0), lay) - before).max(axis=-1)
        assert moved[:, :t].max(initial=0) == 0
        assert moved[1, t:].min() > 1e-5
        assert moved[0, t + 1 : 4].min(initial=1) > 1e-5
        if t < 4:
            assert moved[0, 4:].max() == 0


def test_packed_and_padded_rows_give_the_same_states(model):
    run, _, _, x = model
    packed, padded = layout([[4, 7], []]), layout([[4], [7]])
    rolled = jnp.stack([x[0], jnp.roll(x[0], -4, 0)])
    ours, theirs = run(x, packed), run(jnp.where(padded.mask[..., None], rolled, 1e3), padded)
    np.testing.assert_allclose(ours[0, :4], theirs[0, :4], atol=1e-5)
    np.testing.assert_allclose(ours[0, 4:], theirs[1, :7], atol=1e-5)
    assert np.isfinite(ours).all()


def test_time_matters_where_it_is_given(model):
    run, _, _, x = model
    lay = layout([[11], [11]])
    later = lay._replace(timestamp=lay.timestamp * 50)
    assert np.abs(run(x, lay) - run(x, later)).max() > 1e-4


def test_parameters_keep_their_names_and_shapes(model):
    """Checkpoints depend on them. Without timestamps there is no time bias."""
    _, module, params, x = model
    norm = {"scale": (D,), "bias": (D,)}
    block = {
        "input_norm": norm,
        "uvqk": {"kernel": (D, 4 * D)},
        "position_bias": (L,),
        "time_bias": (TIME_BUCKETS,),
        "attention_norm": norm,
        "out": {"kernel": (D, D), "bias": (D,)},
    }
    want = {"position_embedding": (L, D), "block_0": block, "block_1": block, "output_norm": norm}
    assert jax.tree.map(jnp.shape, params) == want
    lay = layout([[11], [11]], timed=False)
    without = jax.eval_shape(lambda: module.init(jax.random.PRNGKey(1), x, lay, train=False))["params"]
    assert set(want["block_0"]) - set(without["block_0"]) == {"time_bias"}


def test_bfloat16_computes_in_bfloat16_near_float32(model):
    run, _, params, x = model
    lay = layout([[4, 7], [11]])
    config = BackboneConfig(backbone="hstu", blocks=2, heads=H)
    module = backbones.build(config, dimension=D, max_length=L, dtype=jnp.bfloat16)
    states = module.apply({"params": params}, x, lay, train=False)
    assert states.dtype == jnp.bfloat16
    assert np.abs(np.asarray(states, np.float32) - run(x, lay)).max() < 0.15


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_long_row_never_holds_a_square_in_either_direction(platform, monkeypatch):
    """Of the compiled gradient: temporaries far below one array of [B, H, L, L]. For a TPU it needs libtpu alone."""
    batch, length, width, where = 2, 4096, 32, None
    if platform == "tpu":
        pytest.importorskip("libtpu")
        for name in ("XLA_FLAGS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
            monkeypatch.setenv(name, "")  # so that it is put back afterwards: `devices` changes it
            monkeypatch.delenv(name)
        devices = topologies.devices(topologies.parse("v5e:2x2"))
        mesh = jax.sharding.Mesh(devices[:1], "x")
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shape(*sizes, dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

    def loss(q, k, v, bias, layout):
        return jnp.sum(pointwise_attention(q, k, v, bias, layout).astype(jnp.float32) ** 2)

    heads = [shape(batch, length, H, width, dtype=jnp.bfloat16)] * 3
    bias = Bias(shape(length, dtype=jnp.float32), shape(TIME_BUCKETS, dtype=jnp.float32))
    ids = shape(batch, length, dtype=jnp.int32)
    layout = SequenceLayout(shape(batch, length, dtype=bool), ids, ids, ids)
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*heads, bias, layout)
    compiled = lowered.compile(AS_USERS_DO if platform == "cpu" else None)
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * batch * H * length * length / 8
