"""An update of the touched items is one of all items, whether their rows come from the device or the host."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import TINY_MODEL, write_tiny
from updates import SGD, Run, assert_close, first_moments, params

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.objectives import registry, weighted_mean
from spectran_jax.training import partitioning
from spectran_jax.training.setup import prepare
from spectran_jax.training.step import run_keys, step_keys


@pytest.fixture(scope="module")
def wide_config(tmp_path_factory):
    """Many more items than a step touches."""
    flags = write_tiny(tmp_path_factory.mktemp("wide"), items=400)
    return Config().replace(**flags, **{**TINY_MODEL, "batch_size": 6})


OTHER = {"packing": False, "mask_negatives": "history", "loss": "sampled_softmax"}


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("spectran", {}),
        ("rlmrec", {"alignment": "generative", **OTHER}),
        ("llmesr", {}),
    ],
)
def test_touched_rows_alone_give_the_dense_step(wide_config, encoder, options):
    config = wide_config.replace(item_encoder=encoder, **SGD, **options)
    sparse, dense = Run(config), Run(config.replace(table_updates="dense"))
    assert sparse.setup.touched < sparse.setup.dataset.num_items / 2
    assert dense.setup.touched is None
    for ours, theirs in zip(sparse.steps(4), dense.steps(4), strict=True):
        assert set(ours) == set(theirs)
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), name
    assert_close(params(sparse), params(dense), rtol=1e-3, atol=1e-5)
    moved = np.abs(
        params(sparse)["item_encoder"]["id_embedding"]
        - jax.device_get(sparse.programs.init().params)["item_encoder"]["id_embedding"]
    )
    assert (moved.max(axis=1) > 0).any()


@pytest.mark.parametrize("packing", [True, False])
def test_no_step_touches_more_items_than_there_are_rows(wide_config, packing):
    """Over some epochs, negatives included; and none that it touches is missing."""
    run = Run(wide_config.replace(packing=packing, spectrum_memory="host"))
    no_item, size = run.setup.access.rows, run.setup.touched
    key, _ = run_keys(wide_config.training.seed)
    for step in range(3 * run.setup.plan.steps_per_epoch):
        batch = next(run.batches)
        drawn = run.setup.objective.sampler.draw(
            step_keys(key, step).negatives,
            run.setup.frozen.sampler,
            targets=batch.at_supervised(batch.targets),
            weight=batch.weight(),
        )
        mask = batch.layout.mask
        touched = set(batch.item_ids[mask]) | set(batch.targets[mask]) | set(np.asarray(drawn).tolist())
        assert len(touched) <= size
        assert batch.rows.ids.tolist() == sorted(touched) + [no_item] * (size - len(touched))


def test_rows_that_no_step_touches_stay_as_they_are(tiny_config):
    run = Run(tiny_config.replace(weight_decay=0.1, negatives=2, batch_size=4))
    before = params(run)["item_encoder"]["id_embedding"]
    batch = next(run.batches)
    run.state, _ = run.programs.train_step(run.state, run.frozen, partitioning.put_batch(run.setup.mesh, batch))
    moved = (params(run)["item_encoder"]["id_embedding"] != before).any(axis=1)
    mask = batch.layout.mask
    seen = set(batch.item_ids[mask]) | set(batch.targets[mask])
    assert seen <= set(np.flatnonzero(moved))
    assert len(set(np.flatnonzero(moved)) - seen) <= 2  # the negatives
    moments = first_moments(run)
    np.testing.assert_array_equal(np.asarray(moments)[~moved], 0)


@pytest.mark.parametrize(
    ("memory_kind", "options"),
    [("host", {"item_encoder": "spectran"}), ("disk", {"item_encoder": "svd", "sampling": "in_batch"})],
)
def test_a_spectrum_off_the_device_gives_the_same_run(wide_config, memory_kind, options):
    config = wide_config.replace(**options)
    on, off = Run(config), Run(config.replace(spectrum_memory=memory_kind))
    assert set(off.setup.host_arrays) == {"u"}
    assert "u" not in off.setup.frozen.item_encoder
    for ours, theirs in zip(off.steps(3), on.steps(3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # two programs: the same ids and rows, other rounding
    assert_close(params(off), params(on), rtol=1e-4, atol=5e-6)
    tables = [jax.device_get(run.programs.table(run.state.params, run.frozen)) for run in (on, off)]
    assert_close(*tables, rtol=1e-4, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Near:
    """Draws states to their targets: a loss over the batch's own items, which draws no negatives."""

    sampled, sampler, mask_negatives, history_negatives = True, None, "positive", False

    def loss(self, states, items, *, positive_ids, weight, negatives, candidates):
        assert negatives is None
        return weighted_mean(1 - (states * items[positive_ids]).sum(-1), weight), {}


def test_a_loss_without_negatives_reads_rows_from_the_host_and_trains_on_a_mesh(wide_config, monkeypatch):
    monkeypatch.setitem(registry.LOSSES, "infonce", lambda config, counts: Near())
    on, off = Run(wide_config), Run(wide_config.replace(spectrum_memory="host"))
    for ours, theirs in zip(off.steps(2), on.steps(2), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    mesh = jax.sharding.AbstractMesh((8, 1), partitioning.AXES)
    assert dataclasses.replace(on.setup, mesh=mesh).exchange is None  # which is for what draws


def test_a_spectrum_off_the_device_needs_a_step_that_touches_some_rows(tiny_config):
    with pytest.raises(InputError, match=r"--spectrum_memory=host reads the rows that a step touches, and --loss=soft"):
        prepare(tiny_config.replace(spectrum_memory="host", loss="softmax"))
