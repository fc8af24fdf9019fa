"""slurm.sbatch and tpu_vm.sh against stand-ins for `srun`, `scontrol` and `gcloud` that note what they are asked."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPO

NOTE = """#!{python}
import json, pathlib, sys
name, folder = pathlib.Path(sys.argv[0]).name, pathlib.Path(__file__).parent
log = folder / "calls.jsonl"
with log.open("a") as file:
    print(json.dumps([name, *sys.argv[1:]]), file=file)
key = name
if name == "gcloud":
    key = sys.argv[4]
    if key == "ssh" and "docker rm" in sys.argv[-1] + " ".join(sys.argv):
        key = "rm" if "docker run" not in " ".join(sys.argv) else key
answers = json.loads((folder / "answers.json").read_text())
if answers.get(key):
    answer = answers[key].pop(0)
    (folder / "answers.json").write_text(json.dumps(answers))
    if isinstance(answer, str):
        if answer == "NONE":
            sys.exit("ERROR: NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/spectran' was not found")
        print(answer)
    else:
        sys.exit(answer)
"""


@pytest.fixture
def stand_in(tmp_path):
    """Runs a launcher with commands that answer, call by call, from lists: a number is a status, a text is printed."""

    def run(script: str, *flags: str, answers: dict, **settings: object) -> tuple[int, list[list[str]], str]:
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        for name in ("srun", "scontrol", "gcloud"):
            path = tmp_path / name
            path.write_text(NOTE.format(python=sys.executable))
            path.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        environment |= {key: str(value) for key, value in settings.items()}
        done = subprocess.run(
            ["bash", REPO / "launch" / script, *flags],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        calls = tmp_path / "calls.jsonl"
        made = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        return done.returncode, made, done.stderr

    return run


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, 0, False),
        (2, 0, False),
        (1, 0, False),
        (75, 0, True),
        (137, 0, True),
        (134, 0, True),
        (139, 0, True),
        (143, 0, False),
        (75, 100, False),
    ],
)
def test_slurm_requeues_what_was_saved(stand_in, status, restarts, requeued):
    job = {"SLURM_SUBMIT_DIR": REPO, "SLURM_JOB_ID": 17, "SLURM_RESTART_COUNT": restarts}
    left, calls, _ = stand_in("slurm.sbatch", "--workdir=/shared/a b", answers={"srun": [status]}, **job)
    assert left == status
    (srun, *rest) = calls
    assert srun[-3:] == ["-m", "experiments.train", "--workdir=/shared/a b"]
    assert "--kill-on-bad-exit=0" in srun  # else the first that has saved would end those that still do
    assert rest == ([["scontrol", "requeue", "17"]] if requeued else [])


def test_slurm_keeps_the_status_of_a_first_start_that_may_not_start_again(stand_in):
    """Slurm counts restarts only where there were some."""
    job = {"SLURM_SUBMIT_DIR": REPO, "SLURM_JOB_ID": 17, "RESTARTS": 0}
    left, calls, told = stand_in("slurm.sbatch", "--workdir=w", answers={"srun": [75]}, **job)
    assert (left, len(calls)) == (75, 1)
    assert "started again 0 times already, so it ends here" in told


SLICE = {"ZONE": "z", "TPU": "v5litepod-16", "RUNTIME": "r", "IMAGE": "host/p/i:tpu", "NFS": "10.0.0.2:/s", "POLL": 0}


def verbs(calls: list[list[str]]) -> list[str]:
    """What gcloud was asked to do, but for the looks at the queue."""
    return [
        "rm" if call[4] == "ssh" and not any("docker run" in word for word in call) else call[4]
        for call in calls
        if call[4] != "describe"
    ]


def test_a_slice_is_queued_for_used_and_deleted(stand_in):
    answers = {"describe": ["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], "ssh": [0]}
    status, calls, told = stand_in("tpu_vm.sh", "--workdir=/mnt/spectran/a b", answers=answers, **SLICE)
    assert status == 0, told
    assert verbs(calls) == ["create", "ssh", "rm", "delete"]
    create = next(call for call in calls if call[4] == "create")
    assert {"--spot", "--node-id=spectran", "--accelerator-type=v5litepod-16", "--zone=z"} <= set(create)
    ssh = next(call for call in calls if call[4] == "ssh")
    assert {"--node=all", "--worker=all", "--batch-size=all"} <= set(ssh)
    (command,) = [word for word in ssh if word.startswith("--command=")]
    assert r"host/p/i:tpu --coordinator_timeout=1800 --workdir=/mnt/spectran/a\ b" in command
    assert "--label made=" in command
    subprocess.run(["bash", "-n", "-c", command.removeprefix("--command=")], check=True, timeout=120)


SUDO = """#!/bin/bash
[[ $1 == docker ]] || exit 0
echo "$2" >> {folder}/asked
case $2 in
  inspect) [[ -n '{found}' ]] && echo '{found}' ;;
  wait) echo 0 ;;
esac
"""


@pytest.mark.parametrize(
    ("found", "asked", "status"),
    [
        ("", ["inspect", "run", "logs", "wait"], 0),
        ("true MADE", ["inspect", "logs", "wait"], 0),
        ("false MADE", ["inspect", "logs", "wait"], 0),  # it ended while nobody looked: its status is told
        ("true another", ["inspect"], 78),
        ("false another", ["inspect", "rm", "run", "logs", "wait"], 0),
    ],
)
def test_a_worker_starts_attaches_or_refuses(stand_in, tmp_path, found, asked, status):
    _, calls, _ = stand_in("tpu_vm.sh", "--workdir=w", answers={"describe": ["ACTIVE"], "ssh": [0]}, **SLICE)
    (command,) = [word for call in calls if call[4] == "ssh" for word in call if "docker run" in word]
    (made,) = set(re.findall(r"made=(\w{16})", command))
    for name, text in (("sudo", SUDO), ("mount.nfs", "#!/bin/bash"), ("mountpoint", "#!/bin/bash")):
        text = text.replace("{folder}", str(tmp_path)).replace("{found}", found.replace("MADE", made))
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command.removeprefix("--command=")], env=environment, check=False, timeout=60)
    told = (tmp_path / "asked").read_text().split()
    assert (sorted(told), told[0], done.returncode) == (sorted(asked), "inspect", status)


@pytest.mark.parametrize(
    ("answers", "expected", "status"),
    [
        # Preempted: another slice. gcloud's ssh may tell of it by any failure.
        (
            {"describe": ["ACTIVE", "SUSPENDING", "SUSPENDED", "NONE", "ACTIVE"], "ssh": [255, 0]},
            ["ssh", "delete", "create", "ssh", "rm", "delete"],
            0,
        ),
        # Saved on a signal, the slice is still there: the containers start again on it.
        ({"describe": ["ACTIVE", "ACTIVE"], "ssh": [75, 0]}, ["ssh", "rm", "ssh", "rm", "delete"], 0),
        ({"describe": ["ACTIVE", "ACTIVE", "ACTIVE"], "ssh": [137, 0]}, ["ssh", "rm", "ssh", "rm", "delete"], 0),
        ({"describe": ["ACTIVE", "ACTIVE", "ACTIVE"], "ssh": [139, 0]}, ["ssh", "rm", "ssh", "rm", "delete"], 0),
        # The connection broke: attach again, and leave the containers alone.
        ({"describe": ["ACTIVE", "ACTIVE", "ACTIVE"], "ssh": [255, 0]}, ["ssh", "ssh", "rm", "delete"], 0),
        ({"describe": ["ACTIVE", "ACTIVE"], "ssh": [1]}, ["ssh", "rm", "delete"], 1),
        ({"describe": ["ACTIVE"], "ssh": [2]}, ["ssh", "rm", "delete"], 2),
        # The request itself is refused: asking for ever would not help.
        ({"describe": ["NONE", "FAILED"]}, ["create"], 1),
        # gcloud out of reach for a moment, and for good.
        (
            {
                "describe": ["SUSPENDED", "SUSPENDED", "NONE", "NONE", "ACTIVE"],
                "delete": [1],
                "create": [1],
                "ssh": [0],
            },
            ["delete", "delete", "create", "create", "ssh", "rm", "delete"],
            0,
        ),
        ({"describe": ["NONE"] * 9, "create": [1] * 9}, ["create"] * 5, 1),
        # Its containers were started by another command: they go on.
        ({"describe": ["ACTIVE"], "ssh": [78]}, ["ssh"], 2),
    ],
)
def test_what_goes_on_and_what_ends(stand_in, answers, expected, status):
    left, calls, told = stand_in("tpu_vm.sh", "--workdir=/mnt/spectran/a", answers=answers, **SLICE)
    assert (verbs(calls), left) == (expected, status), told


def test_restarts_run_out(stand_in):
    answers = {"describe": ["ACTIVE"] * 4, "ssh": [75, 75]}
    left, calls, told = stand_in("tpu_vm.sh", "--workdir=/mnt/spectran/a", answers=answers, **SLICE, RESTARTS=1)
    assert left == 75
    assert "RESTARTS is used up" in told
    assert verbs(calls)[-1] == "delete"  # nobody pays for a slice that waits


def test_a_missing_setting_is_named(stand_in):
    left, calls, told = stand_in("tpu_vm.sh", answers={}, **{**SLICE, "NFS": ""})
    assert (left, calls) == (2, [])
    assert "set NFS" in told
