"""Data sets by name, and the common flags."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from absl import flags

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.studies.datasets import BUILT_IN, dataset_configs, of_the_protocol, read_datasets
from spectran_jax.studies.flags import (
    command_line,
    define_study_flags,
    parse_seeds,
    refuse_set_by_study,
    study_from_flags,
)
from spectran_jax.studies.ownership import claimed, refuse_another_study
from spectran_jax.training.summary import protocol
from spectran_jax.training.workdir import refuse_other_folder

TOML = """
[beauty]
interactions = "data/i.tsv"
items = "data/items.jsonl"
embeddings = "data/e.npy"
max_length = 20
temperature = 1

[ml-temporal]
dataset = "movielens_100k"
split = "temporal"

[movielens_100k]
epochs = 3
"""


@pytest.fixture
def toml(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("i.tsv", "items.jsonl", "e.npy"):
        (tmp_path / "data" / name).write_text("")
    path = tmp_path / "sets.toml"
    path.write_text(TOML)
    return path


def test_names_become_configurations(toml, tmp_path):
    found = dataset_configs(["beauty", "ml-temporal", "movielens_100k"], toml, given={"dropout": 0.1, "max_length": 9})
    beauty = found["beauty"]
    assert beauty.data.dataset == "files"
    assert beauty.data.interactions == str(tmp_path / "data" / "i.tsv")
    assert beauty.text.embeddings == str(tmp_path / "data" / "e.npy")
    assert beauty.objective.temperature == 1.0
    assert {c.data.max_length for c in found.values()} == {9}, "the command line overrules the file"
    assert {c.backbone.dropout for c in found.values()} == {0.1}
    assert found["ml-temporal"].data.split == "temporal"
    ours = found["movielens_100k"].training
    assert (ours.epochs, ours.batch_size) == (3, BUILT_IN["movielens_100k"]["batch_size"])
    assert dataset_configs(["beauty"], toml)["beauty"].data.max_length == 20


def test_the_flags_may_describe_a_data_set(tmp_path):
    given = {"interactions": "i.tsv", "items": "i.jsonl"}
    assert dataset_configs(["files"], given=given)["files"].data.interactions == "i.tsv"
    base = Config().replace(blocks=7)
    assert dataset_configs(["movielens_100k"], base=base)["movielens_100k"].backbone.blocks == 7


def test_the_values_of_a_config_json_are_not_overruled_by_what_suits_a_data_set(toml):
    base = Config().replace(max_length=20, learning_rate=1e-4, batch_size=512)
    assert dataset_configs(["movielens_100k"], base=base) == {"movielens_100k": base}
    training = dataset_configs(["movielens_100k"], toml, base=base)["movielens_100k"].training
    assert (training.epochs, training.batch_size) == (3, 512), "a table of the file still is"


def test_the_config_json_of_a_run_on_files_is_one_of_a_study(toml, tmp_path):
    base = Config().replace(dataset="files", interactions="i.tsv", items="i.jsonl", embeddings="e.npy", blocks=7)
    found = dataset_configs(["files", "movielens_100k", "ml-temporal"], toml, base=base)
    assert found["files"] == base
    for name in ("movielens_100k", "ml-temporal"):
        assert found[name].backbone.blocks == 7
        assert (found[name].data.interactions, found[name].data.items, found[name].text.embeddings) == ("", "", "")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(base.to_dict()))
    assert study(f"--config={config}", "--workdir=w").datasets == {"files": base}
    assert study(f"--config={config}", "--workdir=w", f"--datasets={toml}", "--dataset=beauty").datasets.keys() == {
        "beauty"
    }


def test_files_of_the_flags_are_laid_over_no_other_data_set(toml, tmp_path):
    given = {"interactions": "i.tsv", "items": "i.jsonl", "embeddings": "e.npy", "dropout": 0.1}
    found = dataset_configs(["beauty", "files"], toml, given=given)
    assert found["files"].data.interactions == "i.tsv"
    assert found["beauty"].data.interactions == str(tmp_path / "data" / "i.tsv")
    assert found["beauty"].text.embeddings == str(tmp_path / "data" / "e.npy")
    assert {c.backbone.dropout for c in found.values()} == {0.1}
    for name in ("interactions", "items"):
        with pytest.raises(InputError, match=f"--{name} belongs to one data set, got --dataset=beauty: take"):
            dataset_configs(["beauty"], toml, given={name: given[name]})
    # Another text of one data set; of several nobody could say whose.
    other = {"embeddings": "other.npy"}
    assert dataset_configs(["beauty"], toml, given=other)["beauty"].text.embeddings == "other.npy"
    assert dataset_configs(["movielens_100k"], given=other)["movielens_100k"].text.embeddings == "other.npy"
    with pytest.raises(InputError, match="--embeddings belongs to one data set, got --dataset=beauty,movielens_100k"):
        dataset_configs(["beauty", "movielens_100k"], toml, given=other)


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (["beauti"], TOML, "Unknown data set 'beauti'.*Did you mean 'beauty'"),
        (["/d/sets.toml"], TOML, "--dataset=/d/sets.toml is a file: take --datasets=/d/sets.toml, and --dataset for"),
        (["files"], "", "--dataset=files needs --interactions"),
        ([], "", "name at least one data set"),
        (["beauty", "beauty"], TOML, "each only once"),
        (["beauty"], "[beauty", "not a readable TOML file"),
        (["beauty"], "beauty = 3", r"must be a table of fields, written \[beauty\]"),
        (["a"], "[a]\nmax_lenght = 3", "Unknown field in .*sets.toml, data set a: 'max_lenght'.*'max_length'"),
        (["a"], "[a]\nmax_length = 'x'", "data set a: data.max_length must be int, got 'x'"),
        (["a"], "[a]\ninteractions = 'none.tsv'", "data set a: interactions names .*none.tsv, and there is no such"),
        (["a"], "['../a']\nmax_length = 3", "can't be named '../a'"),
        (["movielens_100k"], "[movielens_100k]\ndropout = 2.0", "--dropout must be"),
        (["a"], "[a]\nseed = 3", "data set a: a study sets seed itself"),
        (["a"], "[a]\nevaluate = 'valid'", "data set a: a study sets evaluate itself"),
    ],
)
def test_bad_names_and_files(toml, names, text, message):
    toml.write_text(text)
    with pytest.raises(InputError, match=message):
        dataset_configs(names, toml)


@pytest.mark.parametrize("base", [Config(), Config().replace(split="temporal"), Config().replace(holdout_items=0.1)])
def test_what_is_measured_is_what_the_protocol_of_runs_holds(base):
    other = {
        "split": "temporal" if base.data.split == "leave_one_out" else "leave_one_out", "filter_seen": True,
        "holdout_items": 0.2, "max_length": 7, "dropout": 0.4, "item_encoder": "id",
    }  # fmt: skip

    def made(config):
        return protocol(SimpleNamespace(config=config, dataset=SimpleNamespace(digest="d")))

    moving = {name for name, value in other.items() if made(base.replace(**{name: value})) != made(base)}
    assert moving == other.keys() & set(of_the_protocol(base))


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"--datasets=.*none\.toml: no such file"):
        dataset_configs(["a"], tmp_path / "none.toml")


def test_seeds_and_command():
    assert parse_seeds(["0", "12"]) == (0, 12)
    for words in ([], ["1", "1"], ["0", "00"], ["x"], ["1", "x"], ["-1"]):
        with pytest.raises(InputError, match="whole numbers, comma-separated, each once"):
            parse_seeds(words)
    assert command_line(["/x/experiments/compare.py", "--a=b c"]) == "python -m experiments.compare '--a=b c'"


def test_a_command_names_the_home_folder_and_no_other(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--a=/home/me/x y", "/home/me/x", "--a=/mnt/home/me/x", "--a=b:/home/me/x", "--a=/home/me2/x"]
    told = command_line(["/x/experiments/sweep.py", *words])
    assert told.partition("sweep ")[2] == "'--a=~/x y' ~/x --a=/mnt/home/me/x --a=b:~/x --a=/home/me2/x"
    monkeypatch.setenv("HOME", "/")
    assert command_line(["/x/experiments/sweep.py", "--a=/b//c"]).endswith("--a=/b//c")


def study(*argv):
    values = flags.FlagValues()
    define_study_flags(flag_values=values)
    values(["compare", *argv])
    return study_from_flags(values)


def test_common_flags(toml):
    found = study(f"--datasets={toml}", "--dataset=beauty, ml-temporal", "--workdir=w", "--seeds=3,1", "--dropout=0.2")
    assert list(found.datasets) == ["beauty", "ml-temporal"]
    assert (found.seeds, found.parallel, found.results, found.given) == ((3, 1), 1, None, {"dropout": 0.2})


def test_a_field_that_a_study_sets_is_refused_in_a_table(toml):
    toml.write_text(TOML + "\nitem_encoder = 'svd'\n")  # of the last table, movielens_100k
    names = f"--datasets={toml}", "--workdir=w"
    refuse_set_by_study(study(*names, "--dataset=ml-temporal"), ["item_encoder"])
    with pytest.raises(InputError, match="data set movielens_100k: this study sets item_encoder itself, run by run"):
        refuse_set_by_study(study(*names, "--dataset=ml-temporal,movielens_100k"), ["item_encoder"])


def test_a_file_of_data_sets_alone_means_all_of_them(toml):
    assert list(study(f"--datasets={toml}", "--workdir=w").datasets) == list(read_datasets(toml))
    assert list(study("--workdir=w").datasets) == ["movielens_100k"]


def test_a_folder_of_another_experiment(tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text('{"command": "python -m experiments.collapse --seeds=0"}')
    monkeypatch.setattr("sys.argv", ["experiments/longtail.py"])
    with pytest.raises(
        InputError, match=r"holds the tables of experiments\.collapse; take another folder for .*longtail"
    ):
        study(f"--workdir={tmp_path}")
    monkeypatch.setattr("sys.argv", ["experiments/collapse.py"])
    assert study(f"--workdir={tmp_path}").workdir == tmp_path


def test_runs_and_studies_do_not_share_a_folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run holds a training run; take another folder for experiments\.longtail"):
        refuse_another_study(tmp_path / "run", "python -m experiments.longtail --seeds=1")
    with contextlib.suppress(KeyboardInterrupt), claimed(tmp_path / "w", "python -m experiments.collapse --seeds=0"):
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="w is the folder of a study"):
        refuse_other_folder(tmp_path / "w")


def test_a_folder_that_another_experiment_has_begun(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), claimed(tmp_path / "w", "python -m experiments.collapse --seeds=0"):
        raise KeyboardInterrupt
    with pytest.raises(
        InputError, match=r"holds the runs of experiments\.collapse; take another folder for .*longtail"
    ):
        refuse_another_study(tmp_path / "w", "python -m experiments.longtail --seeds=1")
    refuse_another_study(tmp_path / "w", "python -m experiments.collapse --seeds=1")
    with claimed(tmp_path / "none", ""):
        pass
    assert not (tmp_path / "none").exists(), "a call from Python names no experiment"


def test_a_folder_is_free_again_where_nothing_could_run(tmp_path):
    command = "python -m experiments.collapse --seeds=0"
    with pytest.raises(InputError, match="no such file"), claimed(tmp_path / "w", command):
        raise InputError("x.tsv: no such file")
    assert not (tmp_path / "w").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; name a folder"), claimed(tmp_path / "file", command):
        pytest.fail("begun")
    # A run that has got somewhere keeps it.
    (tmp_path / "w" / "runs" / "one" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="no such file"), claimed(tmp_path / "w", command):
        raise InputError("x.tsv: no such file")
    assert (tmp_path / "w" / "study.json").exists()


def test_efficiency_leaves_the_folder_of_another_experiment_alone(tmp_path, run_command):
    held = '{"command": "python -m experiments.compare", "tables": []}'
    (tmp_path / "result.json").write_text(held)
    done = run_command("efficiency", {"workdir": tmp_path, "item_encoders": "id"})
    assert done.returncode == 2
    assert "holds the tables of experiments.compare; take another folder for experiments.efficiency." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--workdir=DIR"),
        (["--workdir=w", "--seed=3"], "give --seeds=0,1,2 instead of --seed"),
        (["--workdir=w", "--evaluate=valid"], "sets --evaluate itself"),
        (["--workdir=w", "--jobs=0"], "--jobs must be at least 1"),
        (["--workdir=w", "--results=results"], "--results=results: name a Markdown file"),
        (["--workdir=w", "--results=R.md", "--section=a b"], "--section=a b: take letters, digits, - and _"),
        (["--workdir=w", "--section=a"], "--section=a names a section of --results; give both"),
        (["--workdir=w", "--results=none/RESULTS.md"], "--results=none/RESULTS.md: the folder none does not exist"),
        (["--workdir=w", "--dataset=movielens"], "Did you mean 'movielens_100k'"),
    ],
)
def test_bad_common_flags(argv, message):
    with pytest.raises(InputError, match=message):
        study(*argv)
