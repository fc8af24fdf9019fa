"""What a run leaves at its end stands for its parameters: it goes when they do, and is made again where it is missing."""

import json
import shutil

import pytest
from conftest import without_report

from spectran_jax import export as exports
from spectran_jax.digest import params_digest
from spectran_jax.errors import InputError, Interrupted
from spectran_jax.export import export_run
from spectran_jax.recommend import write_recommendations
from spectran_jax.training.consensus import StopVote
from spectran_jax.training.feed import Feed
from spectran_jax.training.restore import load_run
from spectran_jax.training.run import train_and_report
from spectran_jax.training.workdir import RESULTS


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
