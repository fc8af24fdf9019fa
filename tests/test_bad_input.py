"""Bad input, through the whole command: one message, the right exit status, nothing left that binds the next run."""

import dataclasses
import json
import logging
import os
import resource
import shutil
import subprocess
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, command, without_report

from spectran_jax.config import Config, TrainingConfig, fields
from spectran_jax.errors import InputError, exit_with_message
from spectran_jax.flags import _meant
from spectran_jax.training import partitioning
from spectran_jax.training.run import train_and_report
from spectran_jax.training.workdir import locked

UNTRAINED = {".lock", "config.json", "checkpoints"}
"""What a command that failed before it trained may leave in its work directory."""
FULL = 16 * 1024
"""A limit on the bytes of a file stands in for a full disk: above config.json and the log, below data and states."""


@pytest.fixture
def refused(capsys):
    """Runs a configuration that must be refused; returns its one line on stderr."""

    def call(flags: dict, workdir: Path | None, status: int = 2) -> str:
        with pytest.raises(SystemExit) as caught:
            exit_with_message(lambda: train_and_report(Config().replace(**flags), workdir))
        assert caught.value.code == status
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        if workdir is not None and workdir.is_dir():
            assert {path.name for path in workdir.iterdir()} <= UNTRAINED
            assert not [path for path in (workdir / "checkpoints").rglob("*") if path.is_file()]
        return message

    return call


def assert_fails(done, status: int, *words: str) -> None:
    """The same for a finished process."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for word in words:
        assert word in done.stderr


@dataclasses.dataclass
class Bad:
    """What is wrong with one input: its new content, the flags that change, and what the message must say."""

    words: tuple[str, ...]
    flags: dict = dataclasses.field(default_factory=dict)
    interactions: Callable[[list[str]], list[str]] | None = None
    items: Callable[[list[str]], list[str]] | None = None
    embeddings: Callable[[np.ndarray], np.ndarray] | None = None
    encoding: str = "utf-8"


def replace(old: str, new: str, *lines: int) -> Callable[[list[str]], list[str]]:
    """Changes text in some lines, counted from 1; in all where none is named."""
    return lambda text: [x.replace(old, new) if not lines or n in lines else x for n, x in enumerate(text, 1)]


def cell(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix = matrix.copy()
        matrix[row, 2] = value
        return matrix

    return change


def first_of_each_user(count: int) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        seen: dict[str, int] = {}
        kept = lines[:1]
        for line in lines[1:]:
            user = line.split("\t")[0]
            seen[user] = seen.get(user, 0) + 1
            if seen[user] <= count:
                kept.append(line)
        return kept

    return change


def without_text(lines: list[str]) -> list[str]:
    return [json.dumps({"item_id": json.loads(line)["item_id"]}) for line in lines]


BAD = {
    # Interactions.
    "interactions missing": Bad(("none.tsv: no such file",), {"interactions": "none.tsv"}),
    "interactions not named": Bad(("--dataset=files needs --interactions=FILE",), {"interactions": ""}),
    "interactions of unknown kind": Bad(("unknown kind of file '.npy'", ".tsv"), {"interactions": "{embeddings}"}),
    "interactions empty": Bad(("interactions.tsv: is empty",), interactions=lambda lines: []),
    "interactions without rows": Bad(
        ("interactions.tsv: has a header but no rows",), interactions=lambda lines: lines[:1]
    ),
    "column missing": Bad(
        ("interactions.tsv: no column item_id; columns found: user_id, item, timestamp",),
        interactions=replace("item_id", "item", 1),
    ),
    "another separator": Bad(
        ("found: user_id;item_id;timestamp. It looks separated by ';'; columns of a .tsv file are separated by tabs.",),
        interactions=replace("\t", ";"),
    ),
    "files exchanged": Bad(
        ("items.jsonl: no column user_id; columns found: item_id, title", "looks like a file for --items; are two"),
        {"interactions": "{items}", "items": "{interactions}"},
    ),
    "nothing to order by": Bad(
        ("no column timestamp or position", "columns found: user_id, item_id, when"),
        interactions=replace("timestamp", "when", 1),
    ),
    "line too short": Bad(
        ("interactions.tsv, line 7: too few columns, 2 where the header has 3",),
        interactions=lambda lines: [*lines[:6], "\t".join(lines[6].split("\t")[:2]), *lines[7:]],
    ),
    "timestamp no number": Bad(
        ("line 4: timestamp 'soon' is no time; give Unix seconds, or ISO 8601 like 2026-01-31T12:00:00.",),
        interactions=lambda lines: [*lines[:3], "1000\titem-1\tsoon", *lines[4:]],
    ),
    "interactions not UTF-8": Bad(
        ("interactions.tsv, line 3:", "not valid UTF-8"), interactions=replace("item-", "ïtem-", 3), encoding="latin-1"
    ),
    "all histories too short": Bad(
        ("interactions.tsv: all 60 users have fewer than 3 interactions",), interactions=first_of_each_user(2)
    ),
    "nothing to learn from": Bad(("No user has two training items",), interactions=first_of_each_user(3)),
    "unknown items": Bad(
        ("5 interactions of 4 items that", "('new-1', 'new-2', 'new-3', ...)", "items.jsonl", "--unknown_items=drop"),
        interactions=lambda lines: [*lines, *(f"1000\tnew-{i}\t5" for i in (1, 2, 3, 4, 2))],
    ),
    "temporal split without times": Bad(
        ("interactions.tsv: --split=temporal needs a timestamp column",),
        {"split": "temporal"},
        interactions=replace("timestamp", "position", 1),
    ),
    "temporal split the wrong way round": Bad(
        ("--valid_time below --test_time",), {"split": "temporal", "valid_time": 2e6, "test_time": 1e6}
    ),
    "times of a split that is not temporal": Bad(
        ("--test_time cuts a temporal split", "leave_one_out"), {"test_time": 1e6}
    ),
    "resting moments with a dense loss": Bad(
        ("--table_adam=lazy is for Adam on sparse rows", "a sampled loss"), {"table_adam": "lazy", "loss": "softmax"}
    ),
    "nothing to start from": Bad(
        ("--id_scale=0 starts all item vectors at zero",), {"item_encoder": "id", "id_scale": 0}
    ),
    "nothing of text and IDs": Bad(("--id_scale=0 starts all",), {"id_scale": 0, "semantic_scale": 0}),
    "nothing of an item": Bad(("--semantic_scale=0 with --fusion=none",), {"fusion": "none", "semantic_scale": 0}),
    "fusion of an encoder without two parts": Bad(
        ("--fusion=none joins", "--item_encoder=llminit has no such two"), {"item_encoder": "llminit", "fusion": "none"}
    ),
    "temporal split after the end": Bad(("leaves nothing for test",), {"split": "temporal", "test_time": 9e9}),
    # Items.
    "items missing": Bad(("none.jsonl: no such file",), {"items": "none.jsonl"}),
    "items empty": Bad(("items.jsonl: is empty",), items=lambda lines: []),
    "item without id": Bad(
        ("items.jsonl, line 2: no item_id; columns found: id, title. Rename 'id' to 'item_id'?",),
        items=replace("item_id", "id", 2),
    ),
    "items no JSON": Bad(("items.jsonl, line 5: malformed JSON",), items=replace("}", "", 5)),
    "duplicate items": Bad(
        ("2 duplicate item ids, the first 'item-3' in lines 4 and 41",),
        items=lambda lines: [*lines, lines[3], lines[0]],
    ),
    "items not UTF-8": Bad(
        ("items.jsonl, line 8:", "not valid UTF-8"), items=replace("Thing", "Thïng", 8), encoding="latin-1"
    ),
    "no text": Bad(("None of the 40 items has text", "--item_encoder=id"), {"embeddings": ""}, items=without_text),
    "unknown text column": Bad(("names 'titel'", "columns found: title"), {"text_columns": "titel"}),
    # Embeddings.
    "embeddings missing": Bad(("file not found", "none.npy"), {"embeddings": "none.npy"}),
    "embeddings no array": Bad(("can't be read as a .npy file",), {"embeddings": "{items}"}),
    "too few rows": Bad(
        ("embeddings.npy: text embeddings have 39 rows, but", "items.jsonl has 40 items"), embeddings=lambda x: x[1:]
    ),
    "too many rows beside a k-core": Bad(
        ("embeddings.npy: text embeddings have 41 rows, but", "items.jsonl has 40 items"),
        {"k_core": 2},
        embeddings=lambda x: np.concatenate([x, x[:1]]),
    ),
    "NaN": Bad(("1 of 40 items have NaN or inf", "'item-5'"), embeddings=cell(5, np.nan)),
    "inf": Bad(("1 of 40 items have NaN or inf", "'item-0'"), embeddings=cell(0, -np.inf)),
    "a vector": Bad(("must have shape [items, dimension]", "got (40,)"), embeddings=lambda x: x[:, 0]),
    "integers": Bad(("got dtype int64; np.save it with .astype('float32').",), embeddings=lambda x: x.astype(np.int64)),
    "pickled objects": Bad(("it holds pickled Python objects",), embeddings=lambda x: x.astype(object)),
    "all rows zero": Bad(("all 40 rows are zero",), embeddings=np.zeros_like),
    "all rows alike": Bad(("all items with text have the same embedding",), embeddings=np.ones_like),
    # What does not fit together.
    "rank below d, spectran": Bad(
        (
            "rank 24, below --dimension=32 of --item_encoder=spectran",
            "a --dimension of at most 24 that --heads divides, or --pad_rank",
        ),
        {"dimension": 32},
    ),
    "rank below d, svd": Bad(
        (
            "rank 10, below --dimension=16 of --item_encoder=svd",
            "a --dimension of at most 10 that --heads divides, or --pad_rank",
        ),
        {"item_encoder": "svd", "max_rank": 10},
    ),
    "heads": Bad(("--dimension=16 is not divisible by --heads=3; take one of 1, 2, 4, 8, 16 heads",), {"heads": 3}),
    "mesh": Bad(("--mesh=data:64 asks for 64 devices, there are",), {"mesh": "data:64"}),
    "negatives": Bad(
        ("must lie between 1 and the number of items in training, 38", "--negatives=38 or fewer, or --loss=softmax"),
        {"negatives": 39},
    ),
    "dead attention": Bad(("leaves nothing of the text",), {"attention": "none", "position_encoding": False}),
    "value out of range": Bad(("--dropout must be at least 0 and below 1, got 1.0",), {"dropout": 1.0}),
    # Names.
    "unknown encoder": Bad(
        (
            "Unknown item encoder 'spektran'. Known: ",
            "Did you mean 'spectran'?",
        ),
        {"item_encoder": "spektran"},
    ),
    "unknown backbone": Bad(("Unknown backbone 'sasrek'", "Did you mean 'sasrec'?"), {"backbone": "sasrek"}),
    "unknown loss": Bad(
        (
            "Unknown loss 'infonse'. Known: ",
            "Did you mean 'infonce'?",
        ),
        {"loss": "infonse"},
    ),
    "micro-batches without an exchange": Bad(
        ("--micro_batches=2", "--item_encoder=rlmrec has none"),
        {"item_encoder": "rlmrec", "micro_batches": 2},
    ),
    "unknown data set": Bad(
        ("Unknown data set 'movielens'. Known: files, movielens_100k. Did you mean 'movielens_100k'?",),
        {"dataset": "movielens", "interactions": "", "items": ""},
    ),
    "unknown text encoder": Bad(
        ("Unknown text encoder 'wordlama'. Known: sentence-transformers, wordllama. Did you mean 'wordllama'?",),
        {"text_encoder": "wordlama", "embeddings": ""},
    ),
}


def spoil(bad: Bad, flags: dict, folder: Path) -> dict:
    """Flags of a run on the tiny data set with one input made bad; only the files that change are written."""
    flags = dict(flags)
    for name in ("interactions", "items"):
        change = getattr(bad, name)
        if change is not None:
            path = folder / Path(flags[name]).name
            lines = change(Path(flags[name]).read_text().splitlines())
            path.write_text("".join(line + "\n" for line in lines), encoding=bad.encoding)
            flags[name] = str(path)
    if bad.embeddings is not None:
        matrix = bad.embeddings(np.load(flags["embeddings"]))
        np.save(folder / "embeddings.npy", matrix, allow_pickle=True)
        flags["embeddings"] = str(folder / "embeddings.npy")
    for name, value in bad.flags.items():
        if isinstance(value, str) and value.startswith("{"):
            value = flags[value.strip("{}")]
        elif isinstance(value, str) and value.startswith("none."):
            value = str(folder / value)
        flags[name] = value
    return flags


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, refused, tiny_flags, tmp_path):
    message = refused(spoil(BAD[name], tiny_flags, tmp_path), tmp_path / "run")
    for word in BAD[name].words:
        assert word in message


def test_no_work_directory(refused, tiny_flags):
    assert "--workdir=DIR" in refused(tiny_flags, None)


def test_folders_that_can_not_be_written(refused, tiny_flags, tmp_path):
    """Below a file, where not even root can write."""
    (tmp_path / "file").write_text("")
    assert "--workdir=" in (message := refused(tiny_flags, tmp_path / "file" / "run"))
    assert "can't be used: Not a directory" in message
    for place in ("file", "file/cache"):
        message = refused({**tiny_flags, "data_dir": str(tmp_path / place)}, tmp_path / "run")
        assert "choose another folder with --data_dir" in message
        assert str(tmp_path / place) in message


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
@pytest.mark.parametrize(("size", "near"), [(18, "16 or 20"), (3, "take 4")])
def test_batches_that_devices_can_not_share(name, size, near):
    mesh = types.SimpleNamespace(shape={"data": 4, "model": 2}, size=8)
    config = dataclasses.replace(TrainingConfig(), **{name: size})
    with pytest.raises(InputError, match=f"--{name}={size} is not divisible by the 4 devices.*{near}"):
        partitioning.check_batches(mesh, config)
    partitioning.check_batches(mesh, TrainingConfig())


def test_micro_batches_without_a_history():
    mesh = types.SimpleNamespace(shape={"data": 4, "model": 2}, size=8)
    config = dataclasses.replace(TrainingConfig(), batch_size=16, micro_batches=5)
    with pytest.raises(InputError, match=r"--micro_batches=5 cuts the 4 of --batch_size=16 .* take at most 4"):
        partitioning.check_batches(mesh, config)
    partitioning.check_batches(mesh, dataclasses.replace(config, micro_batches=4))


@pytest.mark.usefixtures("no_report")
def test_a_corrected_command_works_in_the_same_folder(refused, tiny_flags, tmp_path, caplog):
    """After failures at every stage, the last of them rank < d: --pad_rank mends it. What is odd is told."""
    workdir = tmp_path / "run"
    for name in ("value out of range", "line too short", "NaN", "negatives"):
        refused(spoil(BAD[name], tiny_flags, tmp_path), workdir)
    textless = tmp_path / "textless.npy"
    matrix = np.load(tiny_flags["embeddings"])
    matrix[[3, 11]] = 0
    np.save(textless, matrix)
    interactions = tmp_path / "short.tsv"
    extra = "9001\titem-1\t5\n9001\titem-2\t6\n9002\titem-1\t5\n1000\tnew\t5\n1000\tnewer\t5\n"
    interactions.write_text(Path(tiny_flags["interactions"]).read_text() + extra)
    flags = {
        **tiny_flags,
        "embeddings": str(textless),
        "interactions": str(interactions),
        "dimension": 32,
        "unknown_items": "drop",
        "epochs": 1,
    }
    assert "--pad_rank" in refused(flags, workdir)
    with caplog.at_level(logging.WARNING):
        metrics = train_and_report(Config().replace(**flags, pad_rank=True), workdir)
    assert "2 of 40 items have no text: their semantic part is zero." in caplog.text
    assert metrics["dataset"]["items_without_text"] == 2
    assert metrics["dataset"]["dropped"] == {"unknown_items": 2, "users_too_short": 2}
    assert metrics["dataset"]["users"] == 60
    assert metrics["dataset"]["spectral_rank"] == 24
    assert json.loads((workdir / "metrics.json").read_text()) == metrics


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    """The work directory of a short run."""
    workdir = tmp_path_factory.mktemp("trained")
    with without_report():
        train_and_report(tiny_config.replace(epochs=1), workdir)
    return workdir


# From here on the real command, where only that will do.


def start(arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **env}
    return subprocess.run(arguments, cwd=REPO, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_a_folder_of_another_configuration(trained, tiny_flags, run_command):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.name != ".lock"}
    done = run_command("train", {**tiny_flags, "epochs": 1, "workdir": trained, "seed": 3, "dropout": 0.25})
    assert_fails(done, 2, "another configuration (dropout: 0.25 != 0.3; seed: 3 != 0", "Take another folder")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.name != ".lock"} == before


def test_a_folder_that_another_process_is_using(tiny_flags, tmp_path, run_command):
    with locked(tmp_path):
        done = run_command("train", {**tiny_flags, "workdir": tmp_path})
    assert_fails(done, 2, f"--workdir={tmp_path} is in use by another live process (pid {os.getpid()})")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_batch_that_four_devices_can_not_share(tiny_flags, tmp_path, run_command):
    env = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"}
    done = run_command("train", {**tiny_flags, "workdir": tmp_path, "batch_size": 18}, env=env)
    assert_fails(done, 2, "--batch_size=18 is not divisible by the 4 devices of the mesh's data axis; take 16 or 20.")
    assert not (tmp_path / "metrics.json").exists()


def test_a_full_disk_while_data_are_prepared(refused, tiny_flags, tmp_path):
    cache = tmp_path / "cache"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
    try:
        message = refused({**tiny_flags, "data_dir": str(cache)}, tmp_path / "run", status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{cache / 'prepared'} can't be written (File too large); make room" in message
    assert not list((cache / "prepared").iterdir())


@pytest.mark.usefixtures("no_report")
def test_a_full_disk_keeps_the_last_checkpoint(trained, tiny_flags, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (step,) = (int(path.name) for path in (workdir / "checkpoints" / "latest").iterdir())
    flags = {**tiny_flags, "epochs": 2}
    command_line = command("train", {**flags, "workdir": workdir})
    limited = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({FULL}, {FULL})); "
        "runpy.run_module('experiments.train', run_name='__main__', alter_sys=True)"
    )
    # Compiled modules would be cut at the limit, too, and stay so.
    full = start([command_line[0], "-c", limited, *command_line[2:]], PYTHONDONTWRITEBYTECODE="1")
    assert_fails(
        full, 1, f"Could not write a checkpoint to {workdir}", "File too large. Free some space and start again"
    )
    assert f"the checkpoint of step {step} is kept" in full.stderr
    metrics = train_and_report(Config().replace(**flags), workdir)
    assert f"Resuming from step {step}." in capsys.readouterr().err
    assert metrics["train"]["steps"] == 2 * step


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", ["learning_rate"]),
        ("encoder", ["item_encoder", "text_encoder"]),
        ("semantic_scal", ["semantic_scale"]),
        ("zzz", []),
    ],
)
def test_what_an_unknown_flag_may_mean(name, meant):
    assert _meant(name, ["epochs", "learning_rate", "item_encoder", "text_encoder", "semantic_scale"]) == meant


@pytest.mark.parametrize(
    ("module", "flags", "words"),
    [
        ("train", {"epoch": 3}, "Unknown flag --epoch. Did you mean --epochs?"),
        ("train", {"zzz": 3}, "Unknown flag --zzz. See --help."),
        ("train", {"epochs": "abc"}, "--epochs=abc"),
        ("train", {"split": "randomly"}, "leave_one_out|temporal"),
        ("recommend", {"untill": "now"}, "Unknown flag --untill. Did you mean --until?"),
        ("sweep", {"trials": 0}, "--trials=0"),
        ("sweep", {"search": "dropout=0.1:0.3", "dropout": 0.2}, "--search and --dropout both set dropout"),
        ("efficiency", {"item_encoder": "id"}, "--item_encoders=NAME,NAME"),
    ],
)
def test_bad_flags(module, flags, words, run_command, tmp_path):
    done = run_command(module, {**flags, "workdir": tmp_path / "run"})
    assert_fails(done, 2, words)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_not_utf8():
    done = start([*command("train", {}), b"--workdir=runs/caf\xe9"])
    assert_fails(done, 2, r"'--workdir=runs/caf\udce9' is not UTF-8; name files and folders in UTF-8")


def test_a_stray_word():
    assert_fails(start([*command("train", {}), "epochs", "3"]), 2, "Unexpected argument 'epochs'", "--name=value")


@pytest.mark.parametrize("module", ["train", "sweep", "compare", "recommend"])
def test_help_explains_every_flag_without_starting_jax(module):
    done = start([*command(module, {}), "--help"], PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    own = {
        "train": ["workdir", "config"],
        "sweep": ["search", "trials", "seeds", "jobs", "workdir", "datasets", "results", "config"],
        "compare": ["item_encoders", "backbones", "budget", "target", "seeds", "jobs", "workdir", "config"],
        "recommend": ["workdir", "k", "histories", "until", "filter_seen", "output"],
    }
    names = own[module] + ([] if module == "recommend" else [field.name for _, field in fields()])
    lines = done.stdout.splitlines()
    for name in names:
        (at,) = (n for n, line in enumerate(lines) if line.split("=")[0] in (f"  --{name}", f"  --[no]{name}"))
        assert lines[at + 1].startswith("      "), f"--{name} is not explained"
    assert f"python -m experiments.{module} " in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "absl" in imported
    assert not imported & {"jax", "numpy", "flax", "pyarrow"}
