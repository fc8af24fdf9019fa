"""What the documents show works as it stands there: the Python of README.md, and the flags of commands."""

import re

import numpy as np
import pytest
from conftest import REPO

from spectran_jax import cluster_flags
from spectran_jax.config import Config
from spectran_jax.export import export_run
from spectran_jax.training import run

README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
DEFINED = re.compile(r'\b(?:DEFINE_\w+|define_path)\(\s*"(\w+)"')
PLAIN = ("help", "dataset", "datasets")
OTHERS = re.compile(r"\b(?:docker|gcloud|kubectl|squeue|xpk) (?:\\\n|[^`\n])*")
"""Commands of other programs, to the end of the line that is not continued."""
FOREIGN = ("sparse", "compile", "xla_gpu_autotune_level", "spot", "accelerator")
"""Flags of other programs that a text names by themselves: of the peer in PyTorch, of XLA, of gcloud."""


def test_its_python_does_what_it_says(tiny_flags, tmp_path, monkeypatch, no_report):
    """On a tiny run in place of the one on MovieLens."""
    train = run.train_and_report

    def short(config, workdir):
        return train(config.replace(**{**tiny_flags, "epochs": 1}), workdir)

    monkeypatch.setattr(run, "train_and_report", short)
    monkeypatch.chdir(tmp_path)
    (serve,) = (block for block in BLOCKS if "stablehlo" in block)
    rest = [block for block in BLOCKS if block != serve]
    assert len(rest) == 2
    names = {}
    for block in rest:
        exec(compile(block, "README.md", "exec"), names)
    assert names["best"] in names["setup"].dataset.item_ids
    assert names["scores"].shape == names["rows"].shape == (60, 10)
    shown = (names["states"] @ names["vectors"].T)[0, names["rows"][0]]
    np.testing.assert_allclose(shown, names["scores"][0], atol=1e-5)
    export_run(tmp_path / "runs" / "api", tmp_path / "serving")
    served = {}
    smaller = serve.replace("50", str(tiny_flags["max_length"])).replace("99", "39")
    exec(compile(smaller, "README.md", "exec"), served)
    assert np.isfinite(served["states"]).all()
    assert len(set(served["best"]) & set(range(40))) == 10


@pytest.mark.parametrize("path", ["README.md", "RESULTS.md", "docs/scale.md", "docs/sharding.md", "launch/README.md"])
def test_every_flag_that_is_named_is_one_of_some_command(path):
    sources = [*(REPO / "experiments").glob("*.py"), *(REPO / "spectran_jax").rglob("*.py")]
    known = {name for source in sources for name in DEFINED.findall(source.read_text(encoding="utf-8"))}
    known |= {*Config().flat(), *cluster_flags.NAMES, *PLAIN, *FOREIGN}
    known |= {f"no{name}" for name, value in Config().flat().items() if isinstance(value, bool)}
    ours = OTHERS.sub("", (REPO / path).read_text(encoding="utf-8"))
    named = set(re.findall(r"(?<![\w-])--(\w+)\b(?!-)", ours))
    assert named - known == set()
