"""The search: fair, on validation only; then seeds, with honest spreads; and it survives what stops it."""

import json
import math

import numpy as np
import pytest
from test_jobs import fake

from spectran_jax.config import Config
from spectran_jax.errors import InputError, Interrupted, RunError
from spectran_jax.studies.compare import compare
from spectran_jax.studies.flags import Study
from spectran_jax.studies.jobs import run_jobs
from spectran_jax.studies.results_md import markdown
from spectran_jax.studies.search import Method, one_protocol, search, to_json
from spectran_jax.studies.space import OWN, Range, describe, design, parse_space, space_of
from spectran_jax.studies.sweep import run, sweep
from spectran_jax.studies.tables import spread

SPACE = parse_space("learning_rate=log:1e-4:1e-2,dropout=0.1:0.5")
METHODS = {"one": Method(Config().replace(dimension=32), SPACE)}
TRIALS: dict = {"trials": 4, "seeds": [0], "parallel": 2}


class Runner:
    """`run_jobs` with fake runs; keeps every job, and may stop before some."""

    def __init__(self, behaviours=None, stop_before=""):
        self.jobs, self.behaviours, self.stop_before = [], behaviours, stop_before

    def __call__(self, jobs, workdir, **options):
        todo = []
        for job in jobs:
            if self.stop_before and job.name.endswith(self.stop_before):
                run_jobs(todo, workdir, **options, command=fake(self.behaviours))
                raise Interrupted("Stopped.")
            todo.append(job)
            self.jobs.append(job)
        return run_jobs(todo, workdir, **options, command=fake(self.behaviours))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    runner, folder = Runner(), tmp_path_factory.mktemp("search")
    found = search(METHODS, folder, trials=4, seeds=[3, 1, 8], parallel=2, runner=runner)
    return found["one"], runner.jobs, folder


def test_trials_read_validation_and_seeds_read_the_test_set(searched):
    found, jobs, folder = searched
    names = [f"one/trial-{name}" for name in ("given", "00", "01", "02")]
    best = [trial.values for trial in found.trials].index(found.chosen)
    assert [job.name for job in jobs] == names + [f"{names[best]}-seed-{seed}" for seed in (3, 1, 8)]
    assert [job.config.training.evaluate for job in jobs] == ["valid"] * 4 + ["both"] * 3
    assert [job.config.training.seed for job in jobs] == [3] * 4 + [3, 1, 8]
    assert {job.config.encoder.dimension for job in jobs} == {32}
    assert [(folder / "runs" / job.name / "checkpoints").exists() for job in jobs] == [False] * 4 + [True] * 3


def test_the_choice_is_made_on_validation(searched):
    """The fake run is best on validation where dropout is 0.2."""
    found, jobs, _ = searched
    dropouts = [trial.values["dropout"] for trial in found.trials]
    best = min(dropouts, key=lambda value: abs(value - 0.2))
    assert found.chosen["dropout"] == best != dropouts[0]
    assert [trial.name for trial in found.trials] == ["given", "0", "1", "2"]
    assert found.trials[0].values == {"learning_rate": 1e-3, "dropout": 0.3}, "as the method has them"
    assert [trial.values for trial in found.trials[1:]] == design(SPACE, 3, seed=3)
    for job in jobs[4:]:
        assert job.config.backbone.dropout == best
        assert job.config.optimizer.learning_rate == found.chosen["learning_rate"]


def test_mean_and_spread_are_those_of_the_seeds(searched):
    found, _, _ = searched
    numbers = found.values("ndcg@10")
    assert len(numbers) == 3
    made = found.spread("ndcg@10")
    assert made.mean == pytest.approx(sum(numbers) / 3)
    assert made.std == pytest.approx(math.sqrt(sum((x - made.mean) ** 2 for x in numbers) / 2))
    assert spread([0.25]) == (0.25, None)
    assert spread([]) is None
    assert json.loads(json.dumps(to_json(found)))["runs"][1]["seed"] == 1


def test_a_search_that_is_stopped_goes_on_where_it_was(searched, tmp_path):
    whole, jobs, folder = searched
    assert not (folder / "study.json").exists()
    for stop_before in ("trial-00", "trial-02", "seed-8"):
        with pytest.raises(Interrupted):
            search(METHODS, tmp_path, trials=4, seeds=[3, 1, 8], parallel=2, runner=Runner(stop_before=stop_before))
    found = search(METHODS, tmp_path, trials=4, seeds=[3, 1, 8], parallel=2, runner=Runner())
    assert to_json(found["one"]) == to_json(whole)
    assert {len((tmp_path / "runs" / job.name / "starts").read_text()) for job in jobs} == {1}


def test_a_search_that_is_stopped_has_claimed_its_folder(tmp_path):
    for find, options in ((sweep, {"space": SPACE, "trials": 1}), (compare, {"budget": 1, "encoders": ["id"]})):
        with pytest.raises(Interrupted):
            find(
                {"ml": Config()}, tmp_path, **options, seeds=[0], command="c", runner=Runner(stop_before="trial-given")
            )
        assert json.loads((tmp_path / "study.json").read_text()) == {"command": "c"}
        (tmp_path / "study.json").unlink()


def test_a_larger_budget_keeps_what_is_there(searched, tmp_path):
    found, _, _ = searched
    search(METHODS, tmp_path, trials=1, seeds=[3], parallel=2, runner=Runner())
    more = search(METHODS, tmp_path, trials=4, seeds=[3], parallel=2, runner=Runner())["one"]
    assert more.chosen == found.chosen
    assert more.done[3].metrics == found.done[3].metrics
    assert (tmp_path / "runs" / "one" / "trial-given" / "starts").read_text() == "x"


def test_a_search_ends_no_lower_than_where_it_began(tmp_path):
    """The fake run is best on validation where dropout is 0.2, which no point of the search hits."""
    found = search({"best": Method(Config().replace(dropout=0.2), SPACE)}, tmp_path, **TRIALS, runner=Runner())["best"]
    assert found.chosen == {"learning_rate": 1e-3, "dropout": 0.2}
    assert [outcome.name for outcome in found.runs.values()] == ["best/trial-given-seed-0"]


def test_failed_trials_are_counted_and_not_chosen(tmp_path):
    methods = {"good": METHODS["one"], "bad": METHODS["one"]}
    failing = {"good/trial-given": "fail", "good/trial-00-seed-1": "die"}
    failing |= {"bad/trial-given": "fail", "bad/trial-00": "fail"}
    found = search(methods, tmp_path, trials=2, seeds=[0, 1], parallel=2, runner=Runner(failing))
    assert found["good"].chosen == found["good"].trials[1].values
    assert [len(f.failures) for f in found.values()] == [2, 2]
    assert list(found["good"].done) == [0]
    assert found["bad"].chosen is None
    assert not found["bad"].runs
    with pytest.raises(RunError, match="All 2 runs failed with: The loss became nan at step 3"):
        search({"bad": METHODS["one"]}, tmp_path, trials=2, seeds=[0], parallel=2, runner=Runner(failing))


def test_runs_of_two_protocols_share_no_table(tmp_path):
    methods = {"a": METHODS["one"], "b": Method(Config().replace(split="temporal"))}
    found = search(methods, tmp_path, trials=0, seeds=[0], parallel=1, runner=Runner())
    assert one_protocol({"a": found["a"]}, "data") == "leave_one_out"
    with pytest.raises(InputError, match="data: its runs follow 2 protocols"):
        one_protocol(found, "data")
    assert one_protocol({}, "data") == "", "a data set whose runs all failed leaves the others their table"


def test_a_sweep_has_a_table_of_seeds_and_one_of_trials(tmp_path):
    result = sweep({"ml": Config()}, tmp_path, space=SPACE, trials=2, seeds=[0, 5], command="x", runner=Runner())
    assert result.title == "Search for spectran with sasrec on ml"
    metrics, trials = result.tables
    assert metrics.columns == ["Seed", "NDCG@10", "HR@10", "NDCG@20", "HR@20", "MRR"]
    assert "dropout" in metrics.title
    assert [row[0] for row in metrics.rows] == ["0", "5", "mean ± s.d."]
    values = [run["test"]["ndcg@10"] for run in result.data["sweeps"]["ml"]["runs"]]
    assert [row[1] for row in metrics.rows[:2]] == values
    assert metrics.rows[2][1] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert [row[1] for row in trials.rows] == ["given", "0"]
    assert len(trials.bold) == 1
    assert [figure.title for figure in result.figures] == ["Search on ml"]
    assert [run["seed"] for run in result.data["sweeps"]["ml"]["runs"]] == [0, 5]


def test_a_sweep_of_one_trial_and_one_seed(tmp_path):
    result = sweep({"ml": Config()}, tmp_path, space=SPACE, trials=1, seeds=[0], runner=Runner())
    assert result.text.startswith(
        "1 trial (the given values) ran on the validation set with seed 0; it was run with 1 seed, which"
    )
    assert [row[0] for row in result.tables[0].rows] == ["0"]
    assert not result.figures


def test_a_sweep_tells_of_time_that_a_data_set_does_not_have(tmp_path):
    runner = Runner({"ml/trial-given": "untimed"})
    config = Config().replace(backbone="hstu")
    result = sweep({"ml": config}, tmp_path, space=SPACE, trials=1, seeds=[0], runner=runner)
    assert result.text.endswith("\n\nml has no timestamps: hstu leaves its time bias out.")


def test_a_sweep_of_nothing_is_refused(tmp_path):
    """Or it would tell of trials that were none."""
    runner = Runner()
    with pytest.raises(InputError, match="There is nothing to search: name a field"):
        sweep({"ml": Config()}, tmp_path, space=parse_space(" , "), trials=8, seeds=[0], runner=runner)
    assert not runner.jobs


@pytest.mark.parametrize(
    ("searched", "message"),
    [("", "Name what to search: --search="), ("dropout=0.1:0.5", "--search and --dropout both set dropout; leave one")],
)
def test_a_search_of_no_field_or_of_one_that_is_fixed_is_refused(tmp_path, searched, message):
    study = Study({"ml": Config()}, (0,), 1, tmp_path, None, "", {"dropout": 0.2})
    with pytest.raises(InputError, match=message):
        run(study, searched, 1)


def test_a_field_that_nothing_reads_is_not_searched(tmp_path):
    space, runner = parse_space("dropout=0.1:0.5,negatives=64:128"), Runner()
    with pytest.raises(InputError, match=r"--search moves negatives, which nothing reads at loss=softmax \(data set b"):
        sweep(
            {"a": Config(), "b": Config().replace(loss="softmax")},
            tmp_path, space=space, trials=2, seeds=[0], runner=runner,
        )  # fmt: skip
    assert not runner.jobs


def test_trials_of_a_sweep_that_fail_are_told_with_its_results(tmp_path):
    runner = Runner({"ml/trial-00": "fail"})
    result = sweep({"ml": Config()}, tmp_path, space=SPACE, trials=2, seeds=[0], runner=runner)
    assert "1 of 2 trials failed. ml, trial 0: The loss became nan" in markdown(result)
    runner = Runner({f"ml/trial-0{i}": "fail" for i in range(3)})
    result = sweep({"ml": Config()}, tmp_path / "more", space=SPACE, trials=4, seeds=[0], runner=runner)
    assert result.tables[1].note == "3 of 4 trials failed. ml (3 trials): The loss became nan at step 3."


def test_trials_and_seeds_of_a_sweep_that_were_made_otherwise_are_told(tmp_path):
    options = {"space": SPACE, "trials": 1, "seeds": [0]}
    for behaviours, told in (({}, ""), ({"ml/trial-given": "newer"}, "The runs were not all made alike (jax: 1, 2).")):
        result = sweep({"ml": Config()}, tmp_path / str(bool(told)), **options, runner=Runner(behaviours))
        assert result.tables[0].note == told


@pytest.mark.parametrize("trials", [1, 5, 8])
def test_the_design_is_in_range_and_repeats(trials):
    values = design(SPACE, trials, seed=0)
    assert values == design(SPACE, trials, seed=0) != design(SPACE, trials, seed=1)
    assert values == design(SPACE, 16, seed=0)[:trials]
    assert len(values) == len({tuple(v.values()) for v in values}) == trials
    assert all(1e-4 <= v["learning_rate"] <= 1e-2 and 0.1 <= v["dropout"] <= 0.5 for v in values)


def test_the_design_covers_every_field_evenly():
    """Of 16 points of a Sobol sequence, every quarter of every field holds four."""
    values = design(SPACE, 16, seed=2)
    linear = [(v["dropout"] - 0.1) / 0.4 for v in values]
    logarithmic = [math.log(v["learning_rate"] / 1e-4) / math.log(100) for v in values]
    for points in (linear, logarithmic):
        assert np.histogram(points, bins=4, range=(0, 1))[0].tolist() == [4, 4, 4, 4]


def test_spaces_that_begin_alike_are_given_the_same_values():
    longer = [*SPACE, *parse_space("semantic_scale=log:0.1:0.8,experts=log:2:16")]
    for short, long in zip(design(SPACE, 8, seed=3), design(longer, 8, seed=3), strict=True):
        assert short.items() <= long.items()


def test_ranges():
    assert Range("learning_rate", 1e-4, 1e-2, log=True).at(0.5) == 1e-3
    assert Range("dropout", 0.1, 0.5, log=False).at(0.5) == 0.3
    narrow = Range("dropout", 0.12345, 0.12349, log=False)
    assert {narrow.at(point) for point in (0.0, 0.5, 1.0)} <= {0.12345, 0.12349}
    whole = Range("blocks", 1, 4, log=False, whole=True)
    assert np.bincount([whole.at(p) for p in np.linspace(0, 1, 400, endpoint=False)]).tolist() == [
        0,
        100,
        100,
        100,
        100,
    ]
    assert whole.at(1.0) == 4
    powers = Range("heads", 2, 16, log=True, whole=True)
    assert [powers.at(p) for p in (0.0, 1 / 3, 2 / 3, 1.0)] == [2, 4, 8, 16]
    assert type(powers.at(0.4)) is int
    assert describe({"heads": 4, "dropout": 0.25}) == "heads 4, dropout 0.25"


def test_a_method_with_nothing_to_search_has_no_trials(tmp_path):
    assert parse_space("") == []
    found = search({"fixed": Method(Config())}, tmp_path, trials=3, seeds=[0, 1], parallel=1, runner=Runner())["fixed"]
    assert (found.trials, found.chosen, list(found.done)) == ([], {}, [0, 1])
    assert (tmp_path / "runs" / "fixed" / "seed-1").is_dir()


def test_spaces_around_commas_do_not_matter():
    assert parse_space("dropout=0.1:0.5, blocks=1:2 ,") == parse_space("dropout=0.1:0.5,blocks=1:2")


def test_every_method_has_a_space_that_begins_alike():
    from spectran_jax.item_encoders import REGISTRY

    for name in REGISTRY:
        names = [r.name for r in space_of(name)]
        assert names[:4] == ["learning_rate", "dropout", "weight_decay", "temperature"]
        # How large item vectors start, against steps of one size: of the text where they hold it, else of the IDs.
        assert names[4] == ("id_scale" if name in ("id", "rlmrec") else "semantic_scale")
    assert "dropout" not in [r.name for r in space_of("id", given=["dropout"])]
    # The temperature of a loss whose weight is fixed at 0 is read by nobody; one that is searched is on.
    off = Config().replace(alignment_weight=0.0)
    assert "alignment_temperature" in [r.name for r in space_of("rlmrec", config=off)]
    assert "alignment_temperature" not in [r.name for r in space_of("rlmrec", ["alignment_weight"], off)]
    assert "alignment_temperature" in [r.name for r in space_of("rlmrec", ["alignment_weight"])]
    for text in OWN.values():
        parse_space(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat=0:1", r"Unknown field in --search: 'learning_rat'.*Did you mean 'learning_rate'"),
        ("loss=1:5", "only numbers are searched; loss is str"),
        ("packing=0:1", "only numbers are searched; packing is bool"),
        ("blocks=1.5:2", "NAME=log:LOW:HIGH, whole numbers"),
        ("dropout", "write NAME=LOW:HIGH or NAME=log:LOW:HIGH"),
        ("dropout=0.1", "write NAME=LOW:HIGH"),
        ("dropout=a:b", "write NAME=LOW:HIGH"),
        ("dropout=0.1:0.2:0.3", "write NAME=LOW:HIGH"),
        (f"negatives=1:{10**400}", "whole numbers"),
        ("dropout=0.5:0.1", "LOW must not be above HIGH"),
        ("dropout=nan:0.1", "LOW must not be above HIGH"),
        ("learning_rate=1e-3:inf", "both finite"),
        ("learning_rate=log:0:1", "above 0 where log"),
        ("dropout=0:0.1,dropout=0.2:0.3", "--search names dropout twice"),
    ],
)
def test_bad_search(text, message):
    with pytest.raises(InputError, match=message):
        parse_space(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": -1}, "trials must be at least 0, got -1"),
        ({"seeds": []}, "--seeds=: give at least one seed"),
        ({"seeds": [1, 2, 1]}, "--seeds=1,2,1: give at least one seed, and each only once"),
        ({"methods": {"a": Method(Config(), parse_space("dropout=0.5:1.5"))}, "trials": 5}, "--dropout must be"),
        ({"methods": {"a": Method(Config(), parse_space("seed=0:5"))}}, "seed is no field to search"),
        ({"methods": {"a": Method(Config(), parse_space("k_core=0:5"))}}, "k_core is no field to search: it decides"),
        (
            {"methods": {"a": Method(Config().replace(holdout_items=0.1), parse_space("max_length=5:9"))}},
            "max_length is no field to search: it decides",
        ),
    ],
)
def test_bad_sizes_start_nothing(tmp_path, options, message):
    runner = Runner()
    settings = {"methods": METHODS, "trials": 1, "seeds": [0], "parallel": 1, "runner": runner, **options}
    with pytest.raises(InputError, match=message):
        search(settings.pop("methods"), tmp_path, **settings)
    assert not runner.jobs


def test_another_choice_in_a_folder_is_told_to_have_read_the_test_set(tmp_path):
    """While the best trial fails another is chosen, whose seeds read the test set."""
    options = {"space": SPACE, **TRIALS}
    first = sweep({"ml": Config()}, tmp_path / "first", **options, runner=Runner())
    values = first.data["sweeps"]["ml"]
    best = next(trial["trial"] for trial in values["trials"] if trial["values"] == values["chosen"])
    assert first.text.endswith("which read the test set once.")
    failing = Runner({f"ml/trial-{best.zfill(2)}": "fail"})
    assert sweep({"ml": Config()}, tmp_path, **options, runner=failing).text.endswith("which read the test set once.")
    for _ in range(2):
        again = sweep({"ml": Config()}, tmp_path, **options, runner=Runner())
        assert again.data["sweeps"]["ml"]["chosen"] == values["chosen"]
        assert again.text.endswith("in this folder it has been read for 1 earlier choice, too.")


def test_a_comparison_tells_of_a_choice_without_a_search(tmp_path):
    options = {"encoders": ["id"], "backbone_names": ["sasrec"], "seeds": [0]}
    made = [compare({"ml": Config()}, tmp_path, budget=n, **options, runner=Runner()) for n in (0, 2, 0)]
    texts = [result.text for result in made]
    assert [result.title.endswith("on ml, nothing searched") for result in made] == [True, False, True]
    assert ["read the test set once." in text for text in texts] == [True, False, False]
    assert "in this folder it has been read for 1 earlier choice, too." in texts[1]
