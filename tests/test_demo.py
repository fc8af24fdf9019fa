"""The main job on its real input, for a few steps: what `make demo` runs."""

import json
import re
import subprocess
import urllib.error

import pytest
from conftest import REPO

from spectran_jax.data import movielens
from spectran_jax.errors import InputError

NO_NETWORK = re.compile(
    r"MovieLens-100K can't be had: pip download \S+ failed .*; "
    r"\S+ can't be fetched \((<urlopen error|HTTP Error|.*timed out)"
)


@pytest.mark.parametrize("error", [urllib.error.URLError("name not known"), TimeoutError("The read timed out")])
def test_what_is_skipped_without_a_network_is_what_the_library_says(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(movielens.urllib.request, "urlopen", fail)
    monkeypatch.setattr(
        movielens.subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 1, "", "ERROR: no route")
    )
    with pytest.raises(InputError) as caught:
        movielens.find("", tmp_path)
    assert NO_NETWORK.search(str(caught.value))


def test_the_demo_starts_from_nothing(tmp_path, run_command):
    recipe = re.search(r"^demo: \$.*\n((?:\t.*\n)+)", (REPO / "Makefile").read_text(), re.MULTILINE)[1]
    flags = dict(re.findall(r"--(\w+)=(\S+)", recipe))
    assert flags["workdir"] == "$(WORKDIR)"
    done = run_command("train", {**flags, "data_dir": tmp_path / "cache", "workdir": tmp_path / "run", "max_steps": 4})
    if done.returncode == 2 and NO_NETWORK.search(done.stderr):
        pytest.skip("MovieLens-100K can't be fetched here")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    counts = {name: metrics["dataset"][name] for name in ("users", "items", "interactions")}
    assert counts == {"users": 943, "items": 1682, "interactions": 100_000}
    assert metrics["dataset"]["tied_targets"] == {"count": 415, "total": 943}
    assert metrics["train"]["steps"] == 4
    assert {"hr@10", "ndcg@10", "hr@20", "ndcg@20", "mrr"} <= set(metrics["test"])
    assert "NDCG@10" in done.stdout
    assert str(tmp_path / "run" / "report.html") in done.stdout
    assert "415 of 943 test targets" in done.stderr
