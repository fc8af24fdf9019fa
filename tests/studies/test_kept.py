"""What is kept beside a run is read again, and made again where it is not what was asked for."""

import jax
import numpy as np
import pytest

from spectran_jax.digest import params_digest
from spectran_jax.errors import InputError
from spectran_jax.studies.kept import kept, model_of
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import prepare
from spectran_jax.writing import write_json


@pytest.fixture
def made():
    return []


@pytest.fixture
def read(tmp_path, made):
    """Reads `values` beside a run of the digest given; counts how often they are made."""

    def values(digest):
        arrays = {"values": np.array([1 / 3, 0.0]), "other": np.arange(3)}
        return kept(tmp_path / "part.npz", digest, "values", lambda: made.append(digest) or arrays)

    return values


def test_it_is_made_once(read, made):
    for _ in range(2):
        found = read("d")
        assert sorted(found) == ["other", "values"]
        assert found["values"].tolist() == [1 / 3, 0.0]
    assert made == ["d"]


def test_a_run_that_went_on_has_other_parameters(read, made):
    read("before")
    for _ in range(2):
        read("after")
    assert made == ["before", "after"]


def test_other_code_makes_it_anew(read, made, monkeypatch):
    read("d")
    monkeypatch.setattr("spectran_jax.studies.kept.code_digest", lambda: "of a change")
    read("d")
    assert made == ["d", "d"]


@pytest.mark.parametrize("content", [b"", b"PK", b"{}", None])
def test_a_damaged_file_is_made_again(tmp_path, read, made, content):
    read("d")
    whole = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "part.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert read("d")["values"].tolist() == [1 / 3, 0.0]
    assert made == ["d", "d"]
    read("d")
    assert made == ["d", "d"]


@pytest.mark.parametrize("arrays", [{"values": [2.0]}, {"digest": "d", "other": [2.0]}])
def test_a_file_of_something_else_is_made_again(tmp_path, read, made, arrays):
    np.savez(tmp_path / "part.npz", **arrays)
    assert read("d")["values"].tolist() == [1 / 3, 0.0]
    assert made == ["d"]


def test_other_parameters_than_those_of_the_metrics_are_no_stand_in(tiny_config, tmp_path):
    """Where the best checkpoint is damaged, the best one before it is there still, and is another model."""
    config = tiny_config.replace(item_encoder="id")
    setup = prepare(config)
    before = build_programs(setup, 1).init().params
    best = jax.tree.map(lambda x: x + 1, before)
    write_json(tmp_path / "config.json", config.to_dict())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, params in ((5, before), (6, best)):
        checkpoints.save_best(step, params, {"data": setup.inputs_digest})
        checkpoints.wait()
    checkpoints.close()
    assert params_digest(model_of(tmp_path, params_digest(best))[1]) == params_digest(best)
    with pytest.raises(InputError, match="no longer holds the parameters that its metrics are of"):
        model_of(tmp_path, params_digest(before))

    files = [path for path in (tmp_path / "checkpoints" / "best" / "6").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(InputError, match="no longer holds the parameters that its metrics are of"):
        model_of(tmp_path, params_digest(best))
