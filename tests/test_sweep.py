"""The search: fair, on validation only; then seeds, with honest spreads."""

import json
import math

import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.errors import Diverged, InputError, RunError
from spectran_jax.sweep import Range, design, parse_space, spread, sweep

SPACE = parse_space("learning_rate=log:1e-4:1e-2,dropout=0.1:0.5")


class Trainer:
    """Stands in for training: metrics are functions of the values, and every call is kept."""

    def __init__(self):
        self.calls = []

    def __call__(self, config, folder):
        self.calls.append((config, folder.name))
        dropout = config.backbone.dropout
        metrics = {
            "valid": {"ndcg@20": -abs(dropout - 0.2), "ndcg@10": dropout},
            "train": {"steps": 7},
            "protocol": "p",
        }
        if config.training.evaluate != "valid":
            # Best where validation is worst: a search that looked here would choose otherwise.
            metrics["test"] = {"ndcg@10": abs(dropout - 0.2) + config.training.seed, "by_item": {"0": 1}}
        return metrics


@pytest.fixture
def trained(tmp_path):
    trainer = Trainer()
    result = sweep(
        Config().replace(seed=5, dimension=32), tmp_path / "new", space=SPACE, trials=8, seeds=[3, 1, 8], run=trainer
    )
    return result, trainer.calls, tmp_path / "new"


def test_trials_read_validation_and_seeds_read_the_test_set(trained):
    _, calls, _ = trained
    assert [name for _, name in calls] == [f"trial-{i:02d}" for i in range(8)] + ["seed-3", "seed-1", "seed-8"]
    assert [config.training.evaluate for config, _ in calls] == ["valid"] * 8 + ["both"] * 3
    assert [config.training.seed for config, _ in calls] == [5] * 8 + [3, 1, 8]
    assert {config.encoder.dimension for config, _ in calls} == {32}


def test_the_choice_is_made_on_validation(trained):
    result, calls, _ = trained
    dropouts = [trial["values"]["dropout"] for trial in result["trials"]]
    best = min(dropouts, key=lambda value: abs(value - 0.2))
    assert result["chosen"]["dropout"] == best != max(dropouts, key=lambda value: abs(value - 0.2))
    for config, _ in calls[8:]:
        assert config.backbone.dropout == best
        assert config.optimizer.learning_rate == result["chosen"]["learning_rate"]
    for (config, _), trial in zip(calls[:8], result["trials"], strict=True):
        assert config.backbone.dropout == trial["values"]["dropout"]


def test_mean_and_spread_are_those_of_the_seeds(trained):
    result, _, _ = trained
    numbers = [run["test"]["ndcg@10"] for run in result["runs"]]
    assert [run["seed"] for run in result["runs"]] == [3, 1, 8]
    assert list(result["test"]) == ["ndcg@10"]
    found = result["test"]["ndcg@10"]
    assert found["mean"] == pytest.approx(sum(numbers) / 3)
    std = math.sqrt(sum((x - found["mean"]) ** 2 for x in numbers) / 2)
    assert found["std"] == pytest.approx(std) == pytest.approx(math.sqrt(13))  # of 3, 1, 8
    assert found["sem"] == pytest.approx(std / math.sqrt(3))


def test_sweep_json_is_what_was_returned(trained):
    result, _, folder = trained
    assert json.loads((folder / "sweep.json").read_text()) == result
    assert [path.name for path in folder.iterdir()] == ["sweep.json"]


def test_spread_of_one_value():
    assert spread([0.25]) == {"mean": 0.25, "std": 0.0, "sem": 0.0}


def test_every_method_is_given_the_same_values(tmp_path):
    tried = []
    for encoder in ("id", "spectran"):
        trainer = Trainer()
        sweep(Config().replace(item_encoder=encoder), tmp_path / encoder, space=SPACE, trials=4, seeds=[0], run=trainer)
        tried.append([(c.optimizer.learning_rate, c.backbone.dropout) for c, _ in trainer.calls])
    assert tried[0] == tried[1]


@pytest.mark.parametrize("trials", [1, 5, 8])
def test_the_design_is_in_range_and_repeats(trials):
    values = design(SPACE, trials, seed=0)
    assert values == design(SPACE, trials, seed=0) != design(SPACE, trials, seed=1)
    assert len(values) == len({tuple(v.values()) for v in values}) == trials
    assert all(1e-4 <= v["learning_rate"] <= 1e-2 and 0.1 <= v["dropout"] <= 0.5 for v in values)


def test_the_design_covers_every_field_evenly():
    """Of 16 points of a Sobol sequence, every quarter of every field holds four."""
    values = design(SPACE, 16, seed=2)
    linear = [(v["dropout"] - 0.1) / 0.4 for v in values]
    logarithmic = [math.log(v["learning_rate"] / 1e-4) / math.log(100) for v in values]
    for points in (linear, logarithmic):
        assert np.histogram(points, bins=4, range=(0, 1))[0].tolist() == [4, 4, 4, 4]


def test_log_ranges_are_uniform_in_the_exponent():
    assert Range("learning_rate", 1e-4, 1e-2, log=True).at(0.5) == 1e-3
    assert Range("dropout", 0.1, 0.5, log=False).at(0.5) == 0.3


def test_rounding_stays_in_range():
    narrow = Range("dropout", 0.12345, 0.12349, log=False)
    assert {narrow.at(point) for point in (0.0, 0.5, 1.0)} <= {0.12345, 0.12349}


def test_without_a_space_all_trials_are_alike():
    assert design([], 2, seed=0) == [{}, {}]
    assert parse_space("") == []


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("learning_rat=0:1", r"Unknown field in --search: 'learning_rat'.*Did you mean 'learning_rate'"),
        ("epochs=1:5", "only real-valued fields are searched; epochs is int"),
        ("dropout", "write NAME=LOW:HIGH or NAME=log:LOW:HIGH"),
        ("dropout=0.1", "write NAME=LOW:HIGH"),
        ("dropout=a:b", "write NAME=LOW:HIGH"),
        ("dropout=0.1:0.2:0.3", "write NAME=LOW:HIGH"),
        ("dropout=0.5:0.1", "LOW must not be above HIGH"),
        ("dropout=nan:0.1", "LOW must not be above HIGH"),
        ("learning_rate=1e-3:inf", "both finite"),
        ("learning_rate=log:0:1", "above 0 where log"),
        ("dropout=0:0.1,dropout=0.2:0.3", "--search names dropout twice"),
    ],
)
def test_bad_search(search, message):
    with pytest.raises(InputError, match=message):
        parse_space(search)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"seeds": []}, "--seeds=: give at least one seed"),
        ({"seeds": [1, 2, 1]}, "--seeds=1,2,1: give at least one seed, and each only once"),
    ],
)
def test_bad_sizes_start_nothing(tmp_path, options, message):
    trainer = Trainer()
    with pytest.raises(InputError, match=message):
        sweep(Config(), tmp_path, **{"space": SPACE, "trials": 1, "seeds": [0], "run": trainer, **options})
    assert not trainer.calls


def test_a_trial_that_diverges_is_counted_and_not_chosen(tmp_path):
    trainer = Trainer()

    def run(config, folder):
        if folder.name == "trial-00":
            raise Diverged("The loss became nan at step 3.")
        return trainer(config, folder)

    result = sweep(Config(), tmp_path, space=SPACE, trials=3, seeds=[0], run=run)
    assert result["trials"][0]["failed"] == "The loss became nan at step 3."
    assert result["chosen"] in [trial["values"] for trial in result["trials"][1:]]
    with pytest.raises(RunError, match="All 1 trials diverged"):
        sweep(Config(), tmp_path, space=SPACE, trials=1, seeds=[0], run=run)


def test_runs_of_two_protocols_share_no_table(tmp_path):
    trainer = Trainer()

    def run(config, folder):
        return {**trainer(config, folder), "protocol": str(config.training.seed % 2)}

    with pytest.raises(InputError, match="2 protocols"):
        sweep(Config(), tmp_path, space=SPACE, trials=1, seeds=[0, 1], run=run)
