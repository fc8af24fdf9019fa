"""One update: on the touched items or on all, packed or padded, from the device or the host, one at a time or many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY_MODEL, write_tiny

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.training import memory, partitioning
from spectran_jax.training.feed import row_reader
from spectran_jax.training.optimizer import build_optimizer
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import prepare
from spectran_jax.training.step import run_keys, step_keys

# Where every update is proportional to its gradient, an untouched row does not move under dense updates either.
SGD = {"optimizer": "sgd", "learning_rate": 0.3, "warmup_steps": 0, "dropout": 0.0, "clip_norm": 1.0}


@pytest.fixture(scope="module")
def wide_config(tmp_path_factory):
    """Many more items than a step touches."""
    flags = write_tiny(tmp_path_factory.mktemp("wide"), items=400)
    return Config().replace(**flags, **{**TINY_MODEL, "batch_size": 6})


class Run:
    """Some updates of a configuration, by hand. Arrays are there once they are asked for: not every test does."""

    def __init__(self, config):
        self.setup = prepare(config)
        self.programs = build_programs(self.setup, 100)
        self.batches = data.train_iterator(
            self.setup.split.train,
            self.setup.plan,
            seed=config.training.seed,
            epochs=9,
            extend=row_reader(self.setup),
        )

    @functools.cached_property
    def frozen(self):
        return self.setup.place()

    @functools.cached_property
    def state(self):
        return self.programs.init()

    def steps(self, count):
        metrics = []
        for _ in range(count):
            batch = partitioning.put_batch(self.setup.mesh, next(self.batches))
            self.state, found = self.programs.train_step(self.state, self.frozen, batch)
            metrics.append({name: float(value) for name, value in jax.device_get(found).items()})
        return metrics


def params(run):
    return jax.device_get(run.state.params)


def first_moments(run):
    """Adam's first moments of the ID table."""
    leaves = jax.tree_util.tree_leaves_with_path(run.state.opt_state)
    (found,) = (x for path, x in leaves if ".mu" in jax.tree_util.keystr(path) and "id_embedding" in str(path))
    return found


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


OTHER = {"packing": False, "mask_negatives": "history", "loss": "sampled_softmax"}


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("spectran", {}),
        ("spectran", OTHER),
        ("rlmrec", {"alignment": "generative"}),
        ("llmesr", {}),
    ],
)
def test_touched_rows_alone_give_the_dense_step(wide_config, encoder, options):
    config = wide_config.replace(item_encoder=encoder, **SGD, **options)
    sparse, dense = Run(config), Run(config.replace(table_updates="dense"))
    assert sparse.setup.touched < sparse.setup.dataset.num_items / 2
    assert dense.setup.touched is None
    for ours, theirs in zip(sparse.steps(4), dense.steps(4), strict=True):
        assert set(ours) == set(theirs)
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), name
    assert_close(params(sparse), params(dense), rtol=1e-3, atol=1e-5)
    moved = np.abs(
        params(sparse)["item_encoder"]["id_embedding"]
        - jax.device_get(sparse.programs.init().params)["item_encoder"]["id_embedding"]
    )
    assert (moved.max(axis=1) > 0).any()


@pytest.mark.parametrize("packing", [True, False])
def test_no_step_touches_more_items_than_there_are_rows(wide_config, packing):
    """Over some epochs, negatives included; and none that it touches is missing."""
    run = Run(wide_config.replace(packing=packing, spectrum_memory="host"))
    no_item, size = run.setup.access.rows, run.setup.touched
    key, _ = run_keys(wide_config.training.seed)
    for step in range(3 * run.setup.plan.steps_per_epoch):
        batch = next(run.batches)
        drawn = run.setup.objective.sampler.draw(
            step_keys(key, step).negatives,
            run.setup.frozen.sampler,
            targets=batch.at_supervised(batch.targets),
            weight=batch.weight(),
        )
        mask = batch.layout.mask
        touched = set(batch.item_ids[mask]) | set(batch.targets[mask]) | set(np.asarray(drawn).tolist())
        assert len(touched) <= size
        assert batch.rows.ids.tolist() == sorted(touched) + [no_item] * (size - len(touched))


def test_rows_that_no_step_touches_stay_as_they_are(tiny_config):
    run = Run(tiny_config.replace(weight_decay=0.1, negatives=2, batch_size=4))
    before = params(run)["item_encoder"]["id_embedding"]
    batch = next(run.batches)
    run.state, _ = run.programs.train_step(run.state, run.frozen, partitioning.put_batch(run.setup.mesh, batch))
    moved = (params(run)["item_encoder"]["id_embedding"] != before).any(axis=1)
    mask = batch.layout.mask
    seen = set(batch.item_ids[mask]) | set(batch.targets[mask])
    assert seen <= set(np.flatnonzero(moved))
    assert len(set(np.flatnonzero(moved)) - seen) <= 2  # the negatives
    moments = first_moments(run)
    np.testing.assert_array_equal(np.asarray(moments)[~moved], 0)


def test_the_attention_rests_once_its_epochs_are_over(tiny_config):
    """`spectral_epochs` counts epochs, of as many steps as the plan has."""
    run = Run(tiny_config.replace(spectral_epochs=1.0, batch_size=8))
    each, moved = run.setup.plan.steps_per_epoch, []
    assert each > 2
    for _ in range(each + 2):
        before = params(run)["item_encoder"]["adapter"]["query"]
        run.steps(1)
        moved.append(bool((params(run)["item_encoder"]["adapter"]["query"] != before).any()))
    assert moved == [True] * each + [False] * 2


def test_the_dense_step_is_adams_and_its_rule_optax_to_the_last_bit(tiny_config):
    """The gradient of the loss, `optax.adam`'s rule and nothing else."""
    config = tiny_config.replace(table_updates="dense", clip_norm=0.0, warmup_steps=0, dropout=0.0)
    config = config.replace(spectral_lr_multiplier=1.0, spectral_epochs=0.0)
    run = Run(config)
    start, batch = params(run), jax.device_put(next(run.batches))
    reader = Run(config.replace(optimizer="sgd", learning_rate=1.0))  # which reads the gradient off
    reader.state, _ = reader.programs.train_step(reader.state, reader.frozen, batch)
    run.state, _ = run.programs.train_step(run.state, run.frozen, batch)
    grads = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), start, params(reader))
    # Adam's first step is rate * sign(g) where |g| is well above eps.
    rate = config.optimizer.learning_rate
    moved = jax.tree.map(lambda a, b: np.asarray(b, np.float64) - np.asarray(a, np.float64), start, params(run))
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(m[np.abs(g) > 1e-4], -rate * np.sign(g[np.abs(g) > 1e-4]), rtol=1e-2),
        moved,
        grads,
    )
    # To the last bit: the very transformation that Optax builds.
    ours = build_optimizer(config.optimizer, 100, run.setup.model.item_encoder.item_params, steps_per_epoch=1)
    theirs = optax.adam(rate)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(3), p.shape), start)
    mine, reference = ours.init(start), theirs.init(start)
    for _ in range(3):
        got, mine = jax.jit(ours.update)(grads, mine, start)
        want, reference = jax.jit(theirs.update)(grads, reference, start)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_packed_and_padded_histories_give_one_loss_and_one_gradient(tiny_config):
    """All users in one batch, so that both see the same sequences."""
    config = tiny_config.replace(batch_size=64, **SGD)
    packed, padded = Run(config), Run(config.replace(packing=False))
    assert packed.setup.plan.steps_per_epoch == padded.setup.plan.steps_per_epoch == 1
    assert packed.setup.plan.rows_per_step < 0.8 * padded.setup.plan.rows_per_step
    (ours,), (theirs,) = packed.steps(1), padded.steps(1)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert_close(params(packed), params(padded), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("memory_kind", "options"),
    [("host", {"item_encoder": "spectran"}), ("disk", {"item_encoder": "svd", "sampling": "in_batch"})],
)
def test_a_spectrum_off_the_device_gives_the_same_run(wide_config, memory_kind, options):
    config = wide_config.replace(**options)
    on, off = Run(config), Run(config.replace(spectrum_memory=memory_kind))
    assert set(off.setup.host_arrays) == {"u"}
    assert "u" not in off.setup.frozen.item_encoder
    for ours, theirs in zip(off.steps(3), on.steps(3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # two programs: the same ids and rows, other rounding
    assert_close(params(off), params(on), rtol=1e-4, atol=5e-6)
    tables = [jax.device_get(run.programs.table(run.state.params, run.frozen)) for run in (on, off)]
    assert_close(*tables, rtol=1e-4, atol=1e-6)


def test_a_spectrum_off_the_device_needs_a_step_that_touches_some_rows(tiny_config):
    with pytest.raises(InputError, match=r"--spectrum_memory=host reads the rows that a step touches, and --loss=soft"):
        prepare(tiny_config.replace(spectrum_memory="host", loss="softmax"))


def test_several_steps_in_one_dispatch_are_the_same_steps(tiny_config):
    one, many = Run(tiny_config), Run(tiny_config)
    losses = [metrics["loss"] for metrics in one.steps(3)]
    batches = [next(many.batches) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    put = partitioning.put_batch(many.setup.mesh, stacked, steps=True)
    many.state, metrics = many.programs.train_steps(many.state, many.frozen, put)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert_close(params(many), params(one), rtol=1e-3, atol=1e-5)
    assert int(many.state.step) == 3


def test_the_table_is_built_in_chunks(tiny_config, monkeypatch):
    from spectran_jax.training import item_table, programs

    run = Run(tiny_config)
    whole = jax.device_get(run.programs.table(run.state.params, run.frozen))
    monkeypatch.setattr(item_table, "_CHUNK_BYTES", 4 * 7 * 60)  # some rows at a time, the last chunk overlapping
    chunked = jax.device_get(programs.build_table(run.setup)(run.state.params, run.frozen))
    assert_close(chunked, whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(whole.vectors, axis=1), 1, rtol=1e-5)
    items = jax.jit(
        lambda p, f: run.setup.model.apply(
            {"params": p, "frozen": f.collection()}, jnp.arange(5), method=lambda m, i: m.item_encoder(i)
        )
    )(run.state.params, run.frozen)
    np.testing.assert_allclose(whole.vectors[:5] * whole.lengths[:5, None], items, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bfloat16_table_learns(tiny_config, precision):
    run = Run(tiny_config.replace(table_dtype="bfloat16", precision=precision))
    assert run.state.params["item_encoder"]["id_embedding"].dtype == jnp.bfloat16
    assert run.state.params["backbone"]["position_embedding"].dtype == jnp.float32
    losses = [metrics["loss"] for metrics in run.steps(12)]
    assert run.state.params["item_encoder"]["id_embedding"].dtype == jnp.bfloat16
    assert first_moments(run).dtype == jnp.float32
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize(
    "model", [{"backbone": "sasrec"}, {"backbone": "bert4rec"}, {"backbone": "hstu"}, {"item_encoder": "rlmrec"}]
)
def test_gradients_are_not_summed_in_bfloat16(tiny_config, model):
    """Such a sum stops growing at 256 times its terms, and a popular item stands thousands of times in a batch."""
    run = Run(tiny_config.replace(precision="bfloat16", **model))
    batch = partitioning.put_batch(run.setup.mesh, next(run.batches))
    shapes = run.programs.state, run.setup.abstract(), batch
    traced = jax.make_jaxpr(lambda *given: run.programs.train_step(*given))(*shapes)
    sums = [each.invars[0].aval.dtype for each in equations(traced.jaxpr) if each.primitive.name == "scatter-add"]
    assert sums
    assert jnp.bfloat16 not in sums


def equations(jaxpr):
    """Of a program and all programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            program = getattr(inner, "jaxpr", inner)
            if hasattr(program, "eqns"):
                yield from equations(program)


def test_a_catalogue_too_large_for_the_device_is_refused_before_anything_is_compiled(tiny_config):
    run = Run(tiny_config)
    sizes = memory.needed(run.setup, run.programs.state)
    items, d = run.setup.dataset.num_items, 16
    assert sizes["ID table"] == 4 * items * d
    assert sizes["optimiser state of the ID table"] == 2 * 4 * items * d + 4 * items
    assert sizes["item table of an evaluation"] == 4 * items * (d + 1)
    assert sizes["gradients of the ID table"] == 0
    frozen = run.setup.frozen.item_encoder
    assert sizes["text coordinates u"] == frozen["u"].nbytes
    assert sizes["other arrays of the text"] == 0
    rest = frozen["trained"].nbytes + frozen["sigma"].nbytes + run.setup.frozen.candidates.nbytes
    assert sizes["other frozen arrays"] >= rest
    memory.require(run.setup, run.programs.state, lambda mesh: sum(sizes.values()))
    message = r"40 items need 0.00 GiB on each device, which has 0.00 GiB: .*What makes them smaller: .*--"
    with pytest.raises(InputError, match=message):
        memory.require(run.setup, run.programs.state, lambda mesh: sum(sizes.values()) - 1)
    memory.require(run.setup, run.programs.state, lambda mesh: None)
    assert memory.device_bytes(run.setup.mesh) > 2**20
    dense = Run(tiny_config.replace(table_updates="dense"))
    assert memory.needed(dense.setup, dense.programs.state)["gradients of the ID table"] == 2 * 4 * items * d
