"""Interactions reduced with Beam, on this machine, against the same rows read by `load` from one file."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.data.reduction import Filters, reduce_interactions
from spectran_jax.errors import InputError


@pytest.fixture
def logs(tmp_path):
    """Files of three kinds, the same rows in one, and the catalogue; times have ties, items are hot and rare."""
    rng = np.random.default_rng(3)
    rows = [(f"u{rng.integers(40)}", int(40 * rng.random() ** 2), int(rng.integers(20))) for _ in range(600)]
    header = "user_id\titem_id\ttimestamp\n"
    text = lambda rows: header + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows)  # noqa: E731
    (tmp_path / "part-0.tsv").write_text(text(rows[:200]))
    (tmp_path / "part-1.tsv").write_text(text(rows[200:210]))
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*rows[210:], strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "part-2.parquet")
    (tmp_path / "whole.tsv").write_text(text(rows))
    catalogue = [json.dumps({"item_id": item, "title": f"Thing {item}"}) for item in range(36)]
    (tmp_path / "items-0.jsonl").write_text("\n".join(catalogue[:20]))
    (tmp_path / "items-1.jsonl").write_text("\n".join(catalogue[20:]))
    (tmp_path / "items.jsonl").write_text("\n".join(catalogue))
    return tmp_path


def reduced(logs, *, output="out.parquet", **filters):
    interactions, items = ([f"{logs}/{name}-*"] for name in ("part", "items"))
    return reduce_interactions(interactions, items, str(logs / output), Filters(**filters))


def loaded(logs, interactions, **options):
    config = Config().replace(
        dataset="files",
        interactions=str(logs / interactions),
        items=str(logs / "items.jsonl"),
        data_dir=str(logs / "cache"),
        split="temporal",  # keeps short histories
        **options,
    )
    return data.load(config)


def histories(dataset):
    """By user: items by their own ids, with their times."""
    found = {}
    for user, name in enumerate(dataset.user_ids):
        times = dataset.histories.timestamps[slice(*dataset.histories.offsets[user : user + 2])]
        items = [dataset.item_ids[item] for item in dataset.histories[user]]
        found[name] = list(zip(items, times.tolist(), strict=True))
    return found


def test_the_core_and_the_histories_are_those_of_one_machine(logs):
    counts = reduced(logs, k_core=9, unknown_items="drop")
    expected = loaded(logs, "whole.tsv", k_core=9, unknown_items="drop")
    for options in ({"k_core": 9}, {}):
        assert histories(loaded(logs, "out.parquet", **options)) == histories(expected)
    assert loaded(logs, "out.parquet", k_core=9).item_ids == expected.item_ids
    assert expected.dropped["k_core_users"] > 1
    assert counts["files"] == 3
    assert (counts["users"], counts["interactions"]) == (expected.num_users, expected.num_interactions)
    assert counts["unknown_items"] == expected.dropped["unknown_items"]
    assert counts["interactions"] + counts["unknown_items"] + counts["k_core"] == 600
    table = pq.read_table(logs / "out.parquet")
    assert [str(column.type) for column in table.columns] == ["string", "int64", "int64", "int64"]
    assert not list(logs.glob("*.tmp-*"))


def test_the_newest_of_each_user(logs):
    before = histories(loaded(logs, "whole.tsv", unknown_items="drop"))
    (logs / "out.parquet").write_text("what was there before")
    counts = reduced(logs, newest=7, unknown_items="drop")
    assert histories(loaded(logs, "out.parquet")) == {user: history[-7:] for user, history in before.items()}
    assert counts["older"] == sum(max(len(history) - 7, 0) for history in before.values())


def test_positions_without_times_and_without_a_catalogue(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,position\n7,x,2\n8,y,0\n7,y,0\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,position\n7,z,1\n")
    counts = reduce_interactions([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"], [], f"{tmp_path}/o.parquet", Filters())
    assert counts == {"files": 2, "users": 2, "interactions": 4}
    rows = sorted(pq.read_table(tmp_path / "o.parquet").to_pylist(), key=lambda row: (row["user_id"], row["position"]))
    assert [tuple(row.values()) for row in rows] == [(7, "y", 0), (7, "z", 1), (7, "x", 2), (8, "y", 0)]


def test_a_file_of_another_system_is_named_as_it_was_given():
    """What workers copy to read it does not show in messages."""
    from apache_beam.io.filesystems import FileSystems

    from spectran_jax.data import reduction

    path = "/nowhere/part-9.tsv"
    original, reduction.FileSystems = FileSystems, _Memory(b"user_id\titem_id\tposition\n1\t2\t0\n3\n")
    try:
        found = list(reduction._rows_of((0, path)))
    finally:
        reduction.FileSystems = original
    assert json.loads(found[0].value)["error"].startswith(f"{path}, line 3: too few columns")


class _Memory:
    def __init__(self, content):
        self.content = content

    def open(self, path, compression_type):
        import io

        return io.BytesIO(self.content)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda d: (d / "part-1.tsv").write_text("user_id\titem_id\ttimestamp\n1\t2\t3\n1\t2\n"), {},
         r"part-1\.tsv, line 3: too few columns"),
        (lambda d: (d / "part-1.tsv").write_text("user_id\titem_id\tposition\n1\t2\t3\n"), {},
         r"part-1\.tsv: no column timestamp, which other files"),
        (lambda d: (d / "items-1.jsonl").write_text('{"item_id": 3}\n'), {}, "item id '3' has 2 rows"),
        (lambda d: (d / "items-1.jsonl").write_text('{"id": 3}\n'), {}, r"items-1\.jsonl, line 1: no item_id"),
        (lambda d: None, {}, r"part-0\.tsv: \d+ interactions name \d items that .*items-0.*--unknown_items=drop"),
        (lambda d: None, {"unknown_items": "drop", "k_core": 60}, "no interactions are left .*lower --k_core"),
        (lambda d: None, {"output": "out.tsv"}, "what is written is Parquet"),
        (lambda d: None, {"output": "none/out.parquet"}, "there is no folder .*none"),
        (lambda d: [path.unlink() for path in d.glob("part-*")], {}, "--interactions=.*: no such file"),
    ],
)  # fmt: skip
def test_bad_input_is_named(logs, spoil, options, message):
    spoil(logs)
    with pytest.raises(InputError, match=message):
        reduced(logs, **options)
    assert not list(logs.glob("out*"))


def test_the_command(logs, run_command):
    flags = {"interactions": f"{logs}/part-*", "items": f"{logs}/items-*", "output": logs / "o.parquet"}
    done = run_command("prepare", {**flags, "unknown_items": "drop", "beam": "--runner=DirectRunner"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("files: 3\nusers: 40\n")
    assert done.stderr.splitlines() == ["Reading 3 files of interactions ...", "Ordering histories ..."]
    done = run_command("prepare", flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_without_beam_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("apache_beam")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "spectran_jax.data.reduction")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install 'spectran-jax\[beam\]'"):
        import spectran_jax.data.reduction  # noqa: F401
