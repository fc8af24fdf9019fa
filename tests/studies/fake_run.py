"""A run that trains nothing: `fake_run.py FOLDER [BEHAVIOUR]` leaves what a run of FOLDER/job.json leaves.

Metrics are functions of the configuration: best on validation where dropout is 0.2; `id` is better than `svd` on
validation and worse on the test set. It says what it saw in seen.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


def main(folder: Path, behaviour: str = "") -> int:
    (folder / "starts").open("a").write("x")
    config = json.loads((folder / "job.json").read_text())
    seen = {
        "cores": sorted(os.sched_getaffinity(0)),
        "parent": os.getppid(),
        "tunables": os.environ.get("GLIBC_TUNABLES"),
        "preallocate": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"),
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    if behaviour == "mute":
        return 1
    if behaviour == "fail":
        print("a line\nerror: The loss became nan at step 3.", file=sys.stderr)
        return 1
    if behaviour in ("refused", "refused its value"):
        of_its_own = f" It has dropout {config['backbone']['dropout']}." if behaviour == "refused its value" else ""
        print(f"error: x.tsv: no such file.{of_its_own}", file=sys.stderr)
        return 2
    if behaviour == "again" and len((folder / "starts").read_text()) < 3:
        return 75
    if behaviour == "unchanged" and (folder / "metrics.json").exists():
        return 0
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "wait" and not (folder / "saved").exists():

        def save(*_):
            (folder / "saved").write_text("")
            sys.exit(75)

        signal.signal(signal.SIGTERM, save)
        (folder / "waiting").write_text("")
        time.sleep(60)
        return 1
    seed, dropout = config["training"]["seed"], config["backbone"]["dropout"]
    encoder = config["encoder"]["item_encoder"]
    good = {"id": 0.0, "svd": 0.1}.get(encoder, 0.2)
    rng = np.random.default_rng([seed, int(100 * good)])
    users, items = 40, 25
    level = good + 0.5 - abs(dropout - 0.2)
    arrays = {"item_counts": np.arange(items, dtype=np.int32)}
    metrics = {
        "config": config,
        "train": {"steps": 7, "seconds": 1.0},
        "protocol": config["data"]["split"],
        "inputs": "",
        "made_with": {"code": "c", "jax": "2" if behaviour == "newer" else "1"},
    }
    if behaviour in ("timed", "untimed"):
        metrics["dataset"] = {"timestamps": behaviour == "timed"}
    sets = ["valid", "test"] if config["training"]["evaluate"] == "both" else [config["training"]["evaluate"]]
    for name in sets:
        ranks = np.where(rng.random(users) < level, 0, 20).astype(np.int32)
        columns = {
            "user": np.arange(users),
            "item": np.arange(users) % items,
            "rank": ranks,
            "history": np.full(users, 5),
        }
        arrays |= {f"{name}_{key}": np.asarray(value, np.int32) for key, value in columns.items()}
        value = level + 0.15 * (encoder == "id") if name == "valid" else float((ranks < 10).mean())
        metrics[name] = {key: value for key in ("ndcg@10", "ndcg@20", "hr@10", "hr@20", "mrr")}
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "ranks.npz", **arrays)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
