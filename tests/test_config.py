"""The configuration: flags, dataclasses, config.json and `--help` are one thing."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from absl import flags

from spectran_jax import adapter, fusion
from spectran_jax import flags as command_line
from spectran_jax.bounds import Bounds
from spectran_jax.config import Config, fields
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.flags import config_from_flags, define_config_flags, define_path, help_text, read_config
from spectran_jax.negatives import SAMPLERS
from spectran_jax.spectral import routes, storage


def parsed(*arguments: str) -> Config:
    values = flags.FlagValues()
    define_config_flags(values)
    values(["command", *arguments])
    return config_from_flags(values)


def test_flags_without_arguments_are_the_dataclasses():
    assert parsed() == Config()


def test_every_field_is_a_flag_with_its_default_and_help():
    values = flags.FlagValues()
    define_config_flags(values)
    for _, field in fields():
        assert values[field.name].default == field.default
        assert field.metadata["help"] in values[field.name].help


def test_field_names_are_unique_over_sections():
    names = [field.name for _, field in fields()]
    assert len(names) == len(set(names))


def test_every_field_can_be_set_by_its_flag():
    for _, field in fields():
        kind, choices = type(field.default), field.metadata["choices"]
        value = next((c for c in choices if c != field.default), None)
        if value is None:
            value = (not field.default) if kind is bool else kind(3) if kind is not str else "other"
        if choices and len(choices) == 1:
            continue
        config = parsed(f"--{field.name}={value}")
        assert config.flat()[field.name] == value


def test_choices_are_what_the_modules_know():
    choices = {field.name: set(field.metadata["choices"]) for _, field in fields()}
    assert choices["attention"] == set(adapter.ATTENTIONS)
    assert choices["spectral_norm"] == set(adapter.NORMS)
    assert choices["fusion"] == {*fusion.FUSIONS, "none"}
    assert choices["decomposition"] == set(routes.METHODS)
    assert choices["spectrum_dtype"] == set(storage.DTYPES)
    assert choices["sampling"] == set(SAMPLERS)


def test_help_shows_every_flag():
    values = flags.FlagValues()
    define_config_flags(values)
    text = help_text("What it does.", values)
    for _, field in fields():
        assert f"--{field.name}" in text or f"--[no]{field.name}" in text


def test_help_leaves_out_what_libraries_define():
    values = flags.FlagValues()
    flags.DEFINE_boolean("theirs", False, "Of Orbax.", flag_values=values, module_name="orbax.checkpoint._src")
    flags.DEFINE_boolean("ours", False, "Ours.", flag_values=values)
    assert [name for name in ("ours", "theirs") if f"--[no]{name}" in help_text("What it does.", values)] == ["ours"]


def test_help_shows_every_default_that_is_something_and_choices_once():
    values = flags.FlagValues()
    define_config_flags(values)
    flags.DEFINE_integer("none", 0, "How many.", flag_values=values)
    text = " ".join(help_text("What it does.", values).split())
    assert "--none=INT How many. (default 0)" in text
    for _, field in fields():
        default = {"": "", "False": "", "True": "true"}.get(str(field.default), str(field.default))
        told = f"{field.metadata['help']} (default {default})" if default else field.metadata["help"]
        assert re.search(rf"--(\[no\])?{field.name}(=\S+)? {re.escape(told)}( |$)", text)


def test_config_file_round_trip_and_overrides(tmp_path):
    config = Config().replace(seed=7, dropout=0.15, dataset="files", packing=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert read_config(path) == config
    assert parsed(f"--config={path}") == config
    assert parsed(f"--config={path}", "--seed=8") == config.replace(seed=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable JSON configuration"),
        ("[]", "a configuration is a JSON object of sections, got list"),
        ('{"training": {"sed": 1}}', r"Unknown field in .*'sed'.*Did you mean 'seed'"),
        ('{"training": {"seed": "one"}}', r"training.seed must be int, got 'one'"),
        (
            '{"encoder": {"spectral_norm": true}}',
            r"encoder.spectral_norm must be one of orthonormal, rows, none, got True",
        ),
        ('{"dataset": {"name": 1}}', "unknown section 'dataset'; a configuration has data, text.*config.json"),
        ('{"training": 3}', "section 'training' must be an object"),
    ],
)
def test_bad_config_file(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(path)


def test_missing_config_file(tmp_path):
    with pytest.raises(InputError, match="no such configuration file"):
        read_config(tmp_path / "none.json")


def test_replace_refuses_unknown_names():
    with pytest.raises(InputError, match=r"Unknown configuration field 'learning_rat'.*'learning_rate'"):
        Config().replace(learning_rat=1.0)


def test_differences_name_the_fields_and_pass_over_resumable_ones():
    assert Config().differences(Config().replace(epochs=7, seed=1)) == ["seed: 0 != 1"]


def test_results_are_the_same_whatever_changes_no_number():
    config = Config()
    assert config.same_results(config.replace(data_dir="x", mesh="data:1", eval_batch_size=7, checkpoint_every=3))
    for values in ({"epochs": 7}, {"max_steps": 7}, {"patience": 7}, {"evaluate": "valid"}, {"seed": 1}):
        assert not config.same_results(config.replace(**values))
    assert config.replace(evaluate="valid").same_results(config)  # which has read the test set beside it


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.seed = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dimension": 0}, "--dimension must be at least 1, got 0"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1"),
        ({"mask_ratio": 1.0}, "--mask_ratio must be at least 0 and below 1, got 1.0"),
        ({"cold_scale": 0.0}, "--cold_scale must be between 0.01 and 100, got 0.0"),
        ({"cold_scale": 1.2, "loss": "bce"}, "--cold_scale=1.2 with --loss=bce: its scores are logits"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"rtol": 2.0}, "--rtol must be between 0 and 1"),
        ({"gbce_t": 1.5}, "--gbce_t must be between 0 and 1, got 1.5"),
        ({"popularity_power": 2.5}, "--popularity_power must be between 0 and 2, got 2.5"),
        ({"popularity_power": float("nan")}, "--popularity_power must be a finite number, got nan"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"mask_negatives": "histories"}, "--mask_negatives must be one of positive, history, got 'histories'"),
        ({"spectrum_memory": "disk", "table_updates": "dense"}, "--spectrum_memory=disk reads the rows that a step"),
        ({"spectrum_memory": "host", "parallelism": "pmap"}, "--spectrum_memory=host is for --parallelism=jit"),
        ({"micro_batches": 2, "parallelism": "pmap"}, "--micro_batches=2 cuts the .* --parallelism=pmap has none"),
        ({"micro_batches": 2, "loss": "softmax"}, "--micro_batches=2 cuts the .* --loss=softmax has none"),
        ({"micro_batches": 2, "table_updates": "dense"}, "--micro_batches=2 cuts the .* --table_updates=dense has"),
        ({"micro_batches": 2, "spectrum_memory": "host"}, "--micro_batches=2 cuts the .* --spectrum_memory=host has"),
        ({"decomposition": "randomized"}, "--decomposition=randomized .* --max_rank"),
        ({"spectrum_dtype": "float16"}, "--spectrum_dtype must be one of float32, bfloat16, int8, got 'float16'"),
        ({"split": "random"}, "--split must be one of leave_one_out, temporal, got 'random'"),
        ({"attention_live": 0.0}, "--attention_live must lie between 0 and 1"),
        ({"attention_energy": 0.0}, "--attention_energy must be above 0, got 0.0"),
        ({"dataset": "files"}, "--dataset=files needs --interactions=FILE"),
        ({"dataset": "files", "interactions": "a.tsv"}, "--dataset=files needs --items=FILE"),
        ({"items": "a.jsonl"}, "--items goes with --dataset=files"),
        ({"negatives": 0}, "--negatives must be at least 1"),
        ({"spectral_power": -6.0}, "--spectral_power must be at least 0, got -6.0"),
        ({"clip_norm": float("inf")}, "--clip_norm must be a finite number, got inf. 0 does not clip."),
        ({"test_time": float("nan")}, "--test_time must be a finite number, got nan."),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        check(Config().replace(**values))


def test_few_numbers_have_no_bounds():
    numbers = [field for _, field in fields() if type(field.default) in (int, float)]
    free = [field.name for field in numbers if field.metadata["bounds"] == Bounds()]
    assert free == ["valid_time", "test_time"]


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Bounds(low=1), [1, 9], [0, float("nan")], "be at least 1"),
        (Bounds(low=0, high=0.9), [0, 0.9], [-0.1, 1], "be between 0 and 0.9"),
        (Bounds(low=0, below=1), [0, 0.9], [-0.1, 1], "be at least 0 and below 1"),
        (Bounds(above=0, below=1), [0.5], [0, 1, float("nan")], "lie between 0 and 1"),
        (Bounds(above=0), [1e-9], [0], "be above 0"),
    ],
)
def test_bounds_hold_what_they_say(bounds, inside, outside, words):
    assert all(map(bounds.hold, inside))
    assert not any(map(bounds.hold, outside))
    assert str(bounds) == words


def test_defaults_pass_the_checks():
    check(Config())


@pytest.mark.parametrize(("given", "value"), [("~/a b", Path.home() / "a b"), ("a/~", Path("a/~")), ("", None)])
def test_flags_that_name_files_know_the_home_folder(given, value):
    values = flags.FlagValues()
    holder = define_path("output", "A file.", values)
    values(["program", f"--output={given}"])
    assert holder.value == value


def test_the_home_folder_of_nobody_is_told():
    values = flags.FlagValues()
    define_path("output", "A file.", values)
    for path, words in (("~nobody-here/x", "~nobody-here/x"), ("gs://bucket/x", "gs://bucket/x: this is an address")):
        with pytest.raises(flags.IllegalFlagValueError, match=words):
            values(["program", f"--output={path}"])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--epochs=ten", "--epochs=ten must be an integer."),
        ("--epochs=", "--epochs= must be an integer."),
        ("--dropout=0,1", "--dropout=0,1 must be a number."),
        ("--packing=maybe: not", "--packing=maybe: not must be true or false."),
        ("--nopacking=1", "--nopacking=1 does not take an argument"),
        ("--config=gs://a/b", "--config=gs://a/b: gs://a/b: this is an address and no path; "),
        ("--share=2", "--share=2 must be a number in the range [0.0, 0.9]."),
        ("--epochs", "Missing value for flag --epochs"),
        ("--epoch=3", "Unknown flag --epoch. Did you mean --epochs?"),
        ("train", "Unexpected argument 'train': flags are written --name=value. See --help."),
    ],
)
def test_what_is_no_flag_or_no_value_of_one_is_told_in_plain_words(argument, told):
    values = flags.FlagValues()
    define_config_flags(values)
    flags.DEFINE_float("share", 0.0, "", lower_bound=0.0, upper_bound=0.9, flag_values=values)
    with pytest.raises(InputError) as caught:
        command_line.parsed(["program", argument], values)
    assert str(caught.value).startswith(told)


def test_a_configuration_from_before_a_field_means_what_it_meant_then():
    values = Config().to_dict()
    assert Config.from_dict(values).backbone.prefixes == Config().backbone.prefixes != 1
    del values["backbone"]["prefixes"]
    assert Config.from_dict(values).backbone.prefixes == 1
    assert (
        Config.from_dict({"backbone": {"backbone": "bert4rec"}}).backbone
        == Config().replace(backbone="bert4rec").backbone
    )
