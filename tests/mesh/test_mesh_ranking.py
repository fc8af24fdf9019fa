"""Ranks and top items over a table that is sharded by rows equal those over the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from spectran_jax.ranking import Shard, rank_targets, top_k
from spectran_jax.training.partitioning import AXES

USERS, ITEMS, ROWS, D = 6, 101, 104, 5


@pytest.fixture(params=[(8, 1), (2, 4)], ids=["8x1", "2x4"])
def mesh(request):
    """Two of the shapes: a table is cut over all devices, in the order of both axes."""
    return Mesh(np.asarray(jax.devices()).reshape(request.param), AXES)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    table = rng.integers(-2, 3, (ITEMS, D)).astype(np.float32)  # small integers: many ties, all exact
    padded = np.concatenate([table, np.full((ROWS - ITEMS, D), 9, np.float32)])  # would win every ranking
    states = rng.integers(-2, 3, (USERS, D)).astype(np.float32)
    seen = rng.integers(-1, ITEMS, (USERS, 7)).astype(np.int32)
    return states, table, padded, rng.integers(0, ITEMS, USERS).astype(np.int32), seen


def over(mesh, function, *arguments):
    """`function(table part, ...)` under shard_map, the table cut by rows and the rest whole, as is the result."""
    whole = PartitionSpec()
    specs = (PartitionSpec(AXES), *(whole,) * (len(arguments) - 1))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False))(*arguments)


@pytest.mark.parametrize("filtered", [False, True])
def test_ranks(mesh, case, filtered):
    states, table, padded, targets, seen = case
    seen = seen if filtered else seen[:, :0]
    run = lambda part, states, targets, seen: rank_targets(  # noqa: E731
        states, part, targets, seen if filtered else None, chunk=4, shard=Shard(AXES, ITEMS)
    )
    want = rank_targets(jnp.asarray(states), jnp.asarray(table), jnp.asarray(targets), seen if filtered else None)
    np.testing.assert_array_equal(over(mesh, run, padded, states, targets, seen), want)


@pytest.mark.parametrize("k", [1, 20, ITEMS])
def test_top_items(mesh, case, k):
    states, table, padded, _, seen = case
    run = lambda part, states, seen: top_k(states, part, k, seen, chunk=4, shard=Shard(AXES, ITEMS))  # noqa: E731
    for got, want in zip(
        over(mesh, run, padded, states, seen), top_k(states, jnp.asarray(table), k, seen), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_a_broken_state_is_broken_everywhere(mesh, case):
    states, _, padded, targets, _ = case
    padded = padded.copy()
    padded[17] = np.nan
    run = lambda part, states, targets: rank_targets(states, part, targets, shard=Shard(AXES, ITEMS))  # noqa: E731
    assert (np.asarray(over(mesh, run, padded, states, targets)) == -1).all()
