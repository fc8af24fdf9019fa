"""What negatives are drawn by, cut over eight devices: the same draws and probabilities as on one."""

import jax
import numpy as np
import pytest

from spectran_jax import negatives
from spectran_jax.training import partitioning
from spectran_jax.training.step import Frozen

COUNTS = np.random.default_rng(0).zipf(1.5, 45) * (np.arange(45) % 3 > 0)
"""Of items that eight devices do not cut evenly, some of them cold."""


def place(sampler, mesh):
    """The arrays as `Setup.place` has them."""
    items, rows = {"sampler": sampler.item_arrays}, partitioning.table_rows(len(COUNTS))
    frozen = Frozen({}, sampler.arrays(COUNTS), COUNTS > 0)
    shardings = partitioning.frozen_shardings(mesh, frozen, items, rows).sampler

    def put(name, array):
        shape = (rows,) if name in sampler.item_arrays else array.shape
        return partitioning.put_array(array, jax.ShapeDtypeStruct(shape, array.dtype, sharding=shardings[name]))

    return {name: put(name, array) for name, array in frozen.sampler.items()}


@pytest.mark.parametrize("sampler", [negatives.Popularity(5000, 0.75), negatives.InBatch(5000)], ids=["pop", "batch"])
def test_draws_and_probabilities_are_those_of_one_device(sampler, mesh):
    whole, cut = sampler.arrays(COUNTS), place(sampler, mesh)
    rows = partitioning.table_rows(len(COUNTS))
    assert all(cut[name].sharding.shard_shape((rows,)) == (rows // 8,) for name in sampler.item_arrays)
    targets = np.random.default_rng(1).choice(np.flatnonzero(COUNTS), 64).astype(np.int32)
    given = {"targets": targets, "weight": (targets % 5 > 0).astype(np.float32)}
    draw = jax.jit(lambda arrays, given: sampler.draw(jax.random.PRNGKey(3), arrays, **given))
    placed = jax.device_put(given, partitioning.sharding(mesh, "batch"))
    want = np.asarray(draw(whole, given))
    assert (COUNTS[want] > 0).all()
    np.testing.assert_array_equal(draw(cut, placed), want)

    log_q = jax.jit(sampler.log_q)
    ids = np.r_[-1:62, rows - 1].astype(np.int32)  # padding, all items, rows that are none, and beyond
    want = np.asarray(log_q(whole, ids))
    assert np.isneginf(want[[0, *range(46, 64)]]).all()
    assert np.isfinite(want).sum() == (COUNTS > 0).sum()
    for sharding in (partitioning.replicated(mesh), partitioning.sharding(mesh, "batch")):
        np.testing.assert_array_equal(log_q(cut, jax.device_put(ids, sharding)), want)
