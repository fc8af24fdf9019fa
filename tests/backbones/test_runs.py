"""Whole runs on each backbone: losses fall, evaluation and recommendations agree, a run resumes what it hid."""

import json

import jax
import numpy as np
import pytest

from spectran_jax import backbones, data
from spectran_jax.recommend import recommend
from spectran_jax.training import summary
from spectran_jax.training.restore import load_run
from spectran_jax.training.run import notices, train_and_report
from spectran_jax.training.step import touched_items

MASKED = {"backbone": "bert4rec", "mask_negatives": "history", "loss": "sampled_softmax", "spectrum_memory": "host"}


@pytest.mark.parametrize(
    "options",
    [MASKED, {"backbone": "bert4rec", "loss": "softmax", "packing": False}, {"backbone": "hstu"}],
    ids=["bert4rec-sampled", "bert4rec-softmax", "hstu"],
)
def test_a_run_learns_and_recommends_what_it_is_measured_by(tiny_config, tmp_path, monkeypatch, options):
    monkeypatch.setattr(summary, "write_run_report", lambda *arguments: None)
    config = tiny_config.replace(epochs=12, dropout=0.1, checkpoint_every=50, **options)
    metrics = train_and_report(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    readings = [line["ndcg@20"] for line in lines if line["kind"] == "valid"]
    # Chance is about 0.1 among 40 items.
    assert max(readings) > 1.3 * readings[0] or max(readings) > 0.4
    assert metrics["test"]["ndcg@20"] > 0.2
    setup, params = load_run(tmp_path)
    targets = setup.split.test
    _, ids = recommend(setup, params, targets.history, 20)
    hits = (ids == targets.target[:, None]).any(axis=1).mean()
    assert hits == pytest.approx(metrics["test"]["hr@20"], abs=1e-6)


@pytest.fixture(scope="module")
def masked_setup(tiny_config):
    from spectran_jax.training.setup import prepare

    return prepare(tiny_config.replace(**MASKED, max_length=5))


def test_a_masked_step_touches_its_items_and_no_more(masked_setup):
    """Hidden positions hold id 0 in `item_ids`, and item 0 must not be touched for that."""
    setup = masked_setup
    batches = data.pipeline.TrainBatches(setup.split.train, setup.plan, seed=0, epochs=2)
    for step in range(len(batches)):
        batch = batches[step]
        touched = np.asarray(touched_items(batch, np.zeros(0, np.int32), setup.dataset.num_items))
        touched = set(touched[touched < setup.dataset.num_items].tolist())
        assert touched == set(batch.targets[batch.layout.mask].tolist())
        assert len(touched) <= setup.plan.step_items


def test_a_hidden_items_own_vector_reaches_no_state(masked_setup):
    """Through the whole model: neither what `item_ids` holds there, nor the gradient to it."""
    setup = masked_setup
    model = setup.model
    (batch, *_) = data.pipeline.TrainBatches(setup.split.train, setup.plan, seed=0, epochs=1)
    vectors = jax.random.normal(jax.random.PRNGKey(0), (*batch.item_ids.shape, 16))
    params = {"params": {"backbone": None}}
    backbone = backbones.build(setup.config.backbone, dimension=16, max_length=5)
    params = {
        "params": {"backbone": backbone.init(jax.random.PRNGKey(1), vectors, batch.layout, train=False)["params"]}
    }

    def states(vectors):
        return model.apply(params, vectors, batch.layout, method=model.read)

    slope = jax.grad(lambda v: (batch.at_supervised(states(v)) ** 3).sum())(vectors)
    moved = np.abs(slope).max(axis=-1) > 0
    assert not moved[batch.layout.hidden].any()
    shown = batch.layout.mask & ~batch.layout.hidden
    assert moved[shown].mean() > 0.9


def test_a_run_says_that_time_is_left_out(tiny_config):
    from spectran_jax.training.setup import prepare

    setup = prepare(tiny_config.replace(backbone="hstu", item_encoder="id"))
    assert setup.timed
    assert not any("time bias" in line for line in notices(setup))
    import dataclasses

    train = dataclasses.replace(setup.split.train, timestamps=None)
    untimed = dataclasses.replace(setup, split=dataclasses.replace(setup.split, train=train))
    assert any("no timestamps: hstu leaves its time bias out" in line for line in notices(untimed))
