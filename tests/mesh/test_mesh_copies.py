"""What devices along `model` compute anew, each for itself, stays one, though a GPU's sums have no fixed order."""

import jax
import numpy as np
import pytest
from test_mesh_training import assembled

from spectran_jax import data
from spectran_jax.training import partitioning
from spectran_jax.training.programs import build_programs


def copies(array):
    """The copies of a replicated array, in the order of the mesh."""
    return [np.asarray(shard.data) for shard in sorted(array.addressable_shards, key=lambda shard: shard.device.id)]


def unlike(array, change):
    """The same array, but that each device's copy is changed by where the device is along `model`."""
    mesh = array.sharding.mesh
    places = {device: place for place, device in np.ndenumerate(mesh.devices)}
    parts = [
        jax.device_put(change(np.asarray(shard.data), places[shard.device][1]), shard.device)
        for shard in array.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def test_the_first_copy_counts(mesh):
    whole = jax.device_put(np.arange(6.0, dtype=np.float32), partitioning.replicated(mesh))
    drifted = unlike(whole, lambda copy, place: copy + place)
    assert len({copy.tobytes() for copy in copies(drifted)}) == mesh.shape["model"]
    made = jax.jit(lambda x: partitioning.of_first_copy(mesh, x))(drifted)
    for copy in copies(made):
        np.testing.assert_array_equal(copy, np.arange(6.0))


@pytest.mark.parametrize("options", [{"item_encoder": "spectran"}, {"item_encoder": "id", "loss": "softmax"}], ids=str)
def test_copies_of_parameters_stay_alike_where_their_gradients_differ(options):
    """Copies of the batch that differ stand for sums that do."""
    setup, histories = assembled((2, 2), **options)
    programs = build_programs(setup, 4)
    batch = partitioning.put_batch(setup.mesh, next(data.train_iterator(histories, setup.plan, seed=1, epochs=1)))
    drifted = batch._replace(
        targets=unlike(batch.targets, lambda copy, place: (copy + place) % setup.dataset.num_items)
    )
    before = programs.init()
    start = {path: np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(before.params)}
    state, _ = programs.train_step(before, setup.place(), drifted)
    whole = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if leaf.sharding.is_fully_replicated
    ]
    assert len(whole) > 5
    assert any((np.asarray(leaf) != start[path]).any() for path, leaf in whole)
    for path, leaf in whole:
        assert len({copy.tobytes() for copy in copies(leaf)}) == 1, jax.tree_util.keystr(path)
