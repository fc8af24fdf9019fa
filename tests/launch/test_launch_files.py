"""The launchers' files as far as can be told without a cluster: linters, schemas, and what belongs together agrees.

JobSet is no part of Kubernetes, and no package holds its schema: `JOB_SET` writes down the fields of v1alpha2 that
these manifests may use, after the public type definitions. A Job's template goes through Kubernetes' own schema.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from math import prod
from pathlib import Path

import pytest
import yaml
from conftest import REPO

LAUNCH = REPO / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
MANIFESTS = sorted((LAUNCH / "gke").glob("*.yaml"))
JOB_SETS = [path for path in MANIFESTS if path.name != "storage.yaml"]
RECREATES = ["Recreate", "BlockingRecreate", "InPlaceRestart"]
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
KUBERNETES = "1.31"  # where podFailurePolicy became stable
COUNT = {"type": "integer", "minimum": 0}


def record(required: str, **properties) -> dict:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


JOB_SET = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=record("name", name=NAME, annotations={"additionalProperties": {"type": "string"}}),
    spec=record(
        "replicatedJobs failurePolicy",
        coordinator=record("replicatedJob", replicatedJob=NAME, jobIndex=COUNT, podIndex=COUNT),
        failurePolicy=record(
            "maxRestarts",
            maxRestarts=COUNT,
            restartStrategy={"enum": RECREATES},
            rules={
                "type": "array",
                "items": record(
                    "name action",
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={"enum": ACTIONS},
                    onJobFailureReasons={"type": "array", "items": {"type": "string"}},
                    targetReplicatedJobs={"type": "array", "items": NAME},
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": record("name template", name=NAME, replicas=COUNT, template={"type": "object"}),
        },
    ),
)


def tool(name: str) -> str:
    """A linter's path: those of the [dev] extra lie beside the interpreter."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; it comes with the extra [dev]")
    return found


def lint(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def load(path: Path) -> dict:
    (document,) = yaml.safe_load_all(path.read_text())
    return document


def job(path: Path) -> dict:
    (replicated,) = load(path)["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(path: Path) -> dict:
    (only,) = job(path)["template"]["spec"]["containers"]
    return only


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--help"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE))


OUR_COMMAND = re.compile(r"experiments\.train|launch/\w+\.(?:sh|sbatch)|spectran:[gt]pu")


def passed_flags(text: str) -> set[str]:
    """Flags in a text's commands: those behind `train`, a launcher's name or an image, also on continued lines."""
    lines = re.sub(r"\\\n[# ]*", " ", text).splitlines()
    behind = [OUR_COMMAND.split(line)[-1] for line in lines if OUR_COMMAND.search(line)]
    return {flag for part in behind for flag in re.findall(r"(?<![\w-])--(\w+)\b(?!-)", part)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    lint("bash", "-n", path)
    lint(tool("shellcheck"), path)
    assert path.stat().st_mode & 0o111 or path.suffix == ".sbatch"


def test_the_dockerfile_is_sound():
    path = LAUNCH / "Dockerfile"
    lint(tool("hadolint"), path)
    text = path.read_text()
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for target in ("gpu", "tpu"):
        stage = text.split(f"FROM base AS {target}")[1].split("FROM")[0]
        assert [f'"{requirement}"' in stage for requirement in extras[target]] == [True]
        assert f"JAX_PLATFORMS={dict(gpu='cuda', tpu='tpu')[target]},cpu" in stage  # never silently on the CPU
        assert 'ENTRYPOINT ["python", "-m", "experiments.train"]' in stage  # a list: SIGTERM reaches Python
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in text  # where GKE mounts the driver
    kept = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"requirements.txt", "spectran_jax", "experiments"} == kept
    assert all((REPO / name).exists() for name in kept)


def test_job_sets_match_their_schema():
    jsonschema = pytest.importorskip("jsonschema")
    for path in JOB_SETS:
        jsonschema.Draft202012Validator(JOB_SET).validate(load(path))
    broken = load(JOB_SETS[0])
    broken["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.Draft202012Validator(JOB_SET).validate(broken)


def test_what_is_kubernetes_own_matches_its_schema():
    validate = pytest.importorskip("kubernetes_validate").validate
    validate(load(LAUNCH / "gke" / "storage.yaml"), KUBERNETES, strict=True)
    for path in JOB_SETS:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job(path)}
        validate(whole, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_what_restarts_and_what_does_not(path):
    spec, policy = job(path), load(path)["spec"]["failurePolicy"]
    # Bad input alone is told apart, and ends the set; every other failure, 75 among them, restarts all of it.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container(path)["name"], "operator": "In", "values": [2]}
    (outer,) = policy["rules"]
    assert (outer["action"], outer["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert policy["maxRestarts"] > 0
    assert policy["restartStrategy"] == "BlockingRecreate"
    pods = spec["template"]["spec"]
    assert spec["backoffLimit"] == 0
    assert pods["restartPolicy"] == "Never"  # a podFailurePolicy needs it
    assert pods["terminationGracePeriodSeconds"] >= 120
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda path: path.name)
def test_all_files_of_a_run_lie_on_the_shared_volume(path):
    pods, claim = job(path)["template"]["spec"], load(LAUNCH / "gke" / "storage.yaml")
    (volume,) = [v["name"] for v in pods["volumes"] if "persistentVolumeClaim" in v]
    (claimed,) = [v["persistentVolumeClaim"] for v in pods["volumes"] if "persistentVolumeClaim" in v]
    assert claimed["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (mount,) = [m["mountPath"] for m in container(path)["volumeMounts"] if m["name"] == volume]
    flags = dict(arg.removeprefix("--").split("=", 1) for arg in container(path)["args"])
    assert {"workdir", "data_dir"} <= flags.keys()
    assert all(value.startswith(f"{mount}/") for value in flags.values() if value.startswith("/"))
    assert container(path)["image"].endswith(f":{path.stem}")


def test_the_slice_has_the_hosts_that_its_topology_says():
    path = LAUNCH / "gke" / "tpu.yaml"
    selector = job(path)["template"]["spec"]["nodeSelector"]
    chips = prod(map(int, selector["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job(path)["completions"] * container(path)["resources"]["limits"]["google.com/tpu"] == chips


def test_gpu_pods_find_each_other():
    path = LAUNCH / "gke" / "gpu.yaml"
    flags = dict(arg.removeprefix("--").split("=", 1) for arg in container(path)["args"])
    variables = {
        variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"] for variable in container(path)["env"]
    }
    assert int(flags["num_processes"]) == job(path)["completions"]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container(path)["args"]))) == variables.keys()
    assert variables["COORDINATOR"] == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
    assert variables["PROCESS_ID"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    (replicated,) = load(path)["spec"]["replicatedJobs"]
    assert load(path)["spec"]["coordinator"]["replicatedJob"] == replicated["name"]


def test_every_flag_that_is_passed_exists(known_flags):
    passed = {flag for path in JOB_SETS for flag in (arg.split("=")[0][2:] for arg in container(path)["args"])}
    for path in [*SCRIPTS, LAUNCH / "Dockerfile", LAUNCH / "README.md"]:
        passed |= passed_flags(path.read_text())
    passed |= set(re.findall(r'"--(\w+)=', (LAUNCH / "local.sh").read_text()))
    assert {"workdir", "data_dir", "mesh", "coordinator", "num_processes", "process_id"} <= passed
    assert passed - known_flags - {"help"} == set()
