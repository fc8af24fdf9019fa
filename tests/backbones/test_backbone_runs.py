"""Whole runs on each backbone: it learns, recommends what it is measured by, and a step holds what it says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import data
from spectran_jax.data.history_files import read_histories
from spectran_jax.recommend import recommend, write_recommendations
from spectran_jax.training.notices import notices
from spectran_jax.training.programs import build_programs
from spectran_jax.training.restore import load_run
from spectran_jax.training.run import train_and_report
from spectran_jax.training.setup import prepare
from spectran_jax.training.step import LogQ, step_negatives, touched_items
from spectran_jax.training.summary import dataset_summary

MASKED = {"backbone": "bert4rec", "mask_negatives": "history", "loss": "sampled_softmax", "spectrum_memory": "host"}


@pytest.mark.parametrize(
    "options",
    [MASKED, {"backbone": "bert4rec", "loss": "softmax", "packing": False}, {"backbone": "hstu"}],
    ids=["bert4rec-sampled", "bert4rec-softmax", "hstu"],
)
def test_a_run_learns_and_recommends_what_it_is_measured_by(tiny_config, tmp_path, no_report, capsys, options):
    config = tiny_config.replace(epochs=12, dropout=0.1, eval_every=4, **options)
    metrics = train_and_report(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    course = [line["ndcg@20"] for line in lines if line["kind"] == "valid"]
    assert max(course) > 0.27  # chance: 0.176 among 40 items
    assert max(course) > course[0]
    setup, params = load_run(tmp_path)
    targets = setup.split.test
    _, ids = recommend(setup, params, targets.history, 20)
    hits = (ids == targets.target[:, None]).any(axis=1).mean()
    assert hits == pytest.approx(metrics["test"]["hr@20"], abs=1e-6)
    # Histories of one's own, without times: a model that read them says so.
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"user_id": "u", "items": [setup.dataset.item_ids[0]]}) + "\n")
    assert write_recommendations(tmp_path, tmp_path / "top.jsonl", k=3, histories=own) == 1
    assert ("hstu leaves its time bias out" in capsys.readouterr().err) == (options["backbone"] == "hstu")


@pytest.fixture(scope="module")
def masked_setup(tiny_config):
    return prepare(tiny_config.replace(**{**MASKED, "spectrum_memory": "device"}, item_encoder="id", max_length=5))


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


def test_negatives_that_do_not_count_are_all_of_the_history_hidden_or_not(masked_setup):
    setup = masked_setup
    items = setup.dataset.num_items
    batch = data.pipeline.TrainBatches(setup.split.train, setup.plan, seed=0, epochs=1)[0]
    drawn, targets = jnp.arange(items, dtype=jnp.int32), batch.at_supervised(batch.targets)
    log_q = setup.objective.sampler.log_q(setup.frozen.sampler, drawn)
    of_batch = LogQ(log_q[batch.items], log_q[batch.targets], log_q)
    found, q = step_negatives(setup.objective, of_batch, batch, targets, drawn, drawn), np.exp(log_q)
    rows, columns = np.nonzero(batch.layout.hidden)  # one group, so in the order of `supervised`
    for at, (row, column) in enumerate(zip(rows, columns, strict=True)):
        history = batch.layout.segment[row] == batch.layout.segment[row, column]
        member = np.isin(np.arange(items), batch.targets[row, history])
        np.testing.assert_array_equal(found.excluded[at], member)
        np.testing.assert_allclose(found.excluded_mass[at], q[member].sum(), rtol=1e-5)


def test_a_hidden_items_own_vector_reaches_no_state(masked_setup):
    """Through the whole model: neither what `item_ids` holds there, nor the gradient to it."""
    setup = masked_setup
    model = setup.model
    batch = data.pipeline.TrainBatches(setup.split.train, setup.plan, seed=0, epochs=1)[0]
    vectors = jax.random.normal(jax.random.PRNGKey(0), (*batch.item_ids.shape, 16))
    variables = {"params": build_programs(setup, 1).init().params, "frozen": setup.frozen.collection()}

    def states(vectors):
        return model.apply(variables, vectors, batch.layout, method=model.read)

    slope = jax.jit(jax.grad(lambda v: (batch.at_supervised(states(v)) ** 3).sum()))(vectors)
    moved = np.abs(slope).max(axis=-1) > 0
    assert not moved[batch.layout.hidden].any()
    shown = batch.layout.mask & ~batch.layout.hidden
    assert moved[shown].mean() > 0.9


def test_a_run_says_that_time_is_left_out(tiny_config):
    setup = prepare(tiny_config.replace(backbone="hstu", item_encoder="id"))
    assert setup.timed
    assert not any("time bias" in line for line in notices(setup))
    train = dataclasses.replace(setup.split.train, timestamps=None)
    untimed = dataclasses.replace(setup, split=dataclasses.replace(setup.split, train=train))
    assert any("no timestamps: hstu leaves its time bias out" in line for line in notices(untimed))
    assert [dataset_summary(each)["timestamps"] for each in (setup, untimed)] == [True, False]


def test_histories_in_a_table_bring_their_times(masked_setup, tmp_path):
    known = [masked_setup.dataset.item_ids[i] for i in (3, 4)]
    path = tmp_path / "h.tsv"
    lines = [
        "user_id\titem_id\ttimestamp",
        f"a\t{known[1]}\t9",
        "a\tnobody\t7",
        f"a\t{known[0]}\t5",
        f"b\t{known[0]}\t1",
        "c\tnobody\t1",
    ]
    path.write_text("\n".join(lines) + "\n")
    users, histories, *left_out = read_histories(path, masked_setup.dataset, "drop")
    assert users == ["a", "b"]
    assert left_out == [1, 2]
    assert histories.items.tolist() == [3, 4, 3]
    assert histories.timestamps.tolist() == [5, 9, 1]
