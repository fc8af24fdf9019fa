"""Trains every encoder on every backbone with every loss: 20 steps, a stop and a resume on the way, an evaluation.

Takes tens of minutes, so it is run by hand; the suite holds a selection (`item_encoders/test_encoder_runs.py`,
`backbones/test_backbone_runs.py`, `training/test_step.py`).

    python tests/every_combination.py [NAME ...]     only combinations whose name, ENCODER-BACKBONE-LOSS, holds a NAME
"""

import contextlib
import io
import itertools
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
from conftest import TINY_MODEL, write_tiny

from spectran_jax import backbones, item_encoders
from spectran_jax.config import Config
from spectran_jax.training import run_report
from spectran_jax.training.run import train_and_report

LOSSES = ("infonce", "softmax", "sampled_softmax", "bce", "gbce")


def run(config: Config, workdir: Path) -> None:
    """Stops after 10 steps, goes on to 20, and looks at what came out."""
    half = train_and_report(config.replace(max_steps=10), workdir)
    assert half["train"]["steps"] == 10
    metrics = train_and_report(config.replace(max_steps=20), workdir)
    assert metrics["train"]["steps"] == 20
    for split in ("valid", "test"):
        assert all(np.isfinite(value) for value in metrics[split].values() if isinstance(value, float))
        assert 0 < metrics[split]["mrr"] <= 1


def main(wanted: list[str]) -> int:
    """Runs the combinations and says which failed."""
    run_report.write_run_report = lambda *arguments: None
    failed, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Config().replace(**write_tiny(Path(folder) / "data"), **TINY_MODEL)
        tiny = tiny.replace(epochs=20, adapter_width=8, experts=2, eval_every=5)
        names = list(itertools.product(item_encoders.REGISTRY, backbones.BACKBONES, LOSSES))
        names = [each for each in names if not wanted or any(part in "-".join(each) for part in wanted)]
        for number, (encoder, backbone, loss) in enumerate(names, 1):
            name = "-".join((encoder, backbone, loss))
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    run(tiny.replace(item_encoder=encoder, backbone=backbone, loss=loss), Path(folder) / name)
            except BaseException:
                failed.append(name)
                print(said.getvalue(), traceback.format_exc(), sep="\n", flush=True)
            print(f"{number}/{len(names)} {name} {time.perf_counter() - started:.0f} s", flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} combinations ran. {' '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
