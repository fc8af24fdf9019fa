"""Real data, where it is at hand: the benchmark sets beside the project, and MovieLens-100K."""

import os
from pathlib import Path

import numpy as np
import pytest

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.data import movielens
from spectran_jax.data.packing import make_plan
from spectran_jax.errors import InputError

ROOT = Path(__file__).parents[2]
BENCH = Path(os.environ.get("SPECTRAN_BENCH_DATA") or ROOT.parent / "shared" / "data")


def bench(name, tmp_path):
    if not (BENCH / name).is_dir():
        pytest.skip(f"{BENCH / name} is absent; SPECTRAN_BENCH_DATA says where the benchmark data lies")
    return Config().replace(
        dataset="files",
        interactions=str(BENCH / name / "interactions.tsv"),
        items=str(BENCH / name / "items.jsonl"),
        data_dir=str(tmp_path),
    )


def test_beauty(tmp_path):
    config = bench("beauty", tmp_path).replace(max_length=20)
    dataset = data.load(config)
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (22_363, 12_101, 198_502)
    assert sum(not text for text in dataset.item_text) == 7
    assert dataset.dropped == {}
    split = data.split(dataset, config.data)
    assert len(split.valid) == len(split.test) == 22_363
    assert len(split.train.items) == 198_502 - 2 * 22_363
    cold = int((split.item_counts[split.test.target] == 0).sum())
    assert 100 < cold < 180
    plan = make_plan(split.train.lengths, config.data.max_length, packed=True, batch_size=256)
    assert round(plan.positions / 22_363, 2) == 5.24
    assert plan.fill > 0.95


def test_office(tmp_path):
    config = bench("office", tmp_path)
    dataset = data.load(config)
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (3_231, 3_459, 22_447)
    assert dataset.text_columns == ("title", "brand", "description")
    assert (np.bincount(dataset.histories.items, minlength=3_459) == 0).sum() == 142
    with pytest.raises(InputError, match="needs a timestamp column"):
        data.split(dataset, config.replace(split="temporal").data)


def movielens_copy():
    """A copy named by the environment, or what an earlier run has downloaded."""
    named = os.environ.get("SPECTRAN_MOVIELENS")
    if named:
        return named
    for name in (movielens.WHEEL_NAME, movielens.ARCHIVE_NAME):
        path = data.data_dir(Config()) / "downloads" / name
        if path.exists():
            return str(path)
    return None


def test_movielens(tmp_path):
    copy = movielens_copy()
    if copy is None:
        pytest.skip("MovieLens-100K has not been downloaded; SPECTRAN_MOVIELENS names a copy")
    config = Config().replace(movielens=copy, data_dir=str(tmp_path))
    dataset = data.load(config)
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (943, 1_682, 100_000)
    assert dataset.item_titles[0] == "Toy Story (1995)"
    assert dataset.item_text[0].startswith("Toy Story (1995). Animation")
    assert dataset.item_ids[:2] == [1, 2]
    assert data.split(dataset, config.data).tied_targets == {"count": 415, "total": 943}
    temporal = data.split(dataset, config.replace(split="temporal").data)
    shares = [len(temporal.valid), len(temporal.test)]
    assert all(20 < share < 400 for share in shares)
    assert abs(len(temporal.train.items) / 100_000 - 0.8) < 0.01
