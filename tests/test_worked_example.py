"""The example of WORKSPACE.md, as it is written there: short, complete, and it trains."""

import re

import numpy as np
import pytest
from conftest import REPO, TINY_MODEL

from spectran_jax import backbones, item_encoders, objectives
from spectran_jax.config import Config
from spectran_jax.data import sources
from spectran_jax.training.run import train_and_report


@pytest.fixture
def registries():
    """What the example adds is taken out again."""
    held = (item_encoders.REGISTRY, backbones.BACKBONES, objectives.LOSSES, sources._SOURCES)
    before = [dict(each) for each in held]
    yield
    for each, entries in zip(held, before, strict=True):
        each.clear()
        each.update(entries)


def test_the_example_of_the_map_trains(registries, tmp_path, no_report):
    text = (REPO / "WORKSPACE.md").read_text(encoding="utf-8")
    section = text[text.index("### A new method in one file") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
    exec(compile(code, "WORKSPACE.md", "exec"), {"__name__": "example"})
    config = Config().replace(
        **TINY_MODEL, dataset="ring", item_encoder="squashed", backbone="newest", loss="margin", pad_rank=True,
        data_dir=str(tmp_path),
    )  # fmt: skip
    metrics = train_and_report(config.replace(epochs=10), tmp_path / "run")
    assert np.isfinite(metrics["test"]["ndcg@10"])
    assert metrics["test"]["hr@10"] > 0.35  # of 40 items, 10 by chance are 0.25
