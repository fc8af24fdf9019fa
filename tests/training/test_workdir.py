"""Work directories: one owner, one configuration, whole files; and metrics.jsonl after a crash."""

import contextlib
import errno
import fcntl
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.errors import InputError, RunError
from spectran_jax.training import loop
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.engine import Record
from spectran_jax.training.run import finished, train_and_report
from spectran_jax.training.setup import prepare
from spectran_jax.training.tensorboard import Summaries
from spectran_jax.training.workdir import MetricsLog, is_locked, locked, refuse_other_files, refuse_other_run
from spectran_jax.writing import write_arrays, write_json, write_text


def test_a_second_process_is_refused_by_name_of_the_first(tmp_path):
    held = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"in use by another live process .pid {other.pid}"), locked(tmp_path):
        pass
    other.communicate("\n")
    with locked(tmp_path):
        pass  # free again once the other is gone


def test_a_lock_that_comes_free_is_waited_for(tmp_path, monkeypatch):
    holder = (tmp_path / ".lock").open("a+")
    fcntl.flock(holder, fcntl.LOCK_EX)
    waits = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds) or len(waits) < 3 or holder.close())
    with locked(tmp_path, patience=60):
        pass
    assert len(waits) == 3


def test_a_lock_that_is_not_kept_goes_and_another_process_s_stays(tmp_path):
    with locked(tmp_path, keep=False):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()
    folder = tmp_path / "new"
    with locked(folder, keep=False):
        (folder / ".lock").unlink()
        (folder / ".lock").write_text("of one that came between")
    assert (folder / ".lock").read_text() == "of one that came between"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"can't be locked .Function not implemented.: mount"), locked(tmp_path):
        pass
    assert not is_locked(tmp_path)


def test_a_work_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be used"), locked(tmp_path / "file" / "below"):
        pass


def test_a_work_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file; name a folder"), locked(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="can't be used"), locked(Path("/proc/run")):
        pass


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(InputError, match="refused"), locked(tmp_path / "runs" / "mine"):
        raise InputError("refused")
    assert not list(tmp_path.iterdir())
    (tmp_path / "theirs").mkdir()
    with locked(tmp_path / "theirs"):
        pass
    with locked(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "mine" / "config.json").touch()
    assert sorted(path.name for path in (tmp_path / "runs" / "mine").iterdir()) == [".lock", "config.json"]
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == [".lock"]


def test_who_waits_for_a_lock_that_goes_takes_the_next_one(tmp_path, monkeypatch):
    folder, waits = tmp_path / "run", []
    with contextlib.ExitStack() as other:
        other.enter_context(locked(folder))

        def sleep(seconds):
            waits.append(seconds)
            other.close()  # refused: it takes its folder away

        monkeypatch.setattr(time, "sleep", sleep)
        with locked(folder, patience=60):
            assert waits
            assert is_locked(folder)
    assert not folder.exists()


def test_a_record_of_a_later_version_is_refused_by_name(tmp_path):
    saved = {"data": {}, "best_step": 3, "momentum": 1}
    with pytest.raises(InputError, match=r"run of another version .* whose record differs \(momentum\); go on with"):
        Record.from_checkpoint(saved, tmp_path)
    del saved["momentum"]
    assert Record.from_checkpoint(saved, tmp_path) == Record(data={}, best_step=3)


def test_log_drops_what_is_after_the_step_and_what_is_damaged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"kind": "train"}\n{"step": 1}\n[1]\n{"step": "1", "kind": "train"}\n\xff\n\0\0\n'
    path.write_bytes(b'{"step": 1, "kind": "train"}\n' + damaged + b'{"step": 2, "kind": "train"}\n{"step": 3, "ki')
    log = MetricsLog(path, resume_step=1)
    log.write({"step": 2, "kind": "train"})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_files_are_whole_or_not_there(tmp_path):
    write_text(tmp_path / "a", "one")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert (tmp_path / "a").read_text() == "one"
    with pytest.raises(RunError, match="Could not write"):
        write_text(tmp_path / "none" / "a", "one")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_resumable_fields_may_change(tmp_path):
    write_json(tmp_path / "config.json", Config().to_dict())
    refuse_other_run(tmp_path, Config().replace(seed=1))  # no run yet
    write_json(tmp_path / "metrics.json", {})
    refuse_other_run(tmp_path, Config().replace(epochs=3))
    refuse_other_run(tmp_path, Config().replace(mesh="data:2,model:4", parallelism="pmap"))
    with pytest.raises(InputError, match=r"another configuration \(seed: 1 != 0; yours != its\)"):
        refuse_other_run(tmp_path, Config().replace(seed=1))


@pytest.mark.parametrize("values", [{"epochs": 3}, {"max_steps": 3}])
def test_a_cosine_run_of_another_length_is_another_run(tmp_path, values):
    config = Config().replace(schedule="cosine")
    write_json(tmp_path / "config.json", config.to_dict())
    write_json(tmp_path / "metrics.json", {})
    refuse_other_run(tmp_path, config.replace(patience=3))
    with pytest.raises(InputError, match=f"another configuration .{next(iter(values))}: 3 != "):
        refuse_other_run(tmp_path, config.replace(**values))


def test_files_by_another_name_are_compared_by_content(tmp_path):
    config = Config().replace(dataset="files", interactions="a.tsv", items="i.jsonl", embeddings="e.npy")
    moved = config.replace(interactions="/x/a.tsv", embeddings="../e.npy")
    write_json(tmp_path / "config.json", config.to_dict())
    refuse_other_files(tmp_path, moved, "others")  # no run yet
    write_json(tmp_path / "metrics.json", {"config": config.to_dict(), "inputs": "i"})
    refuse_other_run(tmp_path, moved)
    refuse_other_files(tmp_path, moved, "i")
    refuse_other_files(tmp_path, config, "others")  # the same name: for the checkpoint to refuse
    message = r"other content, or another ending \(interactions: '/x/a.tsv' != 'a.tsv'; embeddings: .*its\)"
    with pytest.raises(InputError, match=message):
        refuse_other_files(tmp_path, moved, "others")
    with pytest.raises(InputError, match=r"another configuration \(embeddings: '' != 'e.npy'"):
        refuse_other_run(tmp_path, moved.replace(embeddings=""))
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoints" / "best" / "3" / "state").mkdir(parents=True)  # nothing to go on from: it begins anew
    refuse_other_files(tmp_path, moved, "i")


def test_a_finished_run_counts_whatever_changes_no_number(tmp_path):
    write_json(tmp_path / "metrics.json", {"config": Config().to_dict(), "inputs": "i", "valid": {}, "test": {}})
    columns = [f"{split}_{name}" for split in ("valid", "test") for name in ("user", "item", "rank", "history")]
    write_arrays(tmp_path / "ranks.npz", {name: np.arange(2) for name in (*columns, "item_counts")})
    for values, inputs, counts in (
        ({"data_dir": "x", "mesh": "data:1", "eval_batch_size": 7}, "i", True),
        ({"epochs": 7}, "i", False),
        ({}, "others", False),
    ):
        setup = types.SimpleNamespace(config=Config().replace(**values), inputs_digest=inputs)
        assert (finished(tmp_path, setup) is not None) == counts


def test_an_export_is_no_folder_of_a_run(tiny_config, tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(InputError, match="holds an export, which the next one replaces; take another folder"):
        train_and_report(tiny_config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]  # a lock would be in the way of the next


def test_tensorboard_names_its_extra_or_gets_the_scalars(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "clu", None)
    with pytest.raises(InputError, match=r"pip install '\.\[tensorboard\]'"):
        loop.start(prepare(tiny_config.replace(tensorboard=True)), tmp_path, Cluster())
    assert not list(tmp_path.iterdir())

    written = []
    writer = types.SimpleNamespace(
        write_scalars=lambda step, scalars: written.append((step, scalars)), flush=lambda: None, close=lambda: None
    )
    clu = types.SimpleNamespace(metric_writers=types.SimpleNamespace(SummaryWriter=lambda folder: writer))
    monkeypatch.setitem(sys.modules, "clu", clu)
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, also=Summaries(tmp_path))
    log.write({"kind": "valid", "step": 4, "ndcg@20": 0.5, "taylor": [1.0, 0.0]})
    log.close()
    assert written == [(4, {"valid/ndcg@20": 0.5})]
    assert np.isfinite(written[0][1]["valid/ndcg@20"])
