"""The mesh from its flag, and the table of shardings; `tests/mesh` trains on meshes of eight devices."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectran_jax.errors import InputError
from spectran_jax.training import partitioning
from spectran_jax.training.memory import needed
from spectran_jax.training.notices import notices
from spectran_jax.training.programs import build_programs, compiler_options
from spectran_jax.training.setup import prepare


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data:3", r"--mesh=data:3 asks for 3 devices, there are 1"),
        ("rows:1", r"'rows:1' is not AXIS:SIZE with an axis of data, model"),
        ("data:4,data:1", r"--mesh=data:4,data:1 names the axis data twice"),
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


@given(st.integers(1, 2_000_000_000))
def test_tables_have_few_rows_that_are_no_items(items):
    rows = partitioning.table_rows(items)
    assert 0 <= rows - items <= max(7, items / 20)


@pytest.mark.parametrize(
    ("items", "devices"),
    [
        (160, (2, 4, 8)),
        (100_000, (2, 12, 60, 80, 256)),
        (2_000_000, (96, 1_024, 4_096)),
        (10_000_000, (72, 144, 576, 4_096)),
        (1_000_000_000, (56, 63, 72, 504, 2_048, 4_096, 3_072)),
    ],
)
def test_meshes_cut_the_tables_evenly(items, devices):
    assert not [count for count in devices if partitioning.table_rows(items) % count]


@pytest.mark.parametrize(("sampling", "names"), [("popularity", 3), ("in_batch", 1), ("uniform", 0)])
def test_what_negatives_are_drawn_by_is_cut_as_item_tables_are(tiny_config, sampling, names):
    setup = prepare(tiny_config.replace(sampling=sampling))
    cut = dataclasses.replace(setup, mesh=jax.sharding.AbstractMesh((4, 1), partitioning.AXES))
    arrays = cut.abstract().sampler
    by_row = [x for x in arrays.values() if x.sharding.shard_shape(x.shape) == (setup.access.rows // 4,)]
    assert len(by_row) == len(cut.item_arrays["sampler"]) == names
    on_one, on_four = (needed(each, build_programs(setup, 1).state)["other frozen arrays"] for each in (setup, cut))
    rows = setup.access.rows
    assert on_one - on_four >= names * 4 * (rows - rows // 4)


@pytest.mark.parametrize(("warmup_steps", "told"), [(0, False), (5, False), (6, True)])
def test_a_run_that_ends_while_it_warms_up_is_told(tiny_config, warmup_steps, told):
    config = tiny_config.replace(max_steps=6, epochs=100, warmup_steps=warmup_steps)
    lines = [line for line in notices(prepare(config)) if "warm-up" in line]
    assert [line.startswith("Training ends at step 6, within the 6 steps of warm-up") for line in lines] == [
        True
    ] * told


@pytest.mark.parametrize(("devices", "told"), [(1, False), (3, True), (4, False)])
def test_a_run_says_that_its_mesh_does_not_cut_the_tables(tiny_config, devices, told):
    mesh = jax.sharding.AbstractMesh((devices, 1), partitioning.AXES)
    lines = notices(dataclasses.replace(prepare(tiny_config), mesh=mesh))
    assert (f"{devices} devices do not cut the 40 rows of item tables evenly: each holds them whole." in lines) == told
    idle = notices(dataclasses.replace(prepare(tiny_config.replace(micro_batches=2)), mesh=mesh))
    assert any("whole, and --micro_batches=2 hides no exchange." in line for line in idle) == told


@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_a_run_says_how_much_of_its_batches_is_empty(tiny_config, micro_batches):
    mesh = jax.sharding.AbstractMesh((2, 1), partitioning.AXES)
    setup = prepare(tiny_config.replace(micro_batches=micro_batches, batch_size=16), mesh)
    lines = [line for line in notices(setup) if "are empty" in line]
    rows, each = setup.plan.num_rows / setup.plan.steps_per_epoch, 2 * micro_batches
    told = f"Of the {each * -(-rows // each):.0f} rows of a batch, a multiple of {each} for"
    assert [line.startswith(told) for line in lines] == [True] * (micro_batches == 8), (rows, lines)


@pytest.mark.parametrize(
    ("kind", "devices", "lists", "told"),
    [
        ("TPU v5", 6144, 9, True),
        ("TPU v5", 6144, 1, False),
        ("TPU v5 lite", 16, 3, True),
        ("TPU v5 lite", 32, 3, False),
        ("TPU v5e", 256, 3, False),
        ("TPU v6 lite", 256, 3, True),
        ("NVIDIA H100", 8, 3, False),
    ],
)
def test_a_compiler_is_told_to_exchange_beside_computing_where_it_can(kind, devices, lists, told):
    device = types.SimpleNamespace(device_kind=kind, platform="tpu" if kind.startswith("TPU") else "gpu")
    mesh = types.SimpleNamespace(devices=np.full(devices, device, object), size=devices)
    options = compiler_options(mesh, lists)
    assert ("xla_tpu_enable_async_all_to_all" in options) == told
    assert len(options) == (2 if told else 0)
