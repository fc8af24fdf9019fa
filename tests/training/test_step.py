"""One update: its rule, packed or padded, one at a time or many; the table that it leaves, and what it needs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from updates import SGD, Run, assert_close, params

from spectran_jax.errors import InputError
from spectran_jax.training import memory, partitioning
from spectran_jax.training.optimizer import build_optimizer


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


def test_memory_is_asked_of_a_device_of_this_process():
    """JAX refuses to tell of another's."""
    mine, other = (
        types.SimpleNamespace(platform="tpu", memory_stats=stats)
        for stats in (lambda: {"bytes_limit": 7}, lambda: 1 / 0)
    )
    mesh = types.SimpleNamespace(devices=np.array([other, mine]), local_devices=[mine])
    assert memory.device_bytes(mesh) == 7
