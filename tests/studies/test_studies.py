"""Every study from start to end on runs that train nothing: what the runs were, what came out, what is refused."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO

from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError, RunError
from spectran_jax.studies import (
    ablation,
    coldstart,
    collapse,
    curves,
    dimension,
    exposure,
    grid,
    longtail,
    sensitivity,
    spectrum,
    text_part,
)
from spectran_jax.studies.attention import FILE
from spectran_jax.studies.differences import difference
from spectran_jax.studies.flags import Study
from spectran_jax.studies.jobs import Outcome
from spectran_jax.studies.kept import kept
from spectran_jax.studies.tables import Spread
from spectran_jax.studies.variants import Variant, parse_changes, single_changes

USERS, ITEMS, D, R = 40, 25, 4, 10
QUALITY = {"id": 0.2, "svd": 0.5, "spectran": 0.8}
"""Share of targets that are ranked first; the others come last."""


def write_run(folder, config):
    """What a run leaves: metrics, ranks, a log of two validations, an adapter. Seed 3 of svd has collapsed."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, seed = config.encoder.item_encoder, config.training.seed
    rng = np.random.default_rng(seed)
    item = np.arange(USERS) % ITEMS
    counts = np.where(np.arange(ITEMS) < 20, 50 - np.arange(ITEMS), 0)  # the last five are cold
    good = rng.permutation(USERS) < USERS * QUALITY[encoder]
    if encoder == "id":
        good &= counts[item] > 0
    rank = np.where(good, 0, ITEMS - 1)
    columns = {"user": np.arange(USERS), "item": item, "rank": rank, "history": np.full(USERS, 3)}
    np.savez(
        folder / "ranks.npz", item_counts=counts, **{f"test_{name}": v.astype(np.int32) for name, v in columns.items()}
    )
    values = np.where(np.arange(D) < (1 if (encoder, seed) == ("svd", 3) else D), 1.0, 0.0)
    lines = [
        {"kind": "start", "step": 0, "item_singular_values": [1.0] * D, "tail_energy": 0.1, "attention_live": 0.05},
        {"kind": "train", "step": 5, "loss": 1.0},
        {"kind": "valid", "step": 10, "item_singular_values": values.tolist(), "tail_energy": 0.3},
    ]
    for line in lines[::2]:
        line |= {"component_energy": [1 / R] * R, "taylor": [1.0, 0.5, 0.0], "attention_live": 0.05}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = np.eye(D, R)
    parts = {"attention": np.full((D, R), 0.5), "diagonal": np.linspace(1.5, 1.1, D), "taylor": [1.0, 0.5, 0.0]}
    parts |= {"sigma": np.linspace(1, 0.1, R), "weights": weights}
    kept(folder / FILE, "d", "weights", lambda: parts)
    text = [0.0] * D if encoder == "id" else [3.0, 3.0] + [0.0] * (D - 2)
    kept(folder / text_part.FILE, "d", "singular_values", lambda: {"singular_values": text})
    # At the second factor all cold targets are found, and a third of the others are lost.
    shown = np.where(counts[item] == 0, 0, np.where(rank + np.arange(USERS) % 3, ITEMS - 1, 0))
    sets = {f"{split}_{name}": values for split in ("valid", "test") for name, values in columns.items()}
    sets |= {f"{split}_rank": np.stack([rank, shown]) for split in ("valid", "test")}
    sets |= {"scales": [1, 1.5], "shares": [0.1, 0.5], "item_counts": counts}
    kept(folder / exposure.FILE, f"d {exposure.SCALES} {exposure.PLACES}", "test_rank", lambda: sets)
    hit = float(good.mean())
    test = {name: hit for name in ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "mrr")}
    metrics = {"config": config.to_dict(), "test": test, "protocol": "p", "train": {"best_step": 10}, "digest": "d"}
    metrics["made_with"] = {"code": "c", "jax": "1"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


@pytest.fixture
def trained(monkeypatch):
    """Puts `write_run` in the place of training; returns the jobs that were asked for."""
    asked = []

    def run_jobs(jobs, workdir, **_):
        asked.extend(jobs)
        return {
            job.name: Outcome(job.name, folder := workdir / "runs" / job.name, write_run(folder, job.config))
            for job in jobs
        }

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    return asked


@pytest.fixture
def study(tmp_path):
    datasets = {name: Config().replace(dimension=D) for name in ("one", "two")}
    return Study(datasets, (0, 3), 2, tmp_path, tmp_path / "RESULTS.md", "python -m experiments.x", {"dimension": D})


def rows_of(study, table):
    with (study.workdir / "tables" / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


def test_ablation_changes_one_thing_at_a_time(study, trained):
    result = ablation.run(
        study, f"attention=*,semantic_scale={Config().encoder.semantic_scale}:0.4,item_encoder=spectran"
    )
    assert [figure.title for figure in result.figures] == [
        f"NDCG@10 of each variant, {name}" for name in study.datasets
    ]
    assert len(trained) == 2 * 2 * 4
    for job in trained:
        base = Config().replace(dimension=D, item_encoder="spectran", seed=job.config.training.seed)
        assert len(job.config.differences(base)) == (0 if "/spectran/" in job.name else 1)
    names = [row["Variant"] for row in rows_of(study, "ablation-of-spectran")]
    assert names == ["spectran", "attention=softmax", "attention=none", "semantic_scale=0.4"] * 2
    differences = [row["Difference [95 %]"] for row in rows_of(study, "ablation-of-spectran")]
    assert differences[:2] == ["", "+0.0000"]
    assert "<!-- begin ablation-one-two -->" in study.results.read_text()


def test_a_section_of_its_own_leaves_the_other_as_it_was(study, trained):
    ablation.run(study, "attention=none")
    before = study.results.read_text()
    ablation.run(dataclasses.replace(study, section="small-d"), "attention=softmax")
    text = study.results.read_text()
    assert text.startswith(before.rstrip())
    assert "<!-- begin ablation-small-d -->" in text
    assert list((study.workdir / "results" / "ablation-small-d").glob("*.svg"))


def test_a_variant_that_can_not_run_is_refused_before_any_runs(study, trained):
    with pytest.raises(InputError, match=f"--dimension={D} is not divisible by --heads=3"):
        ablation.run(study, "heads=3")
    assert not trained


def test_a_field_of_the_protocol_is_refused_before_anything_runs(study, trained):
    with pytest.raises(InputError, match=r"filter_seen decides what is measured.* no common table"):
        sensitivity.run(study, "filter_seen=false:true")
    held = {name: config.replace(holdout_items=0.1) for name, config in study.datasets.items()}
    with pytest.raises(InputError, match=r"max_length decides what is measured.* no common table"):
        sensitivity.run(dataclasses.replace(study, datasets=held), "max_length=10:20")
    assert not trained
    sensitivity.run(study, "max_length=10:20")
    assert {job.config.data.max_length for job in trained} == {10, 20, Config().data.max_length}


def test_what_is_tried_by_default_is_in_range():
    for text in (ablation.DEFAULT, sensitivity.DEFAULT):
        changes = parse_changes(text, "changes")
        for variant in single_changes(Config(), changes):
            check(Config().replace(**variant.values))


def test_ticks_of_a_plot_do_not_print_over_each_other():
    assert sensitivity._apart([0.05, 0.2, 0.5, 0.8, 0.95], log=False) == [0.05, 0.2, 0.5, 0.8, 0.95]
    assert sensitivity._apart([64, 2000, 3000, 4096], log=True) == [64, 2000, 4096]


def test_dimension_draws_every_encoder(study, trained):
    study.given.clear()
    result = dimension.run(study, ["id", "spectran"], [8, 16])
    assert sorted({job.config.encoder.dimension for job in trained}) == [8, 16]
    rows = rows_of(study, "metrics-by-dimension")
    assert [row["Variant"] for row in rows[:4]] == ["id d=8", "id d=16", "spectran d=8", "spectran d=16"]
    assert [float(row["HR@10"]) for row in rows[:4]] == pytest.approx([0.2 * 0.75, 0.2 * 0.75, 0.8, 0.8], abs=0.1)
    assert [row["Difference [95 %]"] == "" for row in rows[:4]] == [False, False, True, True], (
        "from spectran at the same d"
    )
    assert len(result.figures) == 2
    with pytest.raises(InputError, match="--dimensions=8,8: give whole numbers"):
        dimension.parse_dimensions(["8", "8"])


def test_collapse_reads_the_step_that_validation_chose(study, trained):
    result = collapse.run(study, ["id", "svd"])
    rows = rows_of(study, "collapse-of-item-vectors")
    assert [(row["Data set"], row["Encoder"]) for row in rows[:2]] == [("one", "id"), ("one", "svd")]
    measures = [[float(row[name]) for name in ("Rank at start", "Effective rank", "Abundance")] for row in rows[:2]]
    assert measures == [pytest.approx([D, D, D]), pytest.approx([D, (1 + D) / 2, (1 + D) / 2])]
    assert float(rows[1]["Top direction"]) == pytest.approx((1 + 1 / D) / 2)
    assert [row["Text rank"] for row in rows[:2]] == ["", "2.0"]
    assert [row["Text abundance"] for row in rows[:2]] == ["", "2.0"]
    assert len(result.figures) == 6


def test_a_start_that_was_lost_is_not_taken_from_the_first_validation(study, monkeypatch):
    """A crash may tear the first line of metrics.jsonl."""

    def run_jobs(jobs, workdir, **_):
        made = {}
        for job in jobs:
            folder = workdir / "runs" / job.name
            made[job.name] = Outcome(job.name, folder, write_run(folder, job.config))
            if "seed-3" in job.name:
                log = folder / "metrics.jsonl"
                log.write_text(log.read_text().partition("\n")[2])
        return made

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    collapse.run(study, ["svd"])
    row = rows_of(study, "collapse-of-item-vectors")[0]
    assert (float(row["Rank at start"]), row["Rank at start s.d."]) == (pytest.approx(D), "")
    spectrum.run(dataclasses.replace(study, seeds=(3,)))
    assert rows_of(study, "reach-of-the-adapter")[0]["Tail at start"] == ""


def test_longtail_splits_users_and_holds_the_rest_alike(study, trained):
    longtail.run(study, ["id", "spectran"])
    counts = rows_of(study, "test-users-and-catalogue-by-group")
    assert [int(counts[0][name]) for name in ("Head", "Middle", "Tail", "Cold", "All")] == [8, 12, 15, 5, 40]
    assert [int(counts[1][name]) for name in ("Head", "Middle", "Tail", "Cold", "All")] == [4, 6, 10, 5, 25]
    by_group = rows_of(study, "hr@10-by-group")
    assert float(by_group[0]["Cold HR@10"]) == 0
    assert float(by_group[1]["Cold HR@10"]) > 0
    each = {name: int(counts[0][name]) for name in ("Head", "Middle", "Tail", "Cold")}
    for row in by_group:
        whole = sum(each[name] * float(row[f"{name} HR@10"]) for name in each) / USERS
        assert whole == pytest.approx(float(row["All HR@10"]))


def test_coldstart_holds_items_out_for_every_encoder(study, trained):
    coldstart.run(study, ["id", "spectran"], 0.05)
    assert {job.config.data.holdout_items for job in trained} == {0.05}
    over = rows_of(study, "ndcg@10-over-id")
    assert [row["Encoder"] for row in over] == ["spectran", "spectran"]
    assert over[0]["Cold"].startswith("+")


def test_coldstart_shows_cold_items_more_and_less(study, trained):
    result = coldstart.run(study, ["id", "spectran"])
    rows = rows_of(study, "cold-items-shown-more-and-less")
    assert [(row["Data set"], row["Encoder"], row["Factor"]) for row in rows] == [
        (name, "spectran", factor) for name in ("one", "two") for factor in ("1", "1.5")
    ], "all cold items are alike to id"
    groups = rows_of(study, "hr@10-by-group")
    as_trained, more = rows[:2]
    assert float(as_trained["Cold HR@10"]) == pytest.approx(float(groups[1]["Cold HR@10"]))
    assert float(as_trained["NDCG@10"]) == pytest.approx(float(rows_of(study, "ndcg@10-by-group")[1]["All NDCG@10"]))
    assert float(more["Cold HR@10"]) == float(more["Validation cold HR@10"]) == 1
    assert [row["Cold places"] for row in rows[:2]] == ["10.0 %", "50.0 %"]
    assert float(more["NDCG@10"]) < float(as_trained["NDCG@10"])
    assert "NDCG@10 over HR@10 of cold targets, one" in [figure.title for figure in result.figures]


def test_coldstart_takes_no_factor_from_the_command_line(study, trained):
    datasets = {name: config.replace(cold_scale=1.2) for name, config in study.datasets.items()}
    with pytest.raises(InputError, match="leave cold_scale out"):
        coldstart.run(dataclasses.replace(study, datasets=datasets), ["spectran"])
    assert not trained


def test_losses_of_scores_below_zero_have_no_factors(study, trained):
    datasets = {name: config.replace(loss="gbce") for name, config in study.datasets.items()}
    result = coldstart.run(dataclasses.replace(study, datasets=datasets), ["spectran"])
    (table,) = (table for table in result.tables if table.title == "NDCG@10 by group")
    assert table.note.count("at no other factor: scores of gbce are below 0") == len(datasets)


def test_coldstart_says_whose_model_is_gone(study, trained, monkeypatch):
    def without_file(folder, digest):
        (folder / exposure.FILE).unlink()
        return exposure.exposures(folder, digest)

    monkeypatch.setattr(coldstart, "exposures", without_file)
    result = coldstart.run(study, ["spectran"])
    assert "Cold items shown more and less" not in [table.title for table in result.tables]
    (table,) = (table for table in result.tables if table.title == "NDCG@10 by group")
    assert table.note.count("at no other factor: ") == 2 * 2


def test_spectrum_shows_reach_and_maps(study, trained):
    result = spectrum.run(study)
    row = rows_of(study, "reach-of-the-adapter")[0]
    assert [float(row[name]) for name in ("Tail at start", "Tail", "Live", "Breadth", "Half")] == pytest.approx(
        [0.1, 0, 1, 1, 2]
    )
    taylor = rows_of(study, "taylor-map")
    assert len(taylor) == 4
    assert taylor[0]["c_0, c_1, ..."] == "1, 0.5, 0"
    assert len(result.figures) == 2 * 5
    ids = [line for figure in result.figures for line in figure.svg.split('id="')[1:]]
    names = [line.partition('"')[0] for line in ids]
    assert len(set(names)) == len(names)
    page = (study.workdir / "index.html").read_text()
    assert page.count("panel wide") == 2 * 2  # the maps span the page


def test_sensitivity_has_the_configured_value_in_every_plot(study, trained):
    result = sensitivity.run(study, f"temperature=0.05:{Config().objective.temperature}:0.2,negatives=64,fusion=*")
    assert [figure.title for figure in result.figures] == [
        "Temperature, one", "Negatives, one", "Temperature, two", "Negatives, two",
    ]  # fmt: skip
    assert len({job.name for job in trained if "temperature" in job.name}) == 2 * 2 * 2
    assert len(rows_of(study, "seeds-of-the-unchanged-configuration")) == 4


def test_one_seed_has_no_spread_and_no_word_of_one(study, trained):
    one = dataclasses.replace(study, seeds=(0,))
    study.given.clear()
    for run, *options in (
        (ablation.run, "attention=none"),
        (sensitivity.run, "temperature=0.2"),
        (longtail.run, ["id", "spectran"]),
        (dimension.run, ["id"], [8, 16]),
    ):
        captions = [[figure.caption for figure in run(each, *options).figures] for each in (one, study)]
        assert all("one seed" in caption and "deviation" not in caption for caption in captions[0])
        assert all("the bars are one standard deviation" in caption for caption in captions[1])
    assert curves.bars([Spread(1.0, None)]) is None
    assert curves.bars([Spread(1.0, None), Spread(2.0, 0.5)]) == pytest.approx([np.nan, 0.5], nan_ok=True)


def test_tables_without_a_row_are_left_out(study, trained):
    titles = [table.title for table in longtail.run(study, ["id"]).tables]
    assert titles == ["Test users and catalogue by group", "NDCG@10 by group", "HR@10 by group"]
    assert not (study.workdir / "tables" / "ndcg@10-over-id.md").exists()


def test_values_that_nothing_reads_are_not_trained(study, trained):
    configs = {"one": Config().replace(item_encoder="svd", loss="softmax"), "two": Config().replace(item_encoder="svd")}
    plain = dataclasses.replace(study, datasets=configs)
    result = sensitivity.run(plain)
    moved = {(dataset, variant.partition("=")[0]) for dataset, variant, _ in (job.name.split("/") for job in trained)}
    read = {("one", "temperature"), ("one", "semantic_scale"), *(("two", n) for n in ("temperature", "semantic_scale"))}
    assert moved == {*read, ("two", "negatives"), ("one", "as-configured"), ("two", "as-configured")}
    assert (
        "Not tried, since nothing reads it: negatives on one (loss=softmax), attention_live on one (item_encoder=svd), "
        "attention_live on two (item_encoder=svd)."
    ) in result.tables[0].note
    assert "Attention live, one" not in [figure.title for figure in result.figures]


def test_values_that_nothing_reads_are_refused_where_somebody_names_them(study, trained):
    plain = dataclasses.replace(study, datasets={"one": Config().replace(item_encoder="svd", attention="none")})
    with pytest.raises(InputError, match="--changes moves attention_live, which nothing reads at item_encoder=svd"):
        sensitivity.run(plain, "temperature=0.2,attention_live=0.2")
    with pytest.raises(InputError, match="--changes moves attention_live, which nothing reads at attention=none"):
        ablation.run(plain, "attention_live=0.2")
    assert not trained
    assert "attention_dimension on one (attention=none)" in ablation.run(plain).tables[0].note


def test_what_a_study_sets_itself_and_variants_out_of_range_start_nothing(study, trained):
    for changes, message in (
        ("seed=1:2", "seed is no field to change"),
        ("evaluate=*", "evaluate is no field to change"),
        ("dropout=0.1:1.5", "--dropout must be"),
        ("clip_norm=inf", "--clip_norm must be a finite number, got inf. 0 does not clip."),
    ):
        for run in (ablation.run, sensitivity.run):
            with pytest.raises(InputError, match=message):
                run(study, changes)
    assert not trained


def test_a_flag_that_the_study_sets_is_refused_before_anything_runs(study, trained):
    with pytest.raises(InputError, match="This study sets --dimension itself"):
        dimension.run(study, ["id"], [8])
    with pytest.raises(InputError, match="data set two: this study sets item_encoder itself"):
        ablation.run(dataclasses.replace(study, tables={"two": ["items", "item_encoder"]}), "attention=none")
    with pytest.raises(InputError, match=r"Unknown item encoder.*Did you mean 'spectran'"):
        collapse.run(study, ["spectrn"])
    with pytest.raises(InputError, match="--item_encoders=id,id: name each only once"):
        collapse.run(study, ["id", "id"])
    assert not trained


def test_a_flag_is_where_changes_start_from(study, trained):
    ablation.run(study, f"dimension={D // 2}:{D}")
    found = {job.name.split("/")[1]: job.config.encoder.dimension for job in trained}
    assert found == {"spectran": D, f"dimension={D // 2}": D // 2}, "what is given already is no change"


def test_runs_that_fail_are_named_and_the_rest_is_shown(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        made = {}
        for job in jobs:
            folder = workdir / "runs" / job.name
            fails = "seed-3" in job.name or "softmax" in job.name
            metrics = None if fails else write_run(folder, job.config)
            made[job.name] = Outcome(job.name, folder, metrics, "The loss became nan." if fails else "")
        return made

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    table = ablation.run(study, "attention=softmax:none").tables[0]
    assert [row[1] for row in table.rows] == ["spectran", "attention=none"] * 2
    failed = [
        f"{dataset}/{runs}"
        for dataset in ("one", "two")
        for runs in ("spectran/seed-3", "attention=softmax (2 runs)", "attention=none/seed-3")
    ]
    assert table.note.endswith(f" {', '.join(failed)} failed: The loss became nan.")
    monkeypatch.setattr(grid, "run_jobs", lambda jobs, workdir, **_: {j.name: Outcome(j.name, workdir) for j in jobs})
    with pytest.raises(RunError, match="All 8 runs failed"):
        ablation.run(study, "attention=none")


def test_result_json_holds_the_figures_of_every_variant(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        made = {}
        for job in jobs:
            folder = workdir / "runs" / job.name
            metrics = None if job.name == "one/id/seed-5" else write_run(folder, job.config)
            made[job.name] = Outcome(job.name, folder, metrics, "" if metrics else "The loss became nan.")
        return made

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    longtail.run(dataclasses.replace(study, seeds=(0, 3, 5)), ["spectran", "id", "svd"])
    held = json.loads((study.workdir / "result.json").read_text())["variants"]
    assert [(row["dataset"], row["variant"]) for row in held] == [
        (dataset, name) for dataset in ("one", "two") for name in ("spectran", "id", "svd")
    ]
    spectran, lost, svd = held[:3]
    assert (spectran["reference"], spectran["difference"], spectran["failures"]) == (None, None, {})
    assert (lost["seeds"], lost["failures"]) == ([0, 3], {"5": "The loss became nan."})
    assert (lost["difference"]["seeds"], lost["difference"]["low"]) == (2, None)
    assert svd["difference"]["mean"] == pytest.approx(svd["means"]["ndcg@10"] - spectran["means"]["ndcg@10"])
    assert svd["difference"]["low"] < svd["difference"]["mean"] < svd["difference"]["high"]


def test_runs_that_were_made_otherwise_are_told_below_each_table_of_metrics(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        made = {}
        for job in jobs:
            metrics = write_run(folder := workdir / "runs" / job.name, job.config)
            metrics["made_with"]["jax"] = "2" if job.name == newer else "1"
            made[job.name] = Outcome(job.name, folder, metrics)
        return made

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    for newer in ("", "two/spectran/seed-3"):
        shown = [ablation.run(study, "attention=none"), longtail.run(study, ["id", "spectran"])]
        shown += [collapse.run(study, ["spectran"]), spectrum.run(study)]
        notes = [table.note for result in shown for table in result.tables if "NDCG@10" in "".join(table.columns)]
        assert len(notes) >= len(shown)
        assert all(("The runs were not all made alike (jax: 1, 2)." in note) == bool(newer) for note in notes)
    held = json.loads((study.workdir / "result.json").read_text())["variants"]
    one, two = {"code": "c", "jax": "1"}, {"code": "c", "jax": "2"}
    assert [row["made_with"] for row in held] == [[one], [one, two]]


def test_time_that_a_data_set_does_not_have_is_told_in_the_text(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        made = {}
        for job in jobs:
            metrics = write_run(folder := workdir / "runs" / job.name, job.config)
            metrics["dataset"] = {"timestamps": job.name.startswith("one/")}
            made[job.name] = Outcome(job.name, folder, metrics)
        return made

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    for backbone, told in (("sasrec", ""), ("hstu", "two has no timestamps: hstu leaves its time bias out.")):
        datasets = {name: config.replace(backbone=backbone) for name, config in study.datasets.items()}
        result = ablation.run(dataclasses.replace(study, datasets=datasets), "attention=none")
        assert result.text.endswith(told)
        assert ("has no timestamps" in result.text) == bool(told)


def test_a_study_that_is_stopped_has_claimed_its_folder(study, monkeypatch):
    monkeypatch.setattr(grid, "run_jobs", lambda *_, **__: sys.exit("Stopped."))
    with pytest.raises(SystemExit):
        ablation.run(study, "attention=none")
    assert json.loads((study.workdir / "study.json").read_text()) == {"command": "python -m experiments.x"}


def test_a_study_whose_runs_were_all_refused_their_input_ends_as_bad_input(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        return {job.name: Outcome(job.name, workdir, failure="x.tsv: no such file.", status=2) for job in jobs}

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    with pytest.raises(InputError, match=r"All 8 runs failed with: x\.tsv: no such file"):
        ablation.run(study, "attention=none")


def test_a_data_set_whose_runs_all_fail_leaves_the_other_its_tables(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        made = {}
        for job in jobs:
            folder = workdir / "runs" / job.name
            metrics = None if job.name.startswith("one/") else write_run(folder, job.config)
            made[job.name] = Outcome(job.name, folder, metrics)
        return made

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    longtail.run(study, ["id", "spectran"])
    assert {row["Data set"] for row in rows_of(study, "test-users-and-catalogue-by-group")} == {"two"}


def test_a_difference_is_over_the_seeds_that_both_have(tmp_path):
    """Both methods are the same; one has lost its best seed."""

    def run(seed):
        folder = tmp_path / str(seed)
        folder.mkdir(exist_ok=True)
        rank = np.where(np.arange(USERS) < 10 * (seed + 1), 0, ITEMS - 1)
        user = np.arange(USERS)
        columns = {"test_user": user, "test_item": user % ITEMS, "test_rank": rank, "test_history": user}
        np.savez(folder / "ranks.npz", item_counts=np.ones(ITEMS, int), **columns)
        return Outcome(str(seed), folder, {"test": {}})

    runs = {"theirs": {seed: run(seed) for seed in range(4)}, "ours": {seed: run(seed) for seed in range(3)}}
    runs["ours"][3] = Outcome("3", tmp_path, failure="no memory")
    found = grid.Grid({"one": runs})
    over = difference(found.ok("one", "ours"), found.ok("one", "theirs"))
    assert over == (0, 0, 0, 3)
    assert str(over) == "+0.0000 [+0.0000, +0.0000]"


def test_a_difference_of_too_few_seeds_has_no_interval(study, trained):
    three = dataclasses.replace(study, seeds=(0, 3, 5))
    for each, intervals in ((study, 0), (three, 2)):
        table = ablation.run(each, "attention=none").tables[0]
        assert sum("[" in row[-1] for row in table.rows if row[-1]) == intervals
        assert "not corrected for the number of rows; one needs 3 seeds, better 5." in table.note
    for each, intervals in ((study, 0), (three, 2)):
        table = longtail.run(each, ["id", "spectran"]).tables[-1]
        assert sum("[" in row[-1] for row in table.rows) == intervals
        assert "one needs 3 seeds" in table.note


def test_a_difference_is_computed_once(study, trained, monkeypatch):
    asked = []
    monkeypatch.setattr(grid, "difference", lambda *runs: asked.append(runs) or difference(*runs))
    result = ablation.run(study, "attention=none:softmax")
    assert [row[-1] is None for row in result.tables[0].rows] == [True, False, False] * 2
    assert len(asked) == 2 * 2
    longtail.run(study, ["id", "spectran"])
    assert len(asked) == 2 * 2 + 2


def test_runs_of_two_protocols_share_no_table(study, monkeypatch):
    def run_jobs(jobs, workdir, **_):
        return {job.name: Outcome(job.name, workdir, {"protocol": str(job.config.training.seed)}) for job in jobs}

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    with pytest.raises(InputError, match=r"follow 2 protocols .* for 2 of them, such as "):
        ablation.run(study, "attention=none")


def test_the_whole_path_through_child_processes(study):
    """`run_grid` by way of real jobs: the fake run of tests stands in for the command."""
    fake = REPO / "tests" / "studies" / "fake_run.py"
    found = grid.run_grid(
        study,
        grid.everywhere(study, [Variant("id", {"item_encoder": "id"})]),
        "Runs",
        command=lambda job, folder: [sys.executable, str(fake), str(folder)],
    )
    assert found.pairs() == [("one", "id"), ("two", "id")]
    assert found.metric("one", "id", "hr@10").std is not None
    assert (study.workdir / "runs/two/id/seed-3/job.json").exists()


def test_every_command_explains_itself():
    names = ["ablation", "dimension", "collapse", "spectrum", "efficiency", "longtail", "coldstart", "sensitivity"]
    commands = [[sys.executable, "-m", f"experiments.{name}", "--help"] for name in names]
    processes = [subprocess.Popen(c, cwd=REPO, stdout=subprocess.PIPE, text=True) for c in commands]
    for name, process in zip(names, processes, strict=True):
        text = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        assert f"python -m experiments.{name} --" in text
        assert "This command:" in text
