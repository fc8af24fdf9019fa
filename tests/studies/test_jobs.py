"""Jobs: processes of their own, each once; what stops an experiment stops them well, and it goes on from there."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.studies.board import Board
from spectran_jax.studies.children import HUGE_PAGES, core_shares
from spectran_jax.studies.jobs import Job, run_jobs
from spectran_jax.studies.outcomes import why_failed
from spectran_jax.training.workdir import locked

FAKE = Path(__file__).with_name("fake_run.py")
CONFIG = Config().replace(item_encoder="svd")


def fake(behaviours=None):
    behaviours = behaviours or {}
    return lambda job, folder: [sys.executable, str(FAKE), str(folder), *filter(None, [behaviours.get(job.name, "")])]


def starts(workdir, name):
    path = workdir / "runs" / name / "starts"
    return len(path.read_text()) if path.exists() else 0


def jobs(*names, **values):
    return [Job(name, CONFIG.replace(seed=i, **values)) for i, name in enumerate(names)]


def test_each_job_is_run_once_and_read_back(tmp_path, capfd):
    todo = [*jobs("a/one", "b"), Job("trial", CONFIG.replace(evaluate="valid"), keep_checkpoints=False)]
    outcomes = run_jobs(todo, tmp_path, parallel=2, command=fake())
    assert list(outcomes) == ["a/one", "b", "trial"]
    assert all(o.ok and not o.failure for o in outcomes.values())
    assert outcomes["b"].metrics["config"]["training"]["seed"] == 1
    assert outcomes["b"].ranks().rank.shape == outcomes["b"].ranks("valid").user.shape == (40,)
    with pytest.raises(InputError, match="holds no ranks of the test set; run with --evaluate=test or both"):
        outcomes["trial"].ranks()
    assert (outcomes["b"].folder / "checkpoints").exists()
    assert not (outcomes["trial"].folder / "checkpoints").exists()
    assert "3/3" in capfd.readouterr().err
    assert run_jobs(todo, tmp_path, parallel=2, command=fake()) == outcomes
    assert [starts(tmp_path, job.name) for job in todo] == [1, 1, 1]


def test_results_older_than_their_files_do_not_count(tmp_path):
    """Also of a file whose time lies in the future, as clocks that differ make them: it is looked at once more."""
    data = tmp_path / "embeddings.npy"
    data.write_text("")
    run_jobs(jobs("a", embeddings=str(data)), tmp_path, parallel=1, command=fake())
    os.utime(data, (time.time() + 3600, time.time() + 3600))
    for _ in range(2):
        assert run_jobs(jobs("a", embeddings=str(data)), tmp_path, parallel=1, command=fake())["a"].ok
    assert starts(tmp_path, "a") == 2


def test_a_file_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "embeddings.npy").write_text("")
    assert run_jobs(jobs("a", embeddings="~/embeddings.npy"), tmp_path / "w", parallel=1, command=fake())["a"].ok


def test_results_count_whatever_changes_no_number(tmp_path):
    run_jobs(jobs("a"), tmp_path, parallel=1, command=fake())
    others = jobs("a", data_dir="/elsewhere", eval_batch_size=7, mesh="data:1", spectrum_memory="host")
    assert run_jobs(others, tmp_path, parallel=1, command=fake())["a"].ok
    assert starts(tmp_path, "a") == 1
    run_jobs(jobs("a", evaluate="valid"), tmp_path, parallel=1, command=fake())  # which it has read beside the test set
    assert starts(tmp_path, "a") == 1
    for evaluate in ("valid", "both"):
        run_jobs(jobs("b", evaluate=evaluate), tmp_path, parallel=1, command=fake())
    assert starts(tmp_path, "b") == 2


@pytest.mark.parametrize("values", [{"epochs": 7}, {"max_steps": 3}, {"patience": 5}, {"dropout": 0.4}])
def test_runs_of_other_values_are_refused_before_anything_starts(tmp_path, values):
    """Else a search would choose among the trials that still fit, and a table hold runs of two budgets."""
    run_jobs(jobs("a/one"), tmp_path, parallel=1, command=fake())
    held = (tmp_path / "runs" / "a" / "one" / "job.json").read_text()
    (name, value), *_ = values.items()
    with pytest.raises(
        InputError, match=rf"The run in .*a/one has other values \({name}: {value} != .*Take another --workdir"
    ):
        run_jobs([*jobs("new", **values), *jobs("a/one", **values)], tmp_path, parallel=1, command=fake())
    assert [starts(tmp_path, name) for name in ("new", "a/one")] == [0, 1]
    assert (tmp_path / "runs" / "a" / "one" / "job.json").read_text() == held


def test_a_newer_file_of_the_same_content_is_looked_at_once(tmp_path):
    data = tmp_path / "embeddings.npy"
    data.write_text("")
    command = fake({"a": "unchanged"})
    for _ in range(2):
        assert run_jobs(jobs("a", embeddings=str(data)), tmp_path, parallel=1, command=command)["a"].ok
    os.utime(tmp_path / "runs" / "a" / "metrics.json", (1, 1))
    for _ in range(2):
        assert run_jobs(jobs("a", embeddings=str(data)), tmp_path, parallel=1, command=command)["a"].ok
    assert starts(tmp_path, "a") == 2


def test_failures_are_told_and_the_others_go_on(tmp_path, capfd):
    behaviours = {"bad": "fail", "dead": "die", "again": "again"}
    outcomes = run_jobs(jobs("bad", "dead", "again", "good"), tmp_path, parallel=2, command=fake(behaviours))
    assert [o.ok for o in outcomes.values()] == [False, False, True, True]
    assert outcomes["bad"].failure == "The loss became nan at step 3."
    assert outcomes["dead"].failure.startswith("Ended by SIGKILL (out of memory?)")
    assert starts(tmp_path, "again") == 3
    said = capfd.readouterr().err
    assert "bad: failed: The loss became nan" in said
    assert "again: asks to be started again" in said


def test_what_all_jobs_of_a_folder_are_refused_is_found_by_two_of_them(tmp_path, capfd):
    """Each would start, read all data and end with the same message. The other folder goes on, and all are tried again
    by the next call."""
    bad, good = [f"bad/trial-{i}" for i in range(5)], ["good/trial-0"]
    refused = dict.fromkeys(bad, "refused")
    outcomes = run_jobs(jobs(*bad, *good), tmp_path, parallel=1, command=fake(refused))
    assert list(outcomes) == bad + good
    assert [starts(tmp_path, name) for name in outcomes] == [1, 1, 0, 0, 0, 1]
    assert {(o.failure, o.status, o.ok) for o in outcomes.values()} == {
        ("x.tsv: no such file.", 2, False),
        ("", 0, True),
    }
    assert [o.folder for o in outcomes.values()] == [tmp_path / "runs" / name for name in outcomes]
    said = capfd.readouterr().err
    assert "bad: 3 more not started, as these would fail alike" in said
    assert "6/6 good/trial-0" in said
    assert why_failed(outcomes.values()) == "bad (5 runs) failed: x.tsv: no such file."
    again = run_jobs(jobs(*bad, *good), tmp_path, parallel=1, command=fake())
    assert all(o.ok for o in again.values())


def test_a_job_that_is_refused_a_value_of_its_own_keeps_none_beside_it(tmp_path):
    names = [f"one/trial-{i}" for i in range(3)]
    todo = [Job(name, CONFIG.replace(dropout=0.1 * i)) for i, name in enumerate(names)]
    outcomes = run_jobs(todo, tmp_path, parallel=1, command=fake(dict.fromkeys(names[:2], "refused its value")))
    assert [o.ok for o in outcomes.values()] == [False, False, True]
    others = run_jobs(todo, tmp_path / "lost", parallel=1, command=fake(dict.fromkeys(names[:2], "fail")))
    assert [o.ok for o in others.values()] == [False, False, True], "a failure that is no refusal may pass"


def test_a_run_that_ends_without_a_word_is_not_told_with_an_earlier_one(tmp_path):
    run_jobs(jobs("a"), tmp_path, parallel=1, command=fake({"a": "fail"}))
    failed = run_jobs(jobs("a"), tmp_path, parallel=1, command=fake({"a": "mute"}))["a"]
    assert failed.failure == "It ended with status 1 and said nothing."


def test_cores_are_shared_out():
    cores = os.sched_getaffinity(0)
    for parallel in (1, 2, len(cores) + 3):
        shares = core_shares(parallel)
        assert len(shares) == min(parallel, len(cores))
        assert sorted(core for share in shares for core in share) == sorted(cores)


def test_a_child_runs_on_its_share_under_this_process(tmp_path):
    before = os.sched_getaffinity(0)
    run_jobs(jobs("a", "b"), tmp_path, parallel=2, command=fake())
    seen = [json.loads((tmp_path / "runs" / name / "seen.json").read_text()) for name in "ab"]
    assert {tuple(s["cores"]) for s in seen} == {tuple(sorted(share)) for share in core_shares(2)}
    assert {s["parent"] for s in seen} == {os.getpid()}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("parallel", "given", "expected"), [(1, None, None), (2, None, "false"), (2, "true", "true")])
def test_children_side_by_side_share_the_memory_of_a_gpu(tmp_path, monkeypatch, parallel, given, expected):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    if given:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", given)
    run_jobs(jobs("a"), tmp_path, parallel=parallel, command=fake())
    assert json.loads((tmp_path / "runs" / "a" / "seen.json").read_text())["preallocate"] == expected


@pytest.mark.parametrize(("given", "expected"), [(None, HUGE_PAGES), ("glibc.malloc.check=1", "glibc.malloc.check=1")])
def test_a_child_has_huge_pages_unless_the_user_wants_something_else(tmp_path, monkeypatch, given, expected):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    run_jobs(jobs("a"), tmp_path, parallel=1, command=fake())
    assert json.loads((tmp_path / "runs" / "a" / "seen.json").read_text())["tunables"] == expected


SCRIPT = """
import sys
from pathlib import Path
from test_jobs import fake, jobs
from spectran_jax.errors import exit_with_message
from spectran_jax.studies.jobs import run_jobs

waiting = {"b": "wait", "c": "wait"}
exit_with_message(lambda: run_jobs(jobs("a", "b", "c"), Path(sys.argv[1]), parallel=2, command=fake(waiting)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_children_and_the_same_command_goes_on(tmp_path, number):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FAKE.parent), os.getcwd()])}
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runs = tmp_path / "runs"
    until(lambda: all((runs / name / "waiting").exists() for name in "bc"))
    with pytest.raises(InputError, match="in use by another live process"):
        run_jobs(jobs("a"), tmp_path, parallel=1, command=fake())
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert parent.returncode == 75, said
        assert "the runs under way are saved; start the same command again" in said
        assert (runs / "b" / "saved").exists()
        assert (runs / "c" / "saved").exists()
    else:  # the kernel tells them
        until(lambda: all((runs / name / "saved").exists() for name in "bc"))
    outcomes = run_jobs(jobs("a", "b", "c"), tmp_path, parallel=2, command=fake({"b": "wait", "c": "wait"}))
    assert all(o.ok for o in outcomes.values())
    assert [starts(tmp_path, name) for name in "abc"] == [1, 2, 2]


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_folder_that_is_still_held_is_waited_for(tmp_path):
    """A child of a killed experiment may still be saving when the experiment is started again."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "runs" / "a")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert run_jobs(jobs("a"), tmp_path, parallel=1, command=fake())["a"].ok
    assert (tmp_path / "runs" / "a" / "let go").exists(), "the run began before the folder was free"
    holder.wait()


HOLD = """
import fcntl, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True)
with (folder / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(0.7)
    (folder / "let go").write_text("")
"""


@pytest.mark.parametrize(
    ("names", "parallel", "message"),
    [
        (["a", "a"], 1, "share the folder runs/a"),
        (["../a"], 1, "can't be named"),
        (["a"], 0, "--jobs must be at least 1"),
    ],
)
def test_bad_jobs_start_nothing(tmp_path, names, parallel, message):
    with pytest.raises(InputError, match=message):
        run_jobs(jobs(*names), tmp_path, parallel=parallel, command=fake())
    assert not list(tmp_path.iterdir())


def test_the_time_left_is_that_of_the_mean_run():
    now = [0.0]
    console = Console(file=io.StringIO(), width=200)
    with Board("Runs", 7, 0, 2, console=console):
        assert console.file.getvalue() == "Runs: 7 runs\n"  # said at once: the first may take minutes
    board = Board("Runs", 7, 1, 2, console=console, clock=lambda: now[0])
    with board:
        for name in "ab":
            board.started(name)
        assert math.isnan(board.left())
        now[0] = 10.0
        board.finished("a")
        board.started("c")
        now[0] = 14.0
        board.finished("b", failure="no memory")
        # Runs took 12 s on average; 4 are left, of which one has been under way for 4 s, on 2 processes.
        assert board.left() == pytest.approx((4 * 12 - 4) / 2)


def test_the_folder_is_held_meanwhile(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="in use"):
        run_jobs(jobs("a"), tmp_path, parallel=1, command=fake())
