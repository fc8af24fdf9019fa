"""Interactions reduced with Beam, on this machine, against the same rows read by `load` from one file."""

import gzip
import io
import json
import os
import re
import signal
import sys
import time
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.data import beam_steps
from spectran_jax.data.reduction import Filters, reduce_interactions
from spectran_jax.errors import InputError, Interrupted, RunError


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
    assert counts["interactions"] + counts["unknown_items"] + counts["k_core_interactions"] == 600
    table = pq.read_table(logs / "out.parquet")
    assert [str(column.type) for column in table.columns] == ["string", "int64", "int64", "int64"]
    times = [[time for _, time in history] for history in histories(expected).values()]
    assert counts["placed_by_file_order"] == sum(len(time) - len(set(time)) for time in times) > 10
    assert not list(logs.glob("*.tmp-*"))


def test_the_newest_of_each_user(logs):
    before = histories(loaded(logs, "whole.tsv", unknown_items="drop"))
    (logs / "out.parquet").write_text("what was there before")
    counts = reduced(logs, newest=7, unknown_items="drop")
    assert histories(loaded(logs, "out.parquet")) == {user: history[-7:] for user, history in before.items()}
    assert counts["older_interactions"] == sum(max(len(history) - 7, 0) for history in before.values())


def test_positions_without_times_and_without_a_catalogue(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,position\n7,x,2\n8,y,0\n7,y,0\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,position\n7,z,1\n")
    (tmp_path / "folder").mkdir()  # which a pattern may meet, and passes over
    counts = reduce_interactions([f"{tmp_path}/*"], [], f"{tmp_path}/o.parquet", Filters())
    assert counts == {"files": 2, "users": 2, "interactions": 4}
    rows = sorted(pq.read_table(tmp_path / "o.parquet").to_pylist(), key=lambda row: (row["user_id"], row["position"]))
    assert [tuple(row.values()) for row in rows] == [(7, "y", 0), (7, "z", 1), (7, "x", 2), (8, "y", 0)]


def test_a_part_of_the_catalogue_without_items_is_passed_over(tmp_path):
    (tmp_path / "clicks.csv").write_text("user_id,item_id,position\n7,x,2\n")
    (tmp_path / "items-0.csv").touch()
    (tmp_path / "items-1.csv").write_text("item_id\nx\n")
    counts = reduce_interactions([f"{tmp_path}/c*"], [f"{tmp_path}/items-*"], f"{tmp_path}/o.parquet", Filters())
    assert counts["interactions"] == 1


def test_parts_of_a_second_order_and_are_no_ties(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n7,x,5.5\n7,y,5.25\n7,z,6\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\n7,w,5.25\n")
    counts = reduce_interactions([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"], [], f"{tmp_path}/o.parquet", Filters())
    assert counts == {"files": 2, "users": 1, "interactions": 4, "placed_by_file_order": 1}
    rows = sorted(pq.read_table(tmp_path / "o.parquet").to_pylist(), key=lambda row: row["position"])
    assert [(row["item_id"], row["timestamp"]) for row in rows] == [("y", 5), ("w", 5), ("x", 5), ("z", 6)]


def test_what_is_said_again_is_counted_or_dropped_before_the_core(logs):
    first = (logs / "part-0.tsv").read_text()
    (logs / "part-3.tsv").write_text(first)  # a log that overlaps another
    (logs / "whole.tsv").write_text((logs / "whole.tsv").read_text() + first.partition("\n")[2])
    expected = loaded(logs, "whole.tsv", k_core=9, unknown_items="drop", duplicates="drop")
    counts = reduced(logs, k_core=9, unknown_items="drop", duplicates="drop")
    assert histories(loaded(logs, "out.parquet")) == histories(expected)
    assert counts["duplicates"] == expected.dropped["duplicates"] > 150
    assert "said_again" not in counts
    assert reduced(logs, unknown_items="drop")["said_again"] == counts["duplicates"]


def test_what_is_left_after_a_cut_trains_with_a_core_of_one(logs):
    """Items whose interactions all went leave the catalogue, and no other."""
    reduced(logs, k_core=9, newest=4, unknown_items="drop")
    core = histories(loaded(logs, "whole.tsv", k_core=9, unknown_items="drop"))
    dataset = loaded(logs, "out.parquet", k_core=1)
    assert histories(dataset) == {user: history[-4:] for user, history in core.items()}
    assert set(dataset.item_ids) == {item for history in core.values() for item, _ in history[-4:]}


def test_kinds_of_files_and_of_ids(tmp_path):
    header = "user_id,item_id,timestamp,position\n"
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(header + "7,007,5,1\n7,12,5,0\n")
    (tmp_path / "b.csv").write_text(header)  # an hour in which nothing happened
    (tmp_path / "d.csv").write_text("")
    pq.write_table(
        pa.table({"user_id": [7, 9], "item_id": [12, 3], "timestamp": [4, 4], "position": [0, 0]}),
        tmp_path / "c.parquet",
    )
    counts = reduce_interactions([f"{tmp_path}/*"], [], f"{tmp_path}/o.parquet", Filters())
    assert counts == {"files": 4, "users": 2, "interactions": 4}
    rows = sorted(pq.read_table(tmp_path / "o.parquet").to_pylist(), key=lambda row: (row["user_id"], row["position"]))
    assert [tuple(row.values()) for row in rows] == [(7, "12", 4, 0), (7, "12", 5, 1), (7, "007", 5, 2), (9, "3", 4, 0)]


def test_ids_of_64_bits_without_a_sign(tmp_path):
    large = 2**63 + 5
    columns = {"user_id": pa.array([1, large], pa.uint64()), "item_id": pa.array([large, 2], pa.uint64())}
    pq.write_table(pa.table({**columns, "timestamp": [4, 4]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\n7,-3,5\n")
    reduce_interactions([f"{tmp_path}/a.*", f"{tmp_path}/b.*"], [], f"{tmp_path}/o.parquet", Filters())
    rows = sorted(tuple(row.values())[:2] for row in pq.read_table(tmp_path / "o.parquet").to_pylist())
    assert rows == [(1, str(large)), (7, "-3"), (large, "2")]  # no type holds both -3 and 2**63 + 5


def test_another_file_system_without_folders(logs):
    for path in logs.iterdir():
        Shelf.files[f"shelf://logs/{path.name}"] = path.read_bytes()
    before = dict(Shelf.files)
    counts = reduce_interactions(
        ["shelf://logs/part-*"], ["shelf://logs/items-*"], "shelf://made/out.parquet", Filters(3, 0, "drop")
    )
    made = Shelf.files.pop("shelf://made/out.parquet")
    assert Shelf.files == before
    (logs / "out.parquet").write_bytes(made)
    expected = loaded(logs, "whole.tsv", k_core=3, unknown_items="drop")
    assert histories(loaded(logs, "out.parquet", k_core=3)) == histories(expected)
    assert counts["interactions"] == expected.num_interactions
    Shelf.files["shelf://logs/part-1.tsv"] += b"7\n"
    with pytest.raises(InputError, match=r"^shelf://logs/part-1\.tsv, line 12: too few columns"):
        reduce_interactions(["shelf://logs/part-*"], [], "shelf://made/out.parquet", Filters())


class Shelf(FileSystem):
    """Files in memory, by their whole names, as an object store has them."""

    files: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def scheme(cls):
        return "shelf"

    def join(self, path, *parts):
        return "/".join([path, *parts])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, folder):
        return [FileMetadata(name, len(self.files[name])) for name in sorted(self.files) if name.startswith(folder)]

    def create(self, path, mime_type=None, compression_type=None):
        files = self.files

        class Written(io.BytesIO):
            def close(self):
                if not self.closed:
                    files[path] = self.getvalue()
                super().close()

        return Written()

    def open(self, path, mime_type=None, compression_type=None):
        return io.BytesIO(self.files[path])

    def copy(self, sources, destinations):
        for source, destination in zip(sources, destinations, strict=True):
            self.files[destination] = self.files[source]

    def rename(self, sources, destinations):
        self.copy(sources, destinations)
        self.delete(sources)

    def exists(self, path):
        return path in self.files

    def size(self, path):
        return len(self.files[path])

    def last_updated(self, path):
        return 0

    def checksum(self, path):
        return str(self.size(path))

    def metadata(self, path):
        return FileMetadata(path, self.size(path))

    def delete(self, paths):
        for path in paths:
            for match in self.match([path + "*" if path.endswith("/") else path]):
                for file in match.metadata_list:
                    del self.files[file.path]


def test_an_output_that_can_not_be_replaced_leaves_the_result_and_says_where(logs, monkeypatch):
    original = FileSystems.rename

    def rename(sources, destinations):
        if destinations == [str(logs / "out.parquet")]:
            raise OSError("no space left")
        original(sources, destinations)

    (logs / "out.parquet").write_text("before")
    monkeypatch.setattr(FileSystems, "rename", rename)
    with pytest.raises(RunError, match=r"no space left\); the result is .*histories\.parquet"):
        reduced(logs, unknown_items="drop")
    assert (logs / "out.parquet").read_text() == "before"
    (made,) = logs.glob("out.parquet.tmp-*/histories.parquet")
    assert pq.read_table(made).num_rows == 575


def test_a_pipeline_that_fails_is_one_message(logs, monkeypatch, caplog):
    def fall(*_):
        raise RuntimeError("a worker fell over")

    monkeypatch.setattr(beam_steps, "_age", fall)
    with pytest.raises(RunError, match=r"^A pipeline of Apache Beam failed: .*a worker fell over"):
        reduced(logs, unknown_items="drop")
    assert not caplog.records
    assert not list(logs.glob("*.tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("inside", [False, True])
def test_a_signal_to_stop_leaves_nothing(logs, monkeypatch, number, inside):
    before = sorted(logs.iterdir())
    stop = lambda *_: signal.raise_signal(number)  # noqa: E731
    progress = (lambda line: None) if inside else stop
    if inside:
        monkeypatch.setattr(beam_steps, "_age", stop)
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with pytest.raises(
            Interrupted, match=rf"^Stopped by {number.name}; start the same command again, which begins anew\.$"
        ):
            reduce_interactions([f"{logs}/part-*"], [], f"{logs}/o.parquet", Filters(), progress=progress)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, previous)
    assert sorted(logs.iterdir()) == before


def test_what_killed_reductions_left_goes(logs):
    past = time.time() - 2 * 24 * 3600
    for name, file in (("killed", "rows-0"), ("running", "rows-0"), ("unpublished", "histories.parquet")):
        folder = logs / f"out.parquet.tmp-{name}"
        folder.mkdir()
        (folder / file).write_text("")
        for path in (folder / file, folder) if name != "running" else ():
            os.utime(path, (past, past))
    reduced(logs, unknown_items="drop")
    assert {path.name[16:] for path in logs.glob("*.tmp-*")} == {"running", "unpublished"}


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda d: (d / "part-1.tsv").write_text("user_id\titem_id\ttimestamp\n1\t2\t3\n1\t2\n"), {},
         r"part-1\.tsv, line 3: too few columns"),
        (lambda d: (d / "part-1.tsv").write_text("user_id\titem_id\tposition\n1\t2\t3\n"), {},
         r"part-0\.tsv: no column position, which other files .* have; columns found: user_id, item_id, timestamp\.$"),
        (lambda d: (d / "part-0.tsv").write_text("user_id\titem_id\tposition\ttimestmap\n1\t2\t3\t4\n"), {},
         r"part-0\.tsv: no column timestamp, which other files .*\. Rename 'timestmap' to 'timestamp'\?$"),
        (lambda d: (d / "part-1.tsv").write_text("user_id\titem_id\ttimestmap\n1\t2\t3\n"), {},
         r"part-1\.tsv: no column timestamp or position .*\. Rename 'timestmap' to 'timestamp'\?$"),
        (lambda d: (d / "items-1.jsonl").write_text('{"item_id": 3}\n'), {}, "item id '3' has 2 rows"),
        (lambda d: (d / "items-1.jsonl").write_text('{"id": 3}\n'), {}, r"items-1\.jsonl, line 1: no item_id"),
        (lambda d: None, {}, r"part-0\.tsv: \d+ interactions of \d items that .*items-\*.*--unknown_items=drop"),
        (lambda d: None, {"unknown_items": "drop", "k_core": 60}, "no interactions are left .*lower --k_core"),
        (lambda d: None, {"output": "out.tsv"}, "name one Parquet file"),
        (lambda d: None, {"output": "part-*.parquet"}, "name one Parquet file"),
        (lambda d: None, {"output": "part-2.parquet"}, "is one of the files to read"),
        (lambda d: (d / "folder.parquet").mkdir(), {"output": "folder.parquet"}, "is a folder"),
        (lambda d: None, {"output": "none/out.parquet"}, "there is no folder .*none"),
        (lambda d: [path.unlink() for path in d.glob("part-*")], {}, "--interactions=.*: no such file"),
    ],
)  # fmt: skip
def test_bad_input_is_named(logs, spoil, options, message):
    spoil(logs)
    (logs / "out.parquet").write_text("before")
    before = sorted(logs.iterdir())
    with pytest.raises(InputError, match=message):
        reduced(logs, **options)
    assert sorted(logs.iterdir()) == before
    assert (logs / "out.parquet").read_text() == "before"


def test_the_command(logs, run_command):
    flags = {"interactions": f"{logs}/part-*", "items": f"{logs}/items-*", "output": logs / "o.parquet"}
    done = run_command("prepare", {**flags, "unknown_items": "drop", "beam": "--runner=DirectRunner"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("files: 3\nusers: 40\n")
    assert re.search(r"^left out: \d+ interactions with unknown items$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^said again: \d+, the same user, .* --duplicates=drop takes each once$", done.stdout, re.MULTILINE
    )
    assert done.stderr.splitlines() == ["Reading 3 files of interactions ...", "Ordering histories ..."]
    done = run_command("prepare", {**flags, "beam": "--runner=DataflowRunner"})  # all that it wants is one line
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "region" in done.stderr.splitlines()[-1]


def test_items_in_another_spelling_are_told(tmp_path):
    """As `load` tells them, though the catalogue is nowhere held at once."""
    rows = "".join(f"u\t{item}\t{item}\n" for item in range(5))
    (tmp_path / "i.tsv").write_text("user_id\titem_id\ttimestamp\n" + rows)
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{item}.0,thing\n" for item in range(9)))
    paths = [str(tmp_path / "i.tsv")], [str(tmp_path / "items.csv")], str(tmp_path / "out.parquet")
    told = r"3 of them are there in another spelling, '0' as '0.0': write whole numbers without .0 .* of the others, "
    with pytest.raises(InputError, match=f"5 interactions of 5 items that .*{told}add them"):
        reduce_interactions(*paths, Filters())
    with pytest.raises(InputError, match=f"no interactions are left .*{told}lower"):
        reduce_interactions(*paths, Filters(unknown_items="drop"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_an_unknown_runner(logs):
    with pytest.raises(InputError, match=r"Nonsense"):
        reduce_interactions([f"{logs}/part-*"], [], f"{logs}/o.parquet", Filters(), options=["--runner=Nonsense"])


def test_without_beam_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("apache_beam")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "spectran_jax.data.reduction")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install '\.\[beam\]'"):
        import spectran_jax.data.reduction  # noqa: F401
