"""The loop: one compilation each, no transfer that it did not ask for, NaN, learning, shards."""

import gzip
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import recommend
from spectran_jax.config import TrainingConfig
from spectran_jax.errors import Diverged, InputError
from spectran_jax.metrics import SELECTION_METRIC, metrics_from_ranks
from spectran_jax.progress import TrainingProgress
from spectran_jax.recommend import user_states
from spectran_jax.signals import StopRequest
from spectran_jax.training import item_table, loop
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.programs import build_programs, build_table
from spectran_jax.training.run import train_and_report
from spectran_jax.training.setup import prepare
from spectran_jax.training.timetable import Timetable


def train(config, workdir):
    workdir.mkdir(exist_ok=True)
    return loop.train(prepare(config), workdir, StopRequest())


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("warmup_steps", "epochs"), [(0, 2), (9, 3)])
def test_patience_begins_after_the_warm_up_and_its_end_is_told(tiny_config, tmp_path, capsys, warmup_steps, epochs):
    """A model that does not move gets no better after the first validation."""
    config = tiny_config.replace(
        epochs=5, eval_every=1, patience=1, warmup_steps=warmup_steps, learning_rate=1e-12, batch_size=16
    )
    metrics = train_and_report(config, tmp_path)
    assert metrics["train"]["epochs"] == epochs
    steps, best = metrics["train"]["steps"], metrics["train"]["best_step"]
    told = (
        f"Stopped at step {steps} of {steps // epochs * 5}: no validation was better since step {best} (--patience=1)."
    )
    shown = capsys.readouterr().err
    assert told in shown.replace("\n", " "), shown
    assert f"step {steps}/{steps}" in shown.replace("\n", " ").split(told)[1]


@pytest.mark.usefixtures("no_report")
def test_less_patience_than_a_run_had_is_refused(tiny_config, tmp_path):
    """It would be told of numbers that a run of that patience does not give; where it ended by patience it may end."""
    still = tiny_config.replace(eval_every=1, warmup_steps=0, learning_rate=1e-12, batch_size=16, epochs=4)
    train_and_report(still.replace(patience=2), tmp_path)
    (tmp_path / "metrics.json").unlink()
    assert train_and_report(still.replace(patience=2), tmp_path)["train"]["epochs"] == 3
    assert train_and_report(still.replace(patience=0), tmp_path)["train"]["epochs"] == 4
    with pytest.raises(
        InputError, match=r"went on after 2 validations .* where --patience=1 ends; give more than that"
    ):
        train_and_report(still.replace(patience=1), tmp_path)


@pytest.mark.usefixtures("no_report")
def test_an_old_end_that_a_run_goes_beyond_is_no_validation_of_it(tiny_config, tmp_path):
    """Between two regular ones it is neither the best nor counted; the last parameters there stay until the next."""
    still = tiny_config.replace(
        eval_every=2, patience=2, warmup_steps=0, learning_rate=1e-12, batch_size=16, evaluate="valid"
    )
    straight = train_and_report(still.replace(epochs=9), tmp_path / "straight")
    best = [train_and_report(still.replace(epochs=n), tmp_path / "longer")["train"]["best_step"] for n in (1, 3)]
    longer = train_and_report(still.replace(epochs=9), tmp_path / "longer")
    assert longer["train"]["epochs"] == straight["train"]["epochs"] == 6
    per_epoch = longer["train"]["steps"] // 6
    assert best == [per_epoch, 2 * per_epoch]
    assert longer["train"]["best_step"] == straight["train"]["best_step"] == 2 * per_epoch
    assert longer["digest"] == straight["digest"]
    kept = {path.name for path in (tmp_path / "longer" / "checkpoints" / "best").iterdir() if path.name.isdigit()}
    assert kept == {str(2 * per_epoch)}


@pytest.mark.usefixtures("no_report")
def test_each_program_compiles_once(tiny_config, tmp_path, caplog):
    for kept in (recommend._best_step, item_table._table_programs):
        kept.cache_clear()  # what a test before this one asked for is compiled already
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train_and_report(tiny_config.replace(epochs=3), tmp_path)
    compiled = [
        r.getMessage().split("Finished XLA compilation of ")[1]
        for r in caplog.records
        if "Finished XLA compilation of" in r.getMessage()
    ]
    for name in (
        "jit(train_step)",
        "jit(rank_step)",
        "jit(chunk)",
        "jit(best)",
        "jit(init_params)",
        "jit(init_others)",
    ):
        assert sum(message.startswith(name) for message in compiled) == 1, compiled


def test_no_array_is_converted_behind_the_loops_back(tiny_config, tmp_path, monkeypatch):
    """On CPU the transfer guard lets `float(x)` and `np.asarray(x)` through, so conversions are counted."""
    from jax._src.array import ArrayImpl

    asked, implicit = [0], []
    get = jax.device_get
    original = ArrayImpl._value.fget

    def device_get(tree):
        asked[0] += 1
        try:
            return get(tree)
        finally:
            asked[0] -= 1

    def value(self):
        import traceback

        stack = "".join(traceback.format_stack(limit=12))
        if not asked[0] and "orbax" not in stack and "checkpoints.py" not in stack:
            implicit.append(stack)
        return original(self)

    setup = prepare(tiny_config.replace(epochs=2))
    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(ArrayImpl, "_value", property(value))
    loop.train(setup, tmp_path, StopRequest())
    assert not implicit, implicit[0]
    before = len(implicit)
    float(jax.numpy.ones(()))
    assert len(implicit) == before + 1, "the counter must see what it is there to see"


def test_a_loss_that_is_nan_names_the_step_and_keeps_the_checkpoint(tiny_config, tmp_path):
    config = tiny_config.replace(learning_rate=1e30, clip_norm=0.0, optimizer="sgd", score="dot", warmup_steps=0)
    config = config.replace(temperature=1e-3, checkpoint_every=1)
    with pytest.raises(Diverged, match=r"The loss became (nan|inf) at step 2\b.*the checkpoint of step 1 is kept"):
        train(config, tmp_path)
    # What is kept is not poisoned: a restart does not begin from NaN.
    setup = prepare(config)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    step, state, _ = checkpoints.restore(build_programs(setup, 100).state, setup.inputs_digest)
    checkpoints.close()
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_a_ring_is_learnt_perfectly(tiny_flags, tmp_path):
    """Every user walks the same ring by one step, so the next item is certain: HR@1 must reach 1."""
    from spectran_jax.config import Config

    folder = tmp_path / "ring"
    folder.mkdir()
    items = 20
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": i, "title": f"t {i}"}) + "\n" for i in range(items))
    )
    rows = [f"{u}\t{(u + t) % items}\t{t}\n" for u in range(40) for t in range(8)]
    (folder / "interactions.tsv").write_text("user_id\titem_id\tposition\n" + "".join(rows))
    np.save(folder / "embeddings.npy", np.random.default_rng(0).normal(size=(items, 24)).astype(np.float32))
    config = Config().replace(
        **{**tiny_flags, "interactions": str(folder / "interactions.tsv"), "items": str(folder / "items.jsonl")},
    )
    config = config.replace(embeddings=str(folder / "embeddings.npy"), epochs=60, dropout=0.0, eval_every=20)
    setup = prepare(config)
    # What a start left that was killed before its first checkpoint.
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start", "step": 0, "killed": true}\n')
    trained = loop.train(setup, tmp_path, StopRequest())
    (start,) = [line for line in trained.lines if line["kind"] == "start"]
    assert "killed" not in start

    table = trained.programs.table(trained.params, trained.frozen)
    batches = setup.eval_batches(setup.split.test)
    ranks = trained.programs.rank(trained.params, table, batches)
    assert (ranks == 0).all()


def test_the_best_step_is_chosen_with_cold_items_scored_as_told(tiny_config, tmp_path):
    """Of two sets of parameters the second is better, until cold items score three times as much."""
    config = tiny_config.replace(item_encoder="svd", holdout_items=0.3)
    plain = prepare(config)
    targets, cold = plain.split.valid, plain.split.item_counts == 0
    best = {}
    for scale in (1.0, 3.0):
        (tmp_path / str(scale)).mkdir()
        run = loop.start(prepare(config.replace(cold_scale=scale)), tmp_path / str(scale), Cluster())
        expected = []
        for run.step in (1, 2):
            ids = np.random.default_rng(run.step - 1).normal(size=(len(cold), config.encoder.dimension))
            params = {**run.state.params, "item_encoder": {"id_embedding": jnp.asarray(ids, jnp.float32)}}
            run.state = run.state.replace(params=params)
            run.validate(TrainingProgress(2, 1))
            table = build_table(plain)(params, plain.place())
            scores = user_states(plain, params, targets.history, table=table) @ np.asarray(table.vectors)[: len(cold)].T
            scores *= np.where(cold, scale, 1)
            own = np.take_along_axis(scores, targets.target[:, None], axis=1)
            expected.append(metrics_from_ranks((scores > own).sum(axis=1))[SELECTION_METRIC])
        run.checkpoints.close()
        run.log.close()
        assert run.record.best_value == pytest.approx(max(expected), rel=1e-6)
        assert run.record.best_step == 1 + int(np.argmax(expected))
        best[scale] = run.record.best_step
    assert best == {1.0: 2, 3.0: 1}


def test_several_steps_a_dispatch_make_the_same_run(tiny_config, tmp_path, monkeypatch, no_report):
    """Readings and saves keep their steps; with u on the host, rows are stacked too."""
    config = tiny_config.replace(epochs=3, checkpoint_every=1000, patience=0, spectrum_memory="host")
    lines, calls = {}, []
    from spectran_jax.training import feed

    put = feed.partitioning.put_batch
    monkeypatch.setattr(
        feed.partitioning,
        "put_batch",
        lambda mesh, batch, *, steps=False: calls.append(steps) or put(mesh, batch, steps=steps),
    )
    for several in (1, 4):
        train_and_report(config.replace(steps_per_dispatch=several), tmp_path / str(several))
        text = (tmp_path / str(several) / "metrics.jsonl").read_text()
        lines[several] = [json.loads(line) for line in text.splitlines()]
    assert any(calls), "no dispatch had several steps"
    assert [(x["kind"], x["step"]) for x in lines[1]] == [(x["kind"], x["step"]) for x in lines[4]]
    for one, many in zip(lines[1], lines[4], strict=True):
        if one["kind"] == "train":
            assert many["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_profile_is_a_trace_that_perfetto_and_xprof_open(tiny_config, tmp_path, capsys, no_report):
    train_and_report(tiny_config.replace(epochs=2, eval_every=2, profile=2), tmp_path)
    (folder,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))
    (trace,) = folder.glob("perfetto_trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert any("train_step" in event.get("name", "") for event in events)
    # And the time of any run is told by phase.
    told = capsys.readouterr().err
    for phase in ("set-up", "input", "transfer", "compilation", "step", "evaluation", "checkpoint", "Total"):
        assert phase in told


def test_timetable_gives_several_steps_only_where_nothing_is_due_in_between():
    training = TrainingConfig(steps_per_dispatch=4, eval_every=1, checkpoint_every=7)
    timetable = Timetable(total=22, per_epoch=10, training=training)
    step, dispatches = 0, []
    while size := timetable.steps_at(step):
        dispatches.append(size)
        step += size
        due = range(step - size + 1, step)
        assert not any(timetable.saves(at) or timetable.logs(at) for at in due)
    assert step == 22
    assert dispatches == [4, 2, 1, 2, 1, 4, 4, 2, 1, 1]
    large = Timetable(total=100, per_epoch=1000, training=TrainingConfig(steps_per_dispatch=64, checkpoint_every=1000))
    assert large.steps_at(0) == 32
