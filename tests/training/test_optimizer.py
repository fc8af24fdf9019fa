"""Parameter groups of the optimiser: what is decayed, and how the attention's learning rate falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.config import OptimizerConfig
from spectran_jax.training.optimizer import build_optimizer, is_decayed, is_spectral

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
