"""A comparison: what is run, what its tables say, what fails; and one real, tiny one by its command."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_sweep import Runner

from spectran_jax import statistics
from spectran_jax.config import Config
from spectran_jax.digest import code_digest
from spectran_jax.errors import InputError
from spectran_jax.metrics import gains
from spectran_jax.studies.compare import compare, run
from spectran_jax.studies.flags import Study, check_names

DATA = {"ml": Config(), "other": Config().replace(split="temporal")}
SETTINGS = {"encoders": ["id", "svd", "spectran"], "backbone_names": ["sasrec"], "budget": 2, "seeds": [0, 1, 2]}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    runner, folder = (
        Runner({"ml/sasrec/svd/trial-given-seed-2": "fail", "ml/sasrec/svd/trial-00-seed-2": "fail"}),
        tmp_path_factory.mktemp("compare"),
    )
    return compare(DATA, folder, **SETTINGS, parallel=2, command="c", runner=runner), runner.jobs


def rows(result, title):
    table = next(table for table in result.tables if table.title == title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows], table


def test_every_method_has_the_same_budget_and_the_same_points(compared):
    result, jobs = compared
    assert len(jobs) == 2 * 3 * (2 + 3)
    for trial in ("given", "00"):
        trials = [job.config for job in jobs if job.name.endswith(f"trial-{trial}")]
        assert len(trials) == 6
        assert len({(c.optimizer.learning_rate, c.backbone.dropout, c.optimizer.weight_decay) for c in trials}) == 1
    assert {job.config.encoder.item_encoder for job in jobs} == {"id", "svd", "spectran"}
    assert len(rows(result, "Trials")[0]) == 12


def test_means_gains_and_values_are_those_of_the_runs(compared):
    result, _ = compared
    metrics, table = rows(result, "Test metrics")
    cells = {(c["dataset"], c["item_encoder"]): c for c in result.data["cells"]}
    for row in metrics:
        runs = cells[row["Data set"], row["Method"]]["runs"]
        values = [run["test"]["ndcg@10"] for run in runs if "test" in run]
        assert row["NDCG@10"] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    ours, svd = metrics[5], metrics[4]
    # The fake runs differ between data sets in nothing that the mean per user could see.
    assert svd[f"Gain of {'spectran'}"].startswith("+")
    assert ours["Gain of spectran"] is None
    best = {max(range(3 * d, 3 * d + 3), key=lambda i: metrics[i]["NDCG@10"].mean) for d in range(2)}
    assert {i for i, j in table.bold if j == 3} == best


def test_the_p_values_are_corrected_as_one_family(compared):
    result, _ = compared
    versus = result.data["versus"]
    assert len(versus) == 4
    tested = [each["p"] for each in versus if each["p"] is not None]
    # A rival with two seeds has too few for a test; the other three are corrected together.
    assert [each["rival"] for each in versus if each["p"] is None] == ["svd"]
    assert len(tested) == 3
    assert "correction for all 3 comparisons of spectran" in result.text
    assert (
        "No p-value for ml/sasrec/svd: 2 seeds that spectran has, too, are too few."
        in rows(result, "Test metrics")[1].note
    )
    assert min(tested) >= 3 / (statistics.PERMUTATIONS + 1)


def test_a_failed_run_is_counted_and_told(compared):
    metrics, table = rows(compared[0], "Test metrics")
    assert [row["Seeds"] for row in metrics] == ["3 of 3", "2 of 3", "3 of 3", "3 of 3", "3 of 3", "3 of 3"]
    assert "1 run failed." in table.note


def test_a_gain_over_other_seeds_than_the_means_is_told(compared, tmp_path):
    for title in ("Test metrics", "spectran over the best rival"):
        assert "Gains are over the seeds that both methods have" in rows(compared[0], title)[1].note
    settings = {**SETTINGS, "encoders": ["svd", "spectran"], "budget": 0, "seeds": [0]}
    whole = compare({"ml": Config()}, tmp_path, **settings, runner=Runner())
    assert not any("Gains are over" in table.note for table in whole.tables)


def test_a_data_set_whose_runs_all_fail_leaves_the_other_its_tables(tmp_path):
    failing = {f"other/sasrec/{encoder}/seed-0": "fail" for encoder in ("id", "svd")}
    settings = {**SETTINGS, "encoders": ["id", "svd"], "budget": 0, "seeds": [0]}
    result = compare(DATA, tmp_path, **settings, parallel=2, runner=Runner(failing))
    assert result.data["protocols"] == {"ml": "leave_one_out", "other": ""}
    assert [row["NDCG@10"] is None for row in rows(result, "Test metrics")[0]] == [False, False, True, True]


def test_groups_are_those_of_the_ranks(tmp_path):
    """Of the fake runs, where item i has i interactions: item 0 is the only cold one, the target of two users of 40."""
    settings = {**SETTINGS, "budget": 0, "seeds": [0, 1]}
    groups, table = rows(
        compare({"ml": Config()}, tmp_path, **settings, parallel=2, runner=Runner()), "By popularity of the target"
    )
    assert "ml/sasrec: 5 head, 9 middle, 24 tail, 2 cold." in table.note
    assert len(groups) == 3
    for row in groups:
        cold, head = [], []
        for path in sorted((tmp_path / "runs" / "ml" / "sasrec" / row["Method"]).glob("*/ranks.npz")):
            with np.load(path) as ranks:
                hits = ranks["test_rank"] == 0  # the others are beyond 10
                cold.append(hits[ranks["test_item"] == 0].mean())
                head.append(hits[ranks["test_item"] >= 20].mean())
        assert len(cold) == 2
        assert row["Cold HR@10"] == row["Cold NDCG@10"] == pytest.approx((np.mean(cold), np.std(cold, ddof=1)))
        assert row["Head NDCG@10"] == pytest.approx((np.mean(head), np.std(head, ddof=1)))


def test_the_best_rival_is_chosen_by_validation(compared):
    """The fake run's `id` is best on validation and `svd` on the test set."""
    gains, table = rows(compared[0], "spectran over the best rival")
    metrics = {(row["Data set"], row["Method"]): row["NDCG@10"].mean for row in rows(compared[0], "Test metrics")[0]}
    assert metrics["other", "svd"] > metrics["other", "id"]
    assert [row["Best rival"] for row in gains] == ["id", "id"]
    assert [row["Seeds"] for row in gains] == [3, 3]
    assert "Mean gain over 2 pairs of data set and backbone" in table.note
    ranks, _ = rows(compared[0], "Mean ranks")
    assert sorted(row["Mean rank"] for row in ranks) == [row["Mean rank"] for row in ranks]
    assert sum(row["Mean rank"] for row in ranks) == pytest.approx(6)


def test_gain_interval_and_p_are_those_of_the_ranks(compared, tmp_path):
    settings = {**SETTINGS, "budget": 0}
    result = compare({"ml": Config()}, tmp_path, **settings, parallel=2, runner=Runner())

    def by_user(encoder):
        ndcg = []
        for seed in range(3):
            with np.load(tmp_path / "runs" / "ml" / "sasrec" / encoder / f"seed-{seed}" / "ranks.npz") as ranks:
                ndcg.append(np.where(ranks["test_rank"] == 0, 1.0, 0.0))  # the others are beyond 10
        return np.mean(ndcg, axis=0)

    ours = by_user("spectran")
    p = statistics.holm([statistics.sign_flip_test(ours - by_user(rival)) for rival in ("id", "svd")])
    for versus, rival, expected in zip(result.data["versus"], ("id", "svd"), p, strict=True):
        gain, low, high = statistics.gain_interval(ours, by_user(rival))
        assert versus["rival"] == rival
        assert versus["gain"] == pytest.approx(gain) == pytest.approx(ours.mean() / by_user(rival).mean() - 1)
        assert versus["interval"] == pytest.approx((low, high))
        assert versus["p"] == pytest.approx(expected)
    (row,) = rows(result, "spectran over the best rival")[0]
    versus = result.data["versus"][0]
    assert (row["Best rival"], row["p (Holm)"]) == ("id", versus["p"])
    assert row["Gain"] == f"{100 * versus['gain']:+.1f} %"
    assert row["95 % interval"] == "{:+.1f} % to {:+.1f} %".format(*(100 * end for end in versus["interval"]))


def test_too_few_seeds_have_no_interval(tmp_path):
    settings = {**SETTINGS, "budget": 0, "seeds": [0, 1]}
    result = compare({"ml": Config()}, tmp_path, **settings, parallel=2, runner=Runner())
    (row,), table = rows(result, "spectran over the best rival")
    assert row["Gain"] is not None
    assert row["95 % interval"] is None
    assert "for these seeds, and not corrected for the number of rows; one needs 3 seeds, better 5." in table.note
    assert [versus["interval"] for versus in result.data["versus"]] == [None, None]


def test_one_of_something_is_told_as_one(tmp_path):
    settings = {**SETTINGS, "encoders": ["svd", "spectran"], "budget": 1}
    one = compare({"ml": Config()}, tmp_path / "one", **{**settings, "seeds": [0]}, runner=Runner())
    assert "searched with 1 trial (the given values), over learning_rate" in one.text
    assert "run with 1 seed, which" in one.text
    assert not [word for word in ("Sobol", "deviation", "decided") if word in one.text]
    assert one.figures[0].caption.endswith("There is one seed.")
    three = compare({"ml": Config()}, tmp_path / "three", **{**settings, "budget": 2}, parallel=2, runner=Runner())
    assert "with 2 trials (the given values and 1 point of a Sobol sequence), over" in three.text
    assert "standard deviation (n - 1)" in three.text
    assert "sign-flip tests" in three.text
    assert "Holm" not in three.text, "there is one comparison"
    assert three.figures[0].caption.endswith("Lines are standard deviations, dots are seeds.")


def test_runs_of_other_versions_are_told_below_their_cost(tmp_path):
    settings = {**SETTINGS, "encoders": ["id", "svd"], "budget": 0, "seeds": [0]}
    for behaviours, told in (({}, False), ({"ml/sasrec/svd/seed-0": "newer"}, True)):
        folder = tmp_path / str(told)
        _, table = rows(compare({"ml": Config()}, folder, **settings, runner=Runner(behaviours)), "Cost")
        assert table.note.endswith("The runs were not all made alike (jax: 1, 2).") == told


def test_time_that_a_data_set_does_not_have_is_told(tmp_path):
    settings = {**SETTINGS, "encoders": ["id"], "backbone_names": ["sasrec", "hstu"], "budget": 0, "seeds": [0]}
    for behaviour, told in (("", False), ("timed", False), ("untimed", True)):
        runner = Runner({f"ml/{backbone}/id/seed-0": behaviour for backbone in ("sasrec", "hstu")})
        text = compare({"ml": Config()}, tmp_path / f"{behaviour}-", **settings, runner=runner).text
        assert text.endswith("\n\nml has no timestamps: hstu leaves its time bias out.") == told
        assert ("has no timestamps" in text) == told


def test_one_lucky_seed_makes_no_best_rival(tmp_path):
    """`id` is best on validation, and two of its three runs fail."""
    failing = {f"ml/sasrec/id/seed-{seed}": "fail" for seed in (1, 2)}
    result = compare({"ml": Config()}, tmp_path, **{**SETTINGS, "budget": 0}, parallel=2, runner=Runner(failing))
    assert [row["Best rival"] for row in rows(result, "spectran over the best rival")[0]] == ["svd"]
    note = rows(result, "Test metrics")[1].note
    assert note.startswith("2 runs failed. ml/sasrec/id (2 runs) failed: The loss became nan at step 3.")


def test_plots(compared):
    titles = [plot.title for plot in compared[0].figures]
    assert titles == [f"{what} on {d}, sasrec" for d in ("ml", "other") for what in ("NDCG@10", "Search")]


def test_a_method_that_fails_leaves_the_others_their_table(tmp_path):
    failing = {f"ml/sasrec/svd/seed-{seed}": "fail" for seed in range(2)}
    settings = {**SETTINGS, "budget": 0, "seeds": [0, 1]}
    result = compare({"ml": Config()}, tmp_path, **settings, parallel=2, runner=Runner(failing))
    metrics, table = rows(result, "Test metrics")
    assert [row["NDCG@10"] is None for row in metrics] == [False, True, False]
    assert "ml/sasrec/svd (2 runs) failed: The loss became nan at step 3." in table.note
    assert "No p-values: 2 seeds are too few" in table.note
    titles = ["Test metrics", "spectran over the best rival", "By popularity of the target", "Cost"]
    assert [t.title for t in result.tables] == titles
    assert len(result.figures) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders": ["id", "spectrn"]}, "Unknown item encoder in --item_encoders: 'spectrn'.*'spectran'"),
        ({"backbone_names": ["sasrecs"]}, "Unknown backbone in --backbones: 'sasrecs'.*'sasrec'"),
        ({"encoders": ["id", "id"]}, "--item_encoders=id,id: name each only once"),
        ({"target": "mlp"}, "--target=mlp is not among --item_encoders=id,svd,spectran"),
    ],
)
def test_bad_names_start_nothing(tmp_path, changes, message):
    runner = Runner()
    with pytest.raises(InputError, match=message):
        compare({"ml": Config()}, tmp_path, **{**SETTINGS, **changes}, runner=runner)
    assert not runner.jobs


def test_one_encoder_or_backbone_for_all_is_refused(tmp_path):
    study = Study(DATA, (0,), 1, tmp_path, None, "", {"backbone": "hstu"})
    with pytest.raises(
        InputError, match="A comparison takes several: give --backbones=NAME,NAME instead of --backbone"
    ):
        run(study, ["id"], budget=0)
    tables = {"other": ["items", "item_encoder"]}
    with pytest.raises(InputError, match="data set other: this study sets item_encoder itself, run by run"):
        run(dataclasses.replace(study, given={}, tables=tables), ["id"], budget=0)


def test_no_names_are_all_names():
    assert check_names("backbones", "backbone", [], {"a": 1, "b": 2}) == ["a", "b"]


def test_a_real_comparison(tiny_flags, tmp_path, run_command):
    flags = {
        **tiny_flags,
        # What is compiled into a step is fixed, and runs follow each other, so that a method compiles once.
        **{"dropout": 0.1, "weight_decay": 0.0, "temperature": 0.1, "semantic_scale": 0.3, "spectral_power": 0.0},
        "dataset": "files",
        "item_encoders": "id,svd",
        "backbones": "sasrec",
        "budget": 1,
        "seeds": 0,
        "epochs": 1,
        "workdir": tmp_path / "w",
        "results": tmp_path / "RESULTS.md",
    }
    done = run_command("compare", flags, timeout=600)
    assert done.returncode == 0, done.stderr
    held = json.loads((tmp_path / "w" / "result.json").read_text())
    trials = next(table for table in held["tables"] if table["title"] == "Trials")["rows"]
    assert len(trials) == 1
    assert all(score is not None for *_, score, _ in trials)
    chosen = {c["item_encoder"]: c["chosen"] for c in held["cells"]}
    assert list(chosen["id"]) == ["id_scale"]
    assert chosen["svd"] == {}, "the command line fixed all of its space, so that nothing is tried"
    for cell in held["cells"]:
        folder = tmp_path / "w" / "runs" / "files" / "sasrec" / cell["item_encoder"]
        assert not list(folder.glob("trial-given/checkpoints"))
        (seed,) = folder.glob("*seed-0")
        with np.load(seed / "ranks.npz") as ranks:
            found = gains("ndcg@10", ranks["test_rank"]).mean()
            assert ranks["item_counts"].shape == (40,)
        assert found == pytest.approx(cell["runs"][0]["test"]["ndcg@10"])
        made = cell["runs"][0]["made_with"]
        assert (made["code"], made["jax"], made["devices"]) == (code_digest()[:12], jax.__version__, 1)
    assert "<!-- begin compare-files -->" in (tmp_path / "RESULTS.md").read_text()
    assert "too few for a test" in done.stdout
