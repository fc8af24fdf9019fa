"""The optimiser's schedules, clipping and parameter groups, against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectran_jax.config import OptimizerConfig
from spectran_jax.training.optimizer import build_optimizer, clip, is_decayed, is_spectral, learning_rate_schedule

PARAMS = {
    "item_encoder": {
        "id_embedding": jnp.ones((3, 2)),
        "adapter": {
            "query": jnp.ones((2, 2)),
            "key": jnp.ones((4, 2)),
            "threshold": jnp.ones(()),
            "taylor": jnp.ones(3),
        },
    },
    "backbone": {
        "position_embedding": jnp.ones((5, 2)),
        "newest_position_embedding": jnp.ones((5, 2)),
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    },
}


def test_groups():
    decayed, spectral = is_decayed(PARAMS), is_spectral(PARAMS)
    adapter = decayed["item_encoder"]["adapter"]
    assert all((decayed["item_encoder"]["id_embedding"], adapter["query"], adapter["key"]))
    assert not any((adapter["threshold"], adapter["taylor"]))
    assert decayed["backbone"] == {
        "position_embedding": False,
        "newest_position_embedding": False,
        "dense": {"kernel": True, "bias": False},
    }
    assert all(jax.tree.leaves(spectral["item_encoder"]["adapter"]))
    assert sum(jax.tree.leaves(spectral)) == 4


@pytest.mark.parametrize(("epochs", "falls"), [(2.0, True), (0.0, False)])
def test_the_rate_of_the_attention_falls_over_its_epochs(epochs, falls):
    config = OptimizerConfig(
        optimizer="sgd", learning_rate=0.1, warmup_steps=0, clip_norm=0.0,
        spectral_lr_multiplier=3.0, spectral_epochs=epochs,
    )  # fmt: skip
    optimizer = build_optimizer(config, 100, ("id_embedding",), steps_per_epoch=5)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    state, taken = optimizer.init(PARAMS), []
    for _ in range(13):
        updates, state = optimizer.update(ones, state, PARAMS)
        encoder = updates["item_encoder"]
        np.testing.assert_allclose(encoder["id_embedding"], -0.1, rtol=1e-6)
        taken.append(-float(encoder["adapter"]["query"][0, 0]))
    steps = np.arange(13)
    expected = 0.3 * (0.5 * (1 + np.cos(np.pi * np.minimum(steps / 10, 1))) if falls else np.ones(13))
    np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-7)


def test_the_rate_of_an_adapter_is_of_what_is_neither_a_table_nor_attention():
    params = PARAMS | {"item_encoder": PARAMS["item_encoder"] | {"layers": {"kernel": jnp.ones((2, 2))}}}
    config = OptimizerConfig(
        optimizer="sgd", learning_rate=0.1, warmup_steps=0, clip_norm=0.0,
        spectral_lr_multiplier=3.0, spectral_epochs=0.0, adapter_lr_multiplier=0.5,
    )  # fmt: skip
    optimizer = build_optimizer(config, 100, ("id_embedding",), steps_per_epoch=5)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    rates = {jax.tree_util.keystr(path, simple=True, separator="/"): -float(x.reshape(-1)[0])
             for path, x in jax.tree_util.tree_leaves_with_path(updates)}  # fmt: skip
    for name, rate in rates.items():
        slow = name == "item_encoder/layers/kernel"
        assert rate == pytest.approx(0.05 if slow else 0.3 if "/adapter/" in name else 0.1), name


def rates(steps, total, **options):
    """Of a run's first steps."""
    config = OptimizerConfig(optimizer="sgd", weight_decay=0.0, **options)
    schedule, optimizer = learning_rate_schedule(config, total), build_optimizer(config, total, steps_per_epoch=1)
    params = {"kernel": jnp.ones((2, 2))}
    state, moved = optimizer.init(params), []
    for _ in range(steps):
        updates, state = optimizer.update(params, state, params)
        moved.append(-float(updates["kernel"][0, 0]))
    np.testing.assert_allclose(moved, [float(schedule(step)) for step in range(steps)], rtol=1e-6, atol=1e-9)
    return moved


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_rate_rises_in_equal_parts_and_stays(warmup):
    rising = [0.2 * (step + 1) / warmup for step in range(warmup)]
    taken = rates(8, 100, learning_rate=0.2, warmup_steps=warmup, schedule="constant")
    np.testing.assert_allclose(taken, rising + [0.2] * (8 - warmup), rtol=1e-6)


def test_a_cosine_falls_to_nothing_where_the_run_ends():
    taken = rates(14, 12, learning_rate=0.2, warmup_steps=2, schedule="cosine")
    falling = [0.1 * (1 + np.cos(np.pi * min(step, 10) / 10)) for step in range(12)]
    np.testing.assert_allclose(taken, [0.1, 0.2, *falling], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("limit", "norm"), [(0.0, 5.0), (2.0, 2.0), (5.0, 5.0), (7.0, 5.0)])
def test_clipping_keeps_the_direction(limit, norm):
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]], jnp.bfloat16)}
    clipped = clip(grads, jnp.float32(5.0), limit)
    assert clipped["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(clipped["a"], [3 * norm / 5, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"].astype(jnp.float32), [[-4 * norm / 5]], rtol=1e-2)


def test_weight_decay_is_decoupled_and_of_matrices_alone():
    """AdamW: the learning rate times what Adam says and `weight_decay` times the weights."""
    rate, decay = 0.1, 0.3
    config = OptimizerConfig(
        learning_rate=rate, warmup_steps=0, weight_decay=decay, spectral_lr_multiplier=1.0, spectral_epochs=0.0
    )
    rng = np.random.default_rng(0)
    adam = optax.scale_by_adam()
    optimizer = build_optimizer(config, 100, steps_per_epoch=5)
    params = expected = PARAMS
    state, plain = optimizer.init(params), adam.init(params)
    for _ in range(4):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        moved, plain = adam.update(grads, plain)
        expected = jax.tree.map(
            lambda p, m, decayed: p - rate * (m + decay * p * decayed), expected, moved, is_decayed(PARAMS)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)
