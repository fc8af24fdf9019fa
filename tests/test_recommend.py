"""Recommendations: the evaluation's own numbers, in the user's own ids, for known histories and new ones."""

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY_MODEL, without_report, write_tiny

from spectran_jax.config import Config
from spectran_jax.data.interactions import Histories
from spectran_jax.errors import InputError, RunError
from spectran_jax.recommend import recommend, user_states, write_recommendations
from spectran_jax.training import restore
from spectran_jax.training.programs import build_table
from spectran_jax.training.restore import load_run, read_run
from spectran_jax.training.run import train_and_report

ITEMS = 40


def train(config, folder):
    """Trains without the report, which takes longer than the training here."""
    with without_report():
        return train_and_report(config, folder)


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """The folder of a trained run."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_config.replace(epochs=2), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(run)


@pytest.fixture
def write(run, loaded, tmp_path, monkeypatch):
    """Writes recommendations of the run, which is read from disk only once for all tests; returns the lines."""
    monkeypatch.setattr(restore, "load_run", lambda workdir, files, cold_scale: loaded)

    def call(**options):
        output = tmp_path / "top.jsonl"
        count = write_recommendations(run, output, **{"k": 10, **options})
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert count == len(lines)
        return lines

    return call


def test_cold_items_score_a_factor_more(write, run, monkeypatch):
    plain = write(k=ITEMS)
    monkeypatch.setattr(restore, "load_run", load_run)
    more = write(k=ITEMS, cold_scale=1.5)
    for was, now in zip(plain, more, strict=True):
        before, after = (dict(zip(line["items"], line["scores"], strict=True)) for line in (was, now))
        for item, score in before.items():
            factor = 1.5 if item in ("item-38", "item-39") else 1  # those that no history holds
            assert after[item] == pytest.approx(factor * score, abs=1e-6)
    with pytest.raises(InputError, match=r"--cold_scale must be between 0\.01 and 100, got 0\.0"):
        write(cold_scale=0.0)


def test_a_factor_changes_scores_and_no_state(loaded):
    """What a history holds is read as it was, whatever its items score."""
    setup, params = loaded
    table = build_table(setup)(params, setup.place())
    factor = np.random.default_rng(0).uniform(0.5, 2, len(table.lengths)).astype(np.float32)
    scaled = table.with_scores_times(factor)
    known = setup.split.test.history
    states = user_states(setup, params, known, table=table)
    np.testing.assert_allclose(user_states(setup, params, known, table=scaled), states, atol=1e-5)
    np.testing.assert_allclose(states @ scaled.vectors.T, (states @ table.vectors.T) * factor, atol=1e-5)


def test_the_files_of_a_run_are_not_overwritten(run, loaded, write, tmp_path):
    (tmp_path / "h.jsonl").write_text('{"user_id": 1, "items": ["item-1"]}\n')
    for path in (loaded[0].config.data.items, tmp_path / "h.jsonl"):
        with pytest.raises(InputError, match="is one of the files that are read"):
            write_recommendations(run, Path(path), k=1, histories=tmp_path / "h.jsonl")
    (tmp_path / "link.json").symlink_to(run / "metrics.json")
    own = ("config.json", "metrics.json", "metrics.jsonl", "ranks.npz", "report.html", "checkpoints/x", ".lock")
    for path in (*(run / name for name in own), tmp_path / "link.json"):
        with pytest.raises(InputError, match="is what the run itself writes; write to another place"):
            write_recommendations(run, path, k=1)
    for name in ("x.parquet", "x.jsonl.gz"):
        with pytest.raises(InputError, match="recommendations are JSON, an object a line"):
            write_recommendations(run, tmp_path / name, k=1)


def test_users_without_a_test_target_are_counted(loaded, write, capsys):
    setup, _ = loaded
    some = setup.split.test
    few = dataclasses.replace(some, history=some.history.take(np.arange(3)), target=some.target[:3], user=some.user[:3])
    object.__setattr__(setup, "split", dataclasses.replace(setup.split, test=few))
    try:
        assert len(write(k=1)) == 3
    finally:
        object.__setattr__(setup, "split", dataclasses.replace(setup.split, test=some))
    assert "57 users are left out, without a target in the test set; --until=now" in capsys.readouterr().err


@pytest.fixture(scope="module")
def events(tiny_flags):
    """Items of each user, oldest first, read from the input file by itself."""
    histories: dict[int, list[str]] = {}
    with open(tiny_flags["interactions"]) as file:
        next(file)
        for line in file:
            user, item, _ = line.split("\t")
            histories.setdefault(int(user), []).append(item)
    return histories


@pytest.mark.parametrize("filtered", [False, True], ids=["all_items", "filter_seen"])
def test_the_list_scores_as_the_evaluation_does(run, tiny_config, events, tmp_path, filtered):
    folder = run
    if filtered:
        folder = tmp_path / "filtered"
        train(tiny_config.replace(epochs=1, filter_seen=True), folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    write_recommendations(folder, tmp_path / "top.jsonl", k=10)
    lines = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
    places = []
    for line in lines:
        *history, target = events[line["user_id"]]
        assert len(line["items"]) == len(set(line["items"])) == len(line["scores"]) == 10
        assert line["scores"] == sorted(line["scores"], reverse=True)
        assert all(-1.001 <= score <= 1.001 for score in line["scores"])
        assert not filtered or not set(line["items"]) & set(history)
        places.append(line["items"].index(target) if target in line["items"] else None)
    assert sorted(line["user_id"] for line in lines) == sorted(events)
    hits = [place for place in places if place is not None]
    assert 0 < len(hits) < len(lines)
    for k in (5, 10):
        found = [place for place in hits if place < k]
        assert len(found) / len(lines) == metrics["test"][f"hr@{k}"]
        gain = sum(1 / math.log2(place + 2) for place in found)
        assert gain / len(lines) == pytest.approx(metrics["test"][f"ndcg@{k}"], abs=1e-12)
    shown = {item for line in lines for item in line["items"]}
    assert len(shown) / ITEMS == metrics["test"]["coverage@10"]


def test_k_items_are_the_head_of_more(write):
    short, long = write(k=3), write(k=ITEMS - 12)
    assert [line["items"] for line in short] == [line["items"][:3] for line in long]
    assert all(len(line["items"]) == ITEMS - 12 for line in long)


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_a_file_of_the_test_histories_gives_the_same(write, events, tmp_path, kind):
    path = tmp_path / f"histories.{kind}"
    with path.open("w") as file:
        if kind == "tsv":
            file.write("user_id\titem_id\tposition\n")
        for user, items in events.items():
            if kind == "jsonl":
                file.write(json.dumps({"user_id": user, "items": items[:-1]}) + "\n")
            else:
                file.writelines(f"{user}\t{item}\t{at}\n" for at, item in enumerate(items[:-1]))
    assert write(histories=path) == write()


def test_a_file_of_histories_is_read_with_the_duplicates_of_the_run(write, loaded, tmp_path, monkeypatch):
    path, rows = tmp_path / "histories.csv", ["u,item-3,5", "u,item-4,5", "u,item-5,6"]
    header = "user_id,item_id,timestamp\n"
    path.write_text(header + "\n".join(rows))
    once = write(histories=path)
    path.write_text(header + "\n".join(rows[:2] * 3 + rows[2:]))
    assert write(histories=path) != once
    setup, params = loaded
    dropping = dataclasses.replace(setup, config=setup.config.replace(duplicates="drop")), params
    monkeypatch.setattr(restore, "load_run", lambda workdir, files, cold_scale: dropping)
    assert write(histories=path) == once


def test_a_history_never_seen_before(write, tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text(
        '{"user_id": "newcomer", "items": ["item-3", "item-4"]}\n\n'
        '{"user_id": 7, "items": ["item-39"]}\n'  # a cold item
        + json.dumps({"user_id": None, "items": [f"item-{i % ITEMS}" for i in range(100)]})  # longer than max_length
    )
    lines = write(histories=path, k=4, filter_seen=False)
    assert [line["user_id"] for line in lines] == ["newcomer", 7, None]
    assert all(len(line["items"]) == 4 for line in lines)
    path.write_text('{"user_id": "other name", "items": ["item-3", "item-4"]}\n')
    alone = write(histories=path, k=4, filter_seen=False)
    assert alone[0]["items"] == lines[0]["items"]
    np.testing.assert_allclose(alone[0]["scores"], lines[0]["scores"], atol=1e-6)


def test_filter_seen_can_be_asked_for_and_leaves_fewer(write, tmp_path, capsys):
    path = tmp_path / "all.jsonl"
    seen = [f"item-{i}" for i in range(ITEMS - 2)]
    path.write_text(json.dumps({"user_id": 1, "items": seen}))
    (line,) = write(histories=path, filter_seen=True)
    assert sorted(line["items"]) == ["item-38", "item-39"]
    assert "1 of 1 lists are shorter than --k=10: --filter_seen leaves" in capsys.readouterr().err
    (line,) = write(histories=path, filter_seen=False)
    assert len(line["items"]) == 10
    assert set(line["items"]) & set(seen)
    assert "lists are shorter" not in capsys.readouterr().err


def test_now_goes_on_from_all_that_is_known(write, events, tmp_path):
    now = write(until="now")
    assert now != write(until="test")
    path = tmp_path / "whole.jsonl"
    path.write_text("".join(json.dumps({"user_id": u, "items": items}) + "\n" for u, items in events.items()))
    assert now == write(histories=path)


def test_now_tells_of_users_with_too_few_interactions(run, loaded, tmp_path, monkeypatch, capsys):
    setup, params = loaded
    short = dataclasses.replace(setup.dataset, dropped={"users_too_short": 7})
    monkeypatch.setattr(
        restore, "load_run", lambda workdir, files, cold_scale: (dataclasses.replace(setup, dataset=short), params)
    )
    for until, told in (("now", True), ("test", False)):
        write_recommendations(run, tmp_path / "top.jsonl", k=1, until=until)
        assert ("7 users are left out" in capsys.readouterr().err) is told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user_id": 1, "items": []}', r"line 1: items is empty; write .*oldest, \.\.\., newest"),
        ('{"user_id": 1, "items": ["item-1"]}\n{"items": ["item-1"]}', "line 2: user_id is missing"),
        ('{"user_id": 1, "items": [["item-1"]]}', "line 1: entry 1 of items is neither an integer nor a string; write"),
        ('{"user_id": 1, "items": "item-1"}', "line 1: items is a string, not a list; write"),
        ('{"user_id": 1, "items": null}', "line 1: items is null, not a list; write"),
        ('{"item_id": "item-1", "title": "x"}', r"line 1: user_id is missing \(found: item_id, title\); write"),
        ('{"user_id": 1, "item": ["item-1"]}', r"line 1: items is missing \(found: user_id, item\)"),
        ('{"user_id": 1, "items": ["item-1", true]}', "line 1: entry 2 of items is neither"),
        ('{"user_id": 1, "items": ["item-1", NaN]}', "line 1: entry 2 of items is neither"),
        ('["item-1"]', "line 1: each line must be one JSON object, got list"),
        ('{"user_id": 1, "items": ["item-1"', r"line 1: malformed JSON \(Expecting ',' delimiter"),
        ("[" * 100_000, "line 1: malformed JSON"),
        ('{"user_id": "caf\\ud83d", "items": ["item-1"]}', "line 1: user_id must be .* whole characters"),
        ('{"user_id": NaN, "items": ["item-1"]}', "line 1: user_id must be an integer or a string"),
        (
            '{"user_id": 1, "items": ["item-1", "x", "y", "x", "z", "w"]}',
            r"names 4 items that .* \('x', 'y', 'z', \.\.\.\)",
        ),
        ('{"user_id": 1, "items": ["x", "x"]}', r"names 1 item that the run does not know \('x'\); leave out"),
        (
            '{"user_id": 1, "items": ["Item-1", "item-2 ", "ITEM-3"]}',
            "2 of them .* 'Item-1' as 'item-1': .* same case; of the",
        ),
        ("\n\n", "holds no history"),
        ("", "is empty"),
    ],
)
def test_bad_histories(write, tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        write(histories=path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "top.jsonl").exists()


@pytest.mark.parametrize("k", [0, -1, ITEMS + 1])
def test_k_out_of_range(write, tmp_path, k):
    with pytest.raises(InputError, match=rf"--k must be between 1 and the {ITEMS} items of the catalogue, got {k}"):
        write(k=k)
    assert not (tmp_path / "top.jsonl").exists()


def test_recall_is_passed_on_and_checked(write, tmp_path):
    assert write(recall=1.0) == write(recall=0.0) == write()
    scores = [[line["scores"] for line in lines] for lines in (write(recall=0.9), write())]
    assert scores[0] == scores[1]  # XLA sorts on CPU
    (tmp_path / "top.jsonl").unlink()
    with pytest.raises(InputError, match=r"--recall must lie between 0 \(exact\) and 1, got 2\."):
        write(recall=2.0)
    assert not (tmp_path / "top.jsonl").exists()


def test_output_that_can_not_be_written(run, tmp_path):
    with pytest.raises(InputError, match=r"--output=.*the folder .*none does not exist"):
        write_recommendations(run, tmp_path / "none" / "top.jsonl", k=1)
    with pytest.raises(InputError, match=r"--output=.* is a folder"):
        write_recommendations(run, tmp_path, k=1)
    with pytest.raises(InputError, match=r"--output=- would be a file of that name; name a file, or /dev/stdout"):
        write_recommendations(run, Path("-"), k=1)


def test_what_can_not_be_read_or_written_is_told_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "load_run", lambda workdir, files, cold_scale: pytest.fail("loads the model"))
    top = tmp_path / "top.jsonl"
    with pytest.raises(InputError, match=r"none.jsonl: no such file"):
        write_recommendations(run, top, k=1, histories=tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"--recall must lie between 0"):
        write_recommendations(run, top, k=1, recall=3.0)
    with pytest.raises(InputError, match=r"--output=/proc/top.jsonl can't be written \(.*\); name another place"):
        write_recommendations(run, Path("/proc/top.jsonl"), k=1)  # where root can't, either
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_told_before_its_output(tmp_path):
    with pytest.raises(InputError, match=r"--workdir=.*typo holds no run"):
        write_recommendations(tmp_path / "typo", tmp_path / "typo" / "top.jsonl", k=1)


def test_users_of_unknown_items_alone_are_left_out_and_counted(write, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    path.write_text(
        '{"user_id": 1, "items": ["no"]}\n{"user_id": 2, "items": ["item-3", "z"]}\n{"user_id": 3, "items": ["x", "y"]}'
    )
    (line,) = write(histories=path, unknown_items="drop")
    assert line["user_id"] == 2
    told = capsys.readouterr().err
    assert "some.jsonl: items that the run does not know are passed over, 4 of 5 entries." in told
    assert "some.jsonl: 2 users are left out" in told
    path.write_text('{"user_id": 1, "items": ["nothing"]}\n{"user_id": 2, "items": ["item-3"]}')
    write(histories=path, unknown_items="drop")
    assert "some.jsonl: 1 user is left out" in capsys.readouterr().err
    path.write_text('{"user_id": 1, "items": ["nothing"]}')
    with pytest.raises(InputError, match="the run knows no item of these histories"):
        write(histories=path, unknown_items="drop")


@pytest.mark.parametrize(
    ("lists", "message"),
    [([[1, 40]], "hold item 40"), ([[-1]], "hold item -1"), ([], "no history"), ([[]], "is empty")],
)
def test_histories_that_are_none_of_this_run(loaded, lists, message):
    with pytest.raises(InputError, match=message):
        recommend(*loaded, Histories.from_lists(lists, None), 3)


def test_user_states_and_item_vectors_give_the_same_lists(loaded):
    """What an index of one's own does: inner products, and the largest of them."""
    setup, params = loaded
    histories, table = setup.split.test.history, build_table(setup)(params, setup.place())
    states = user_states(setup, params, histories)
    assert states.shape == (len(histories), TINY_MODEL["dimension"])
    products = states @ np.asarray(table.vectors)[:ITEMS].T
    scores, ids = recommend(setup, params, histories, 5)
    np.testing.assert_allclose(-np.sort(-products, axis=1)[:, :5], scores, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(products, ids, axis=1), scores, atol=1e-6)
    np.testing.assert_array_equal(user_states(setup, params, histories, table=table), states)
    with pytest.raises(InputError, match="hold item 40"):
        user_states(setup, params, Histories.from_lists([[40]], None))
    with pytest.raises(RunError, match="not finite"):
        user_states(setup, jax.tree.map(lambda x: x * np.nan, params), histories)


def test_who_asks_again_waits_for_no_compiler(loaded, caplog):
    setup, params = loaded
    table = build_table(setup)(params, setup.place())
    first, second = (setup.split.test.history.take(np.arange(start, start + 5)) for start in (0, 5))
    recommend(setup, params, first, 4, table=table)
    user_states(setup, params, first, table=table)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        _, ids = recommend(setup, params, second, 4, table=table)
        user_states(setup, params, second, table=table)
        recommend(setup, params, second, 4)  # and makes the table anew
        assert not [r for r in caplog.records if "XLA compilation of" in r.getMessage()]
        recommend(setup, params, second, 29, table=table)
        assert [r for r in caplog.records if "XLA compilation of jit(best)" in r.getMessage()]
    assert (ids != recommend(setup, params, first, 4, table=table)[1]).any()


def test_no_row_beyond_the_catalogue_is_recommended(tmp_path):
    """Tables have more rows than 41 items; where all scores are negative, empty rows would come first."""
    flags = write_tiny(tmp_path / "data", items=41)
    options = {**TINY_MODEL, "item_encoder": "id", "loss": "bce", "score": "dot", "temperature": 1.0, "epochs": 4}
    metrics = train(Config().replace(**flags, **options), tmp_path / "run")
    assert metrics["parameters"]["item_encoder"] == 41 * TINY_MODEL["dimension"]
    setup, params = load_run(tmp_path / "run")
    scores, ids = recommend(setup, params, setup.split.test.history, 41)
    assert scores.min() < 0
    assert (np.sort(ids, axis=1) == np.arange(41)).all()


def test_a_run_that_has_not_ended_says_so(run, loaded, tmp_path, monkeypatch, capsys):
    shutil.copy(run / "config.json", tmp_path)
    monkeypatch.setattr(restore, "load_run", lambda workdir, files, cold_scale: loaded)
    for folder, told in ((tmp_path, 1), (run, 0)):
        write_recommendations(folder, tmp_path / "top.jsonl", k=1)
        assert capsys.readouterr().err.count("has not come to its end") == told


def test_two_lines_of_one_user_are_refused(write, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"user_id": 1, "items": ["item-3"]}\n{"user_id": "1", "items": ["item-3"]}\n')
    assert len(write(histories=path)) == 2  # 1 and "1" are two
    path.write_text('{"user_id": 1, "items": ["item-3"]}\n\n{"user_id": 1, "items": ["item-4"]}\n')
    with pytest.raises(InputError, match=r"twice.jsonl, line 3: user 1 stands in line 1, too"):
        write(histories=path)


def test_damaged_parameters_are_told(loaded):
    setup, params = loaded
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(RunError, match="scores are not finite"):
        recommend(setup, broken, setup.split.test.history, 3)


def test_folders_without_a_trained_run(tmp_path, tiny_config):
    with pytest.raises(InputError, match=r"holds no run \(no config.json\)"):
        write_recommendations(tmp_path, tmp_path / "top.jsonl", k=1)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.to_dict()))
    with pytest.raises(InputError, match="holds no trained model yet"):
        write_recommendations(tmp_path, tmp_path / "top.jsonl", k=1)


def test_a_run_that_is_used_from_another_folder(tmp_path, monkeypatch):
    files = write_tiny(tmp_path / "data")
    config = Config().replace(**{**files, "interactions": "interactions.tsv"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"was trained on interactions.tsv, .* no such file from .*the folder .*--interactions=FILE"
    ):
        load_run(tmp_path / "run")


def test_files_and_caches_of_a_run_may_lie_elsewhere(tmp_path):
    moved = write_tiny(tmp_path / "moved")
    there = Config().replace(**{**moved, "interactions": "/gone/interactions.tsv", "data_dir": "/gone/cache"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(there.replace(embeddings="").to_dict()))
    files = {"interactions": Path(moved["interactions"]), "data_dir": tmp_path / "cache"}
    found = read_run(tmp_path / "run", files)
    assert (found.data.interactions, found.data.data_dir) == (moved["interactions"], str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"--embeddings=.*was trained without such a file; leave it out"):
        read_run(tmp_path / "run", {"embeddings": Path(moved["embeddings"])})
    with pytest.raises(InputError, match=r"none\.tsv: no such file"):
        read_run(tmp_path / "run", {"interactions": tmp_path / "none.tsv"})


def test_a_run_is_not_used_with_other_data(tiny_config, tmp_path):
    """Neither to recommend nor to train on; and the checkpoints stay sound for the old files."""
    data = tmp_path / "data"
    config = tiny_config.replace(**write_tiny(data), epochs=1)
    train(config, tmp_path / "run")
    output = tmp_path / "top.jsonl"

    def more_interactions():
        with (data / "interactions.tsv").open("a") as file:
            file.write("1000\titem-1\t9000000\n")

    def more_items():
        with (data / "items.jsonl").open("a") as file:
            file.write('{"item_id": "new", "title": "New"}\n')
        matrix = np.load(data / "embeddings.npy")
        np.save(data / "embeddings.npy", np.vstack([matrix, np.ones((1, matrix.shape[1]), matrix.dtype)]))

    def another_rank():
        np.save(data / "embeddings.npy", np.load(data / "embeddings.npy")[:, :20])

    def same_text():
        np.save(data / "embeddings.npy", np.ones_like(np.load(data / "embeddings.npy")))

    for change in (more_interactions, more_items, another_rank, same_text):
        change()
        with pytest.raises(InputError, match="was trained on other data than its files hold now"):
            write_recommendations(tmp_path / "run", output, k=1)
        given = {name: data / file for name, file in (("items", "items.jsonl"), ("embeddings", "embeddings.npy"))}
        with pytest.raises(
            InputError, match=r"With --items=.*\.jsonl and --embeddings=.*\.npy, the data are not those"
        ):
            write_recommendations(tmp_path / "run", output, k=1, files=given)
        assert not output.exists()
        if change is more_items:  # the tables have another shape, which must not pass for a damaged checkpoint
            with pytest.raises(InputError, match="was trained on other data than its files hold now"):
                train(config.replace(epochs=2), tmp_path / "run")
        write_tiny(data)
    assert write_recommendations(tmp_path / "run", output, k=1) == 60


def test_the_command(run, run_command, tmp_path):
    output = tmp_path / "top.jsonl"
    done = run_command("recommend", {"workdir": run, "k": 3, "output": output})
    assert done.returncode == 0, done.stderr
    assert f"60 users: {output}" in done.stdout
    write_recommendations(run, tmp_path / "same.jsonl", k=3)
    assert output.read_text() == (tmp_path / "same.jsonl").read_text()


def test_until_is_not_for_histories_of_ones_own(run, run_command):
    done = run_command("recommend", {"workdir": run, "histories": "new.jsonl", "until": "now"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: --until goes with the run's own users, --histories brings others")


def test_the_command_says_what_is_missing(run_command):
    done = run_command("recommend", {"k": 3})
    assert done.returncode == 2
    assert done.stderr == "error: Name the run: --workdir=DIR.\n"
