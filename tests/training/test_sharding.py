"""One mesh or another: the same losses, and the table of shardings is the only place that says where arrays lie."""

import json

import jax
import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.training import partitioning

RUN = {"epochs": 2, "dropout": 0.0, "evaluate": "valid"}


@pytest.fixture(scope="module")
def losses(tiny_flags, tmp_path_factory, run_command):
    def of(name, **flags):
        workdir = tmp_path_factory.mktemp(name)
        env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={flags.pop('devices')}"}
        done = run_command("train", {**tiny_flags, **RUN, **flags, "workdir": workdir}, env=env)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["kind"] == "train"]

    return of


def test_four_devices_train_as_one(losses):
    one, four = losses("one", devices=1), losses("four", devices=4, mesh="data:2,model:2")
    np.testing.assert_allclose(four, one, rtol=1e-4)


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
