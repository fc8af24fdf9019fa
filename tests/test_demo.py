"""The main job on its real input, for a few steps: what `make demo` runs."""

import json

import pytest


def test_the_demo_starts_from_nothing(tmp_path, run_command):
    flags = {"data_dir": tmp_path / "cache", "workdir": tmp_path / "run", "max_steps": 4}
    done = run_command("train", flags)
    if done.returncode == 2 and "--movielens" in done.stderr:
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
