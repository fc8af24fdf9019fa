"""Tables as tools really write them: times of every kind, damaged text, very long cells; and what is said of them."""

import gzip
import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spectran_jax.config import Config
from spectran_jax.data import files, sources
from spectran_jax.errors import InputError


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


TIMES = {
    "nanoseconds": pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns")),
    "far": pa.array([2**60, 0], pa.timestamp("us")),
    "nowhere": pa.array([0, 1], pa.timestamp("s", tz="Nowhere/Land")),
    "durations": pa.array([5, 7], pa.duration("ns")),
    "dates": pa.array([0, 1], pa.date32()),
    "clock": pa.array([0, 1], pa.time64("ns")),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_of_items_are_no_text_and_need_no_pandas(tmp_path, name):
    items = files.read_items(parquet(tmp_path / "i.parquet", item_id=["a", "b"], title=["x", "y"], at=TIMES[name]))
    assert items.text_columns == ("title",)
    assert all(type(entry) is str for entry in items.columns["at"])


@pytest.mark.parametrize("name", ["nanoseconds", "far", "nowhere", "durations"])
@pytest.mark.parametrize("kind", ["list", "struct"])
def test_a_time_within_an_entry_that_python_has_none_of_is_named(tmp_path, name, kind):
    times = TIMES[name]
    nested = {
        "list": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), times),
        "struct": pa.StructArray.from_arrays([times], ["t"]),
    }
    path = parquet(tmp_path / "i.parquet", item_id=["a", "b"], at=nested[kind])
    with pytest.raises(InputError, match=rf"i\.parquet: column 'at' holds a time within {kind}<.*; write it as text"):
        files.read_items(path)


def test_a_missing_nanosecond_is_blamed_on_its_row(tmp_path):
    path = parquet(tmp_path / "c.parquet", user_id=["u", "u"], item_id=["a", "b"], timestamp=TIMES["nanoseconds"])
    with pytest.raises(InputError, match=r"c\.parquet, row 2: timestamp is empty"):
        files.read_interactions(path)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pa.array([1, 2**64 - 1], pa.uint64()), "row 2: timestamp '18446744073709551615' is too large"),
        (pa.array([True, False]), "row 1: timestamp 'True' is no time"),
    ],
)
def test_numbers_that_are_no_times_are_told_as_what_they_are(tmp_path, times, message):
    path = parquet(tmp_path / "c.parquet", user_id=["u", "u"], item_id=["a", "b"], timestamp=times)
    with pytest.raises(InputError, match=message):
        files.read_interactions(path)


@pytest.mark.parametrize("zone", ["", "Z"])
def test_written_times_may_lie_beyond_what_nanoseconds_reach(write, zone):
    lines = [f"u,a,9999-12-31T00:00:00{zone}", f"u,b,0001-01-01T00:00:00.25{zone}"]
    found = files.read_interactions(write("c.csv", "\n".join(["user_id,item_id,timestamp", *lines])))
    assert found.timestamps.tolist() == [253_402_214_400, -62_135_596_800]
    assert found.nanoseconds.tolist() == [0, 250_000_000]


@pytest.mark.parametrize("column", ["item_id", "title"])
def test_text_that_is_no_utf8_is_named(tmp_path, column):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    columns = {"item_id": ["a"], "title": ["x"], column: bad}
    with pytest.raises(InputError, match=f"column '{column}' holds text that is not valid UTF-8"):
        files.read_items(parquet(tmp_path / "i.parquet", **columns))


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("-1700000000000", "line 3: timestamp '-1700000000000' looks like milliseconds"),
        ("-9223372036854775808", "line 3: timestamp .* looks like milliseconds"),
        ("1e30", "line 3: timestamp '1e30' is too large"),
        ("18446744073709551615", "line 3: timestamp '18446744073709551615' is too large"),
        ("0x10", "line 3: timestamp '0x10' is no time"),
        ("0x18BCFE56800", "line 3: timestamp '0x18BCFE56800' is no time"),
        ("\u0661\u0662", "line 3: timestamp '\u0661\u0662' is no time"),
    ],
)
def test_times_that_are_none(tmp_path, time, message):
    (tmp_path / "c.csv").write_text(f"user_id,item_id,timestamp\nu,a,-5\nu,b,{time}\n")
    with pytest.raises(InputError, match=message):
        files.read_interactions(tmp_path / "c.csv")


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("i.csv", 'item_id,title\n1,"Rocky\n2,Foo\n3,Bar', 2),
        ("i.csv", 'item_id,title\n1,"two\nlines"\n2,5" disk\n\n3,"Bar\n4,Foo', 6),  # quotes are even in number
        ("i.csv.gz", 'item_id,title\n1,a\n2,"Foo\n3,Bar ""x""', 3),
        ("i.tsv", '"item_id"\t"title"\n1\t"Rocky\n2\tFoo', 2),
        ("i.csv", 'item_id,title,year\n1,"Rocky,1976\n2,Foo,1980', 2),
    ],
)
def test_a_quote_that_nothing_closes_takes_no_rows(tmp_path, name, text, line, end):
    data = (text + end).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(InputError, match=rf'{name}, line {line}: a cell opens with a quote \("\) that nothing closes'):
        files.read_items(tmp_path / name)


@pytest.mark.parametrize("end", ["", "\n"])
def test_quotes_that_are_closed_or_text_are_read(tmp_path, end):
    (tmp_path / "i.csv").write_text('item_id,title\n1,"two\nlines"\n\n2,5" disk\n3,"say ""a"""' + end)
    assert files.read_items(tmp_path / "i.csv").columns["title"] == ["two\nlines", '5" disk', 'say "a"']
    (tmp_path / "i.tsv").write_text('item_id\ttitle\n1\t"Rocky\n2\tFoo' + end)  # quotes are text there
    assert files.read_items(tmp_path / "i.tsv").columns["title"] == ['"Rocky', "Foo"]


def test_dates_without_dashes_are_no_seconds(tmp_path):
    def read(*times):
        path = parquet(tmp_path / "c.parquet", user_id=["u"] * len(times), item_id=["a"] * len(times), timestamp=times)
        return files.read_interactions(path).timestamps.tolist()

    (tmp_path / "c.csv").write_text("user_id,item_id,timestamp\nu,a,20200229\nu,b,20210301\n")
    with pytest.raises(InputError, match=r"line 2: timestamp '20200229' is a date without dashes.*write 2026-01-31"):
        files.read_interactions(tmp_path / "c.csv")
    with pytest.raises(InputError, match="row 1: timestamp '19900101' is a date without dashes"):
        read(19900101, 21001231)
    for seconds in (20210229, 20211301, 20210001, 19891231, 21010101):  # no days, or none of these years
        assert read(20200229, seconds) == [20200229, seconds]
    assert read(20200229.0, 20200301.5) == [20200229, 20200301]
    dates = pa.array([20200229, 20200301], pa.int64()).cast(pa.timestamp("s"))
    assert read(*dates.to_pylist()) == [20200229, 20200301]


def test_a_cell_of_megabytes_is_read(tmp_path):
    (tmp_path / "i.csv").write_text(f"item_id,text\na,{'word ' * 600_000}\nb,short\n")
    items = files.read_items(tmp_path / "i.csv")
    assert [len(text) for text in items.columns["text"]] == [2_999_999, 5]


def test_only_the_suffixes_of_recbole_are_cut_off(tmp_path):
    (tmp_path / "i.csv").write_text("item_id:token,price: EUR,price: USD,genre:token_seq\na,1,2,x\n")
    assert list(files.read_items(tmp_path / "i.csv").columns) == ["price: EUR", "price: USD", "genre"]


def test_duplicates_are_named_by_their_lines(tmp_path):
    (tmp_path / "i.csv").write_text('item_id,text\n\na,"two\nlines"\na,x\n')
    with pytest.raises(InputError, match="the first 'a' in lines 3 and 5"):
        files.read_items(tmp_path / "i.csv")


def test_kinds_of_items_are_all_named(tmp_path):
    (tmp_path / "i.txt").write_text("x")
    with pytest.raises(InputError, match=r"unknown kind of file '\.txt'; use \.jsonl, .*\.parquet"):
        files.read_items(tmp_path / "i.txt")


def test_lists_within_lists_are_one_message(tmp_path):
    (tmp_path / "i.jsonl").write_text('{"item_id": "a", "x": ' + "[" * 900 + "]" * 900 + "}\n")
    with pytest.raises(InputError, match=r"i\.jsonl(, line 1)?: "):
        files.read_items(tmp_path / "i.jsonl")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_nobody_may_look_into(tmp_path):
    (tmp_path / "shut").mkdir(mode=stat.S_IWUSR)
    with pytest.raises(InputError, match="Permission denied"):
        files.read_items(tmp_path / "shut" / "i.csv")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        files.read_items(tmp_path / ("x" * 300 + ".csv"))


def test_a_file_that_changes_while_it_is_read_is_refused(tiny_flags, tmp_path, monkeypatch):
    for name in ("interactions", "items"):
        (tmp_path / name).with_suffix(".tsv" if name == "interactions" else ".jsonl").write_bytes(
            Path(tiny_flags[name]).read_bytes()
        )
    own = {"interactions": str(tmp_path / "interactions.tsv"), "items": str(tmp_path / "items.jsonl")}
    config = Config().replace(**{**tiny_flags, **own, "data_dir": str(tmp_path / "cache")})
    read = files.read_interactions

    def meanwhile(path):
        with path.open("a") as file:
            file.write("9\titem-1\t5\n")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_interactions", meanwhile)
        with pytest.raises(InputError, match=r"interactions\.tsv was changed while it was read"):
            sources.load(config)
    assert not list((tmp_path / "cache").rglob("prepared/files-*")), "nothing is kept under the wrong digest"
    assert sources.load(config).num_users == 60
