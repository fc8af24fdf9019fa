"""The singular values of item vectors that a run logs, against NumPy in float64."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.recommender import ItemTable
from spectran_jax.training import engine
from spectran_jax.training.programs import build_programs, centred_gram
from spectran_jax.training.setup import prepare
from spectran_jax.training.workdir import MetricsLog

ITEMS, D = 3000, 16


def logged(vectors, seen):
    gram = np.asarray(centred_gram(ItemTable(jnp.asarray(vectors), jnp.ones(len(vectors))), jnp.asarray(seen)))
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram.astype(np.float64))[::-1], 0))


@pytest.mark.parametrize("common", [0.0, 1.0, 20.0, 100.0])
def test_collapsed_vectors_around_a_common_direction(common):
    """Of unit length and rank 4: rounding of the common direction must not pass for others."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(ITEMS, 4)) @ rng.normal(size=(4, D))
    vectors = spread / np.linalg.norm(spread, axis=1, keepdims=True) + common * np.eye(D)[0]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    seen = rng.random(ITEMS) < 0.9
    exact = vectors[seen].astype(np.float64)
    exact = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
    # float32 rounds vectors of unit length to 6e-8, and a sum of squares to 1e-7 of the largest.
    np.testing.assert_allclose(logged(vectors, seen), exact, rtol=1e-3, atol=1e-3 * exact[0])


def test_items_that_training_does_not_see_and_rows_that_are_none_do_not_count():
    rng = np.random.default_rng(0)
    vectors, seen = rng.normal(size=(ITEMS, D)).astype(np.float32), np.arange(ITEMS) % 3 > 0
    others = np.where(seen[:, None], vectors, 7.0).astype(np.float32)
    np.testing.assert_array_equal(logged(vectors, seen), logged(others, seen))
    assert np.isfinite(logged(vectors, np.zeros(ITEMS, bool))).all()


def test_a_run_logs_those_of_its_table(tiny_config):
    setup = prepare(tiny_config.replace(item_encoder="id"))
    programs, frozen = build_programs(setup, 10), setup.place()
    table = programs.table(programs.init().params, frozen)
    vectors = np.asarray(table.vectors, np.float64)[: setup.dataset.num_items][setup.split.item_counts > 0]
    expected = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(engine.singular_values(programs, table, frozen), expected, rtol=1e-4)


def test_what_is_not_finite_is_left_out_of_a_line(tmp_path):
    """Vectors may score well enough, and their Gram matrix overflow."""
    programs = SimpleNamespace(
        gram=lambda table, candidates: jnp.full((D, D), jnp.inf),
        diagnostics=lambda params, frozen: {"taylor": jnp.arange(2.0), "id_rms": jnp.float32(jnp.nan)},
    )
    watched = engine.watch(programs, None, SimpleNamespace(candidates=None), None)
    assert np.isnan(watched["item_singular_values"]).all()
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    batches = SimpleNamespace(steps_per_epoch=2)
    run = engine.Run(*[None] * 4, batches, *[None] * 5, log, None, step=1, record=engine.Record())
    run.write("valid", watched)
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"kind": "valid", "step": 1, "epoch": 0.5, "taylor": [0.0, 1.0]}
