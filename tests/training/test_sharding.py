"""The mesh from its flag, and the table of shardings; `tests/mesh` trains on meshes of eight devices."""

import jax
import pytest

from spectran_jax.errors import InputError
from spectran_jax.training import partitioning


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data:3", r"--mesh=data:3 asks for 3 devices, there are 1"),
        ("rows:1", r"'rows:1' is not AXIS:SIZE with an axis of data, model"),
        ("data:many", r"'data:many' is not AXIS:SIZE"),
    ],
)
def test_a_mesh_that_cannot_be(spec, message):
    if len(jax.devices()) != 1:
        pytest.skip("needs one device")
    with pytest.raises(InputError, match=message):
        partitioning.build_mesh(spec)


def test_every_logical_axis_maps_to_a_mesh_axis_or_to_none():
    assert set(partitioning.RULES.values()) <= {None, *partitioning.AXES, partitioning.AXES}
    mesh = partitioning.build_mesh("auto")
    assert partitioning.sharding(mesh, "batch").spec == jax.sharding.PartitionSpec("data")
    assert partitioning.replicated(mesh).is_fully_replicated
