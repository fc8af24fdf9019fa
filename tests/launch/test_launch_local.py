"""launch/local.sh with a stand-in for training: who is started how, what restarts, and that nobody is left behind.

The stand-in does what its flags say: `--status=75,0` leaves with 75 at the first attempt and with 0 at the second;
`--wait` waits for SIGTERM, and then leaves with 75.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO

TRAIN = """
import os, pathlib, signal, sys, time
flags = dict(arg.lstrip("-").partition("=")[::2] for arg in sys.argv[1:])
me = flags.get("process_id", "0")
folder = pathlib.Path(flags["workdir"])
log = folder / me
attempt = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    print(os.getpid(), os.environ.get("XLA_FLAGS", ""), os.environ.get("JAX_PLATFORMS", ""), *sys.argv[1:], file=file)
if me in flags.get("wait", "").split(",") or flags.get("wait") == "all":
    stop = lambda *_: (folder / f"stopped-{me}").write_text("once") and sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / f"ready-{me}-{attempt}").touch()
    while attempt < int(flags.get("attempts", 99)):
        time.sleep(0.01)
statuses = flags.get(f"status_{me}", flags.get("status", "0")).split(",")
sys.exit(int(statuses[min(attempt, len(statuses) - 1)]))
"""


@pytest.fixture
def interpreter(tmp_path):
    """An interpreter that runs the stand-in where it is asked for `-m experiments.train`."""
    (tmp_path / "train.py").write_text(TRAIN)
    script = tmp_path / "python"
    script.write_text(
        "#!/usr/bin/env bash\n"
        f'if [[ $1 == -m && $2 == experiments.train ]]; then exec {sys.executable} {tmp_path}/train.py "${{@:3}}"; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def start(interpreter, tmp_path):
    def begin(*flags: str, **settings: object) -> subprocess.Popen:
        environment = {**os.environ, "PYTHON": str(interpreter), **{k: str(v) for k, v in settings.items()}}
        return subprocess.Popen(
            [REPO / "launch" / "local.sh", f"--workdir={tmp_path}", *flags],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_signals,
        )

    return begin


def heed_signals() -> None:
    """A shell can't trap a signal that was ignored when it began, as a test run in the background may have it."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def attempts(folder: Path, process: int) -> list[list[str]]:
    return [line.split() for line in (folder / str(process)).read_text().splitlines()]


def gone(folder: Path) -> bool:
    """Whether none of the processes that were ever started lives."""
    started = [int(line[0]) for log in folder.glob("[0-9]") for line in attempts(folder, int(log.name))]
    return not any(Path(f"/proc/{pid}").exists() for pid in started)


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def ready(folder: Path, *processes: int, attempt: int = 0) -> None:
    until(lambda: all((folder / f"ready-{i}-{attempt}").exists() for i in processes), "the processes did not start")


def test_processes_form_a_cluster_and_start_again_after_75(start, tmp_path):
    done = start("--mesh=data:4", "--status=75,0", PROCESSES=2, DEVICES=2, RESTARTS=1)
    _, told = done.communicate(timeout=60)
    assert done.returncode == 0, told
    assert "saved; starting again (1 left)" in told
    ports = []
    for process in (0, 1):
        for line in attempts(tmp_path, process):
            assert "--xla_force_host_platform_device_count=2" in line
            assert "cpu" in line
            flags = dict(word[2:].split("=") for word in line if word.startswith("--"))
            assert (flags["num_processes"], flags["process_id"], flags["mesh"]) == ("2", str(process), "data:4")
            host, port = flags["coordinator"].split(":")
            assert host == "127.0.0.1"
            ports.append(port)
    assert ports[:2] == ports[2:]  # one address an attempt
    assert len(ports) == 4
    with socket.create_server(("127.0.0.1", int(ports[0]))):
        pass  # free, and of the kind that a process may listen at


def test_one_process_gets_no_flags_of_a_cluster(start, tmp_path):
    done = start("--status=75", DEVICES="", RESTARTS=0)
    done.communicate(timeout=60)
    assert done.returncode == 75
    (line,) = attempts(tmp_path, 0)
    assert not any(word.startswith(("--coordinator", "--num_processes", "--process_id")) for word in line)


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (("--status_0=75", "--status_1=2"), 2),  # bad input: starting again will not help
        (("--status_0=75", "--status_1=1"), 1),
        (("--status_0=0", "--status_1=75"), 75),
        (("--status_0=1", "--status_1=137"), 1),
        (("--status_0=137", "--status_1=75"), 75),  # the others noticed that one was killed
        (("--status_0=137", "--status_1=0"), 1),
    ],
)
def test_the_worst_status_is_the_runs(start, tmp_path, flags, status):
    done = start(*flags, PROCESSES=2)
    done.communicate(timeout=60)
    assert done.returncode == status
    assert len(attempts(tmp_path, 0)) == 1


def test_whoever_stays_behind_after_a_failure_is_stopped(start, tmp_path):
    done = start("--wait=1", "--status=3", PROCESSES=2, GRACE=1)
    _, told = done.communicate(timeout=60)
    assert done.returncode == 1
    assert "process 0 left with 3; the others have 1 s to leave" in told
    assert (tmp_path / "stopped-1").exists()
    assert gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_ends_the_run_as_saved(start, tmp_path, number):
    running = start("--wait=all", PROCESSES=2, RESTARTS=5)
    ready(tmp_path, 0, 1)
    running.send_signal(number)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 75
    assert "starting again" not in told
    assert all((tmp_path / f"stopped-{i}").exists() for i in (0, 1))
    assert len(attempts(tmp_path, 0)) == 1  # whoever stopped it decides when it goes on
    assert gone(tmp_path)


def test_a_preempted_process_makes_all_start_again(start, tmp_path):
    running = start("--wait=0", "--attempts=1", "--status_1=75,0", PROCESSES=2, RESTARTS=1)
    ready(tmp_path, 0)
    os.kill(int(attempts(tmp_path, 0)[0][0]), signal.SIGTERM)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 0, told
    assert [len(attempts(tmp_path, i)) for i in (0, 1)] == [2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a process to its parent on Linux")
def test_a_killed_launcher_leaves_nobody_behind(start, tmp_path):
    running = start("--wait=all", PROCESSES=2)
    ready(tmp_path, 0, 1)
    running.kill()
    running.wait()
    until(lambda: gone(tmp_path), "a process outlived its launcher")
    assert all((tmp_path / f"stopped-{i}").exists() for i in (0, 1))  # told to save, not killed


def test_paths_are_those_of_the_folder_that_it_is_started_in(tmp_path):
    (tmp_path / "here.py").write_text("import os, sys; print(os.getcwd(), os.environ['PYTHONPATH'], file=sys.stderr)\n")
    script = tmp_path / "python"
    script.write_text(
        "#!/usr/bin/env bash\n"
        f'if [[ $1 == -m ]]; then exec {sys.executable} {tmp_path}/here.py; fi\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    done = subprocess.run(
        [REPO / "launch" / "local.sh", "--workdir=run"],
        cwd=tmp_path,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "PYTHON": str(script)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr.split() == [str(tmp_path), str(REPO)]


def test_bad_settings_are_named(start):
    for settings, named in [({"PROCESSES": 0}, "PROCESSES=0"), ({"RESTARTS": "x"}, "RESTARTS=x")]:
        done = start(**settings)
        _, told = done.communicate(timeout=60)
        assert done.returncode == 2
        assert named in told
    done = start(PYTHON="/nowhere/python")
    _, told = done.communicate(timeout=60)
    assert done.returncode == 2
    assert "/nowhere/python" in told
