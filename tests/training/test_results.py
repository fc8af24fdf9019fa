"""What a run leaves at its end is of its parameters: it goes when they do, and is made again where it is missing."""

import json
import shutil
import types
from pathlib import Path

import pytest
from conftest import without_report

from spectran_jax import export as exports
from spectran_jax.digest import params_digest
from spectran_jax.errors import InputError, Interrupted
from spectran_jax.export import export_run
from spectran_jax.recommend import write_recommendations
from spectran_jax.studies.jobs import Job
from spectran_jax.studies.jobs import finished as job_finished
from spectran_jax.training import checkpoints
from spectran_jax.training.consensus import StopVote
from spectran_jax.training.feed import Feed
from spectran_jax.training.restore import load_run
from spectran_jax.training.run import finished, to_evaluate, train_and_report
from spectran_jax.training.workdir import RESULTS, refuse_other_run_of_study


def train(config, folder):
    with without_report():
        return train_and_report(config, folder)


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).exists()}


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.replace(epochs=1, patience=0)


@pytest.fixture(scope="module")
def ended(config, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("ended")
    train(config, folder)
    return folder


@pytest.fixture
def run(ended, tmp_path):
    """A copy of it."""
    return shutil.copytree(ended, tmp_path / "run")


def test_a_run_that_goes_on_is_not_finished(config, run, monkeypatch, capsys):
    before = json.loads((run / "metrics.json").read_text())["digest"]
    per_epoch = json.loads((run / "metrics.json").read_text())["train"]["steps"]
    with monkeypatch.context() as patch:
        patch.setattr(StopVote, "reached", lambda self, step, following: "SIGTERM" if step > 2 * per_epoch else None)
        with pytest.raises(Interrupted):
            train(config.replace(epochs=4), run)
    assert not results(run)
    _, params = load_run(run)
    assert params_digest(params) != before
    monkeypatch.setattr(exports, "serialised", lambda setup, params: b"")
    export_run(run, run / "export")
    assert json.loads((run / "export" / "export.json").read_text())["digest"] == params_digest(params)
    capsys.readouterr()
    write_recommendations(run, run / "top.jsonl", k=1)
    assert "has not come to its end" in capsys.readouterr().err


def test_results_go_before_the_first_step_and_not_for_a_refused_command(config, run, monkeypatch):
    before = results(run)
    assert set(before) == set(RESULTS)
    with pytest.raises(InputError, match="--max_steps end at 1"):
        train(config.replace(max_steps=1), run)
    assert results(run) == before

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config.replace(epochs=2), run)
    assert not results(run)
    # The shorter command has its results again, from its checkpoint.
    train(config, run)
    assert json.loads(results(run)["metrics.json"])["digest"] == json.loads(before["metrics.json"])["digest"]


def digest_and_sets(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["digest"], sorted(metrics.keys() & {"valid", "test"})


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"config": []}', '{"config": {"training": 3}}', "[" * 100_000])
def test_damaged_metrics_are_none(tiny_config, tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    setup = types.SimpleNamespace(config=tiny_config, inputs_digest=None)
    assert finished(tmp_path, setup) is None
    assert to_evaluate(tmp_path, setup) == "both"
    assert job_finished(Job("x", tiny_config), tmp_path) is None


def test_damaged_metrics_of_a_run_are_passed_over_and_made_again(config, run, monkeypatch, capsys):
    before = digest_and_sets(run)
    (run / "metrics.json").write_text("{}")
    monkeypatch.setattr(exports, "serialised", lambda setup, params: b"")
    export_run(run, run / "export")
    assert json.loads((run / "export" / "export.json").read_text())["digest"] == before[0]
    assert "has not come to its end" in capsys.readouterr().err
    train(config, run)
    assert digest_and_sets(run) == before


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_missing_or_damaged_are_made_again_without_training(config, run, monkeypatch, capsys, name):
    before = results(run)
    monkeypatch.setattr(Feed, "take", lambda self: pytest.fail("trains"))
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"garbage")):
        damage(run / name)
        train(config, run)
        if name != "report.html":  # whose content nobody reads
            assert results(run)[name] == before[name]
        told = capsys.readouterr().out
        assert f"metrics: {run / 'metrics.json'}\nreport:  {run / 'report.html'}\n" in told
        assert set(results(run)) == set(RESULTS)


def test_a_page_alone_is_not_worth_to_train_anew(config, run, capsys):
    shutil.rmtree(run / "checkpoints")
    (run / "report.html").unlink()
    before = results(run)
    train(config, run)
    assert results(run) == before
    assert "report:" not in capsys.readouterr().out


def test_a_run_that_has_read_more_than_is_asked_keeps_it(config, run, capsys):
    before = results(run)
    train(config.replace(evaluate="valid"), run)
    assert results(run) == before
    told = capsys.readouterr().err
    assert "keeps its results of validation and test" in told
    assert f"The run in {run} has ended before, after " in told
    # Also where something of it has to be made again, and where the sets are read one after the other.
    (run / "ranks.npz").unlink()
    train(config.replace(evaluate="valid"), run)
    assert digest_and_sets(run) == (json.loads(before["metrics.json"])["digest"], ["test", "valid"])
    shutil.copytree(run / "checkpoints", run.parent / "apart" / "checkpoints")
    for evaluate, sets in (("valid", ["valid"]), ("test", ["test", "valid"])):
        train(config.replace(evaluate=evaluate), run.parent / "apart")
        assert digest_and_sets(run.parent / "apart")[1] == sets


@pytest.fixture
def moved(config, tmp_path):
    """The run's files in another place."""
    return {
        name: Path(shutil.copy(config.get(name), tmp_path / f"moved{Path(config.get(name)).suffix}"))
        for name in ("interactions", "items", "embeddings")
    }


def test_a_run_whose_files_were_moved_goes_on(config, run, moved, capsys):
    before, there = results(run), {name: str(path) for name, path in moved.items()}
    refuse_other_run_of_study(run, config.replace(**there))
    with pytest.raises(InputError, match=rf"^The run in {run} has other values \(seed: 7 != 0; "):
        refuse_other_run_of_study(run, config.replace(seed=7))
    job = Job("seed-0", config.replace(**there))
    assert job_finished(job, run) is None  # what the files hold is for the run to see
    train(config.replace(**there), run)
    assert job_finished(job, run, checked=True) is not None
    after = results(run)
    told = [json.loads(each.pop("metrics.json")) for each in (before, after)]
    assert after == before
    for name in there:
        assert told[1]["config"]["text" if name == "embeddings" else "data"].pop(name) == there[name]
        told[0]["config"]["text" if name == "embeddings" else "data"].pop(name)
    assert told[0] == told[1]
    train(config.replace(**there, epochs=2), run)
    assert "Resuming from step" in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["data"]["items"] == there["items"]
    with moved["interactions"].open("a") as file:
        file.write("1000\titem-1\t9000000\n")
    other = moved["interactions"].rename(moved["interactions"].with_name("other.tsv"))
    before = results(run)
    for message in ("holds a run of files with other content", "was trained on other data"):
        with pytest.raises(InputError, match=message):
            train(config.replace(**{**there, "interactions": str(other)}, epochs=3), run)
        assert json.loads((run / "config.json").read_text())["data"]["interactions"] == there["interactions"]
        assert results(run) == before
        (run / "metrics.json").unlink(missing_ok=True)  # then the checkpoint knows
        before = results(run)


def test_a_run_whose_files_were_moved_serves(config, run, moved, tmp_path, monkeypatch):
    write_recommendations(run, tmp_path / "before.jsonl", k=3)
    gone = {name: f"gone/{path.name}" for name, path in moved.items()}
    (run / "config.json").write_text(json.dumps(config.replace(**gone).to_dict()))
    with pytest.raises(InputError, match=r"trained on gone/moved.tsv, .* where it lies now, --interactions=FILE"):
        write_recommendations(run, tmp_path / "top.jsonl", k=3)
    write_recommendations(run, tmp_path / "top.jsonl", k=3, files=moved)
    assert (tmp_path / "top.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()
    monkeypatch.setattr(exports, "serialised", lambda setup, params: b"")
    assert export_run(run, tmp_path / "export", files=moved) == (40, 0)
    with pytest.raises(InputError, match=r"none.npy: no such file"):
        write_recommendations(run, tmp_path / "top.jsonl", k=3, files={**moved, "embeddings": tmp_path / "none.npy"})
    with pytest.raises(InputError, match=r"--output=.*moved.jsonl is one of the files that are read"):
        write_recommendations(run, moved["items"], k=3, files=moved)
    with moved["interactions"].open("a") as file:
        file.write("1000\titem-1\t9000000\n")
    with pytest.raises(InputError, match=r"With --interactions=.* and --embeddings=.*, the data are not those that"):
        export_run(run, tmp_path / "export", files=moved)


def test_damaged_best_parameters_are_not_made_again_by_the_same_command(config, run, monkeypatch):
    """As the run is finished; so that is not what is advised."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "inspect", lambda tree: ("other", None))
        with pytest.raises(InputError, match=r"its best parameters are damaged; train in a new folder"):
            load_run(run)
    shutil.rmtree(run / "checkpoints" / "best")
    (run / "checkpoints" / "best").mkdir()
    with pytest.raises(InputError, match=r"no trained model yet. Go on with experiments.train"):
        load_run(run)


def test_a_file_that_the_run_never_had(config, run, moved, tmp_path):
    (run / "config.json").write_text(json.dumps(config.replace(embeddings="").to_dict()))
    with pytest.raises(InputError, match=r"--embeddings=.*npy: the run in .* was trained without such a file"):
        write_recommendations(run, tmp_path / "top.jsonl", k=3, files=moved)
