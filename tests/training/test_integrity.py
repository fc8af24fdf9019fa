"""The checksum of a state: sensitive to every bit and place, the same on the host and on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.training import integrity


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    values = {
        "table": rng.normal(size=(50, 7)).astype(np.float32),
        "half": jnp.ones((3, 5), jnp.bfloat16),
        "step": np.int32(4),
        "small": rng.integers(-5, 5, 64).astype(np.int8),
        "flags": np.array([True, False]),
    }
    return jax.tree.map(jnp.asarray, values)


def test_host_and_device_agree(tree, monkeypatch):
    host = integrity.inspect(tree)
    monkeypatch.setattr(integrity, "_SMALL_BYTES", 0)
    assert integrity.inspect(tree) == host
    assert host[1] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"table": t["table"].at[49, 6].multiply(1 + 1e-6)},
        lambda t: t | {"table": t["table"][jnp.array([1, 0, *range(2, 50)])]},
        lambda t: t | {"table": t["table"][:, ::-1]},
        lambda t: t | {"step": t["step"] + 1},
        lambda t: t | {"flags": ~t["flags"]},
        lambda t: t | {"half": t["half"].reshape(5, 3)},
        lambda t: {("tablet" if name == "table" else name): leaf for name, leaf in t.items()},
    ],
)
def test_any_change_is_noticed(tree, change):
    assert integrity.inspect(change(tree))[0] != integrity.inspect(tree)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_leaf_that_is_not_finite_is_named(tree, value):
    assert integrity.inspect(tree | {"table": tree["table"].at[3, 2].set(value)})[1] == "['table']"


def test_the_digest_is_what_it_was(tree):
    """Checkpoints hold it."""
    assert integrity.inspect(tree)[0] == "545774879d5275d7f97683b3146bbdec917c5349287e15f2630774bccd6ca9fc"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_a_large_array_takes_no_second_one(dtype):
    leaf = jax.ShapeDtypeStruct((100_000, 64), dtype)
    assert integrity._on_device.lower(leaf).compile().memory_analysis().temp_size_in_bytes < 2**20
