import datetime
import decimal
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from spectran_jax.data.content import assemble, join_text, to_dataset
from spectran_jax.data.files import histories_by_user, read_interactions, read_items
from spectran_jax.errors import InputError

INTERACTIONS = "user_id\titem_id\ttimestamp\nann\tb\t3\nbob\ta\t1\nann\ta\t2\nann\tc\t3\n"
ITEMS = '{"item_id": "a", "title": "Ant"}\n{"item_id": "b", "title": ""}\n{"item_id": "c"}\n{"item_id": "d"}\n'


def rows(content):
    """Original item ids of each user."""
    return {
        user: [content.item_ids[item] for item in content.histories[index]]
        for index, user in enumerate(content.user_ids)
    }


def read(interactions, items, **options):
    return assemble(read_interactions(interactions), read_items(items), **options)


def test_histories_are_in_order_of_time_and_ties_keep_file_order(write):
    content = read(write("i.tsv", INTERACTIONS), write("items.jsonl", ITEMS))
    assert rows(content) == {"ann": ["a", "b", "c"], "bob": ["a"]}
    assert content.histories.timestamps.tolist() == [2, 3, 3, 1]
    assert content.item_ids == ["a", "b", "c", "d"]
    assert content.items_row.tolist() == [0, 1, 2, 3]
    assert content.dropped == {}


def as_parquet(path, interactions):
    table = pyarrow.csv.read_csv(
        pa.BufferReader(interactions.encode()), parse_options=pyarrow.csv.ParseOptions(delimiter="\t")
    )
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize(
    "kind", ["tsv", "csv", "parquet", "tsv.gz", "TSV.GZ", "inter", "crlf", "bom", "quoted", "jsonl", "jsonl.gz"]
)
def test_all_forms_of_interactions_say_the_same(write, tmp_path, kind):
    path = tmp_path / f"i.{kind}"
    if kind == "parquet":
        as_parquet(path, INTERACTIONS)
    elif kind == "csv":
        write(path.name, INTERACTIONS.replace("\t", ","))
    elif kind.startswith("jsonl"):
        names, *lines = (line.split("\t") for line in INTERACTIONS.splitlines())
        records = [dict(zip(names, line, strict=True)) | {"timestamp": int(line[2]), "page": [1]} for line in lines]
        text = "\n\n".join(map(json.dumps, records)).encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    elif kind.lower() == "tsv.gz":
        path.write_bytes(gzip.compress(INTERACTIONS.encode()))
    elif kind == "inter":
        header, _, rest = INTERACTIONS.partition("\n")
        write(path.name, header.replace("_id", "_id:token").replace("stamp", "stamp:float") + "\n" + rest)
    elif kind == "quoted":
        path = write("quoted.tsv", '"' + INTERACTIONS.rstrip().replace("\t", '"\t"').replace("\n", '"\n"') + '"')
    elif kind == "crlf":
        path = write("crlf.tsv", INTERACTIONS.replace("\n", "\r\n"))
    else:
        path = write("bom.tsv", b"\xef\xbb\xbf" + INTERACTIONS.encode())
    content = read(path, write("items.jsonl", ITEMS))
    assert rows(content) == {"ann": ["a", "b", "c"], "bob": ["a"]}
    assert content.histories.timestamps.tolist() == [2, 3, 3, 1]


def test_messages_have_one_line_whatever_the_columns(write, tmp_path):
    names = [f"c{i}" for i in range(900)]
    for header in ("\t".join(names), '"item\nid\n' + 5000 * "x" + '"', '{"item\\nid": 1, "%s": 2}' % (5000 * "x")):
        with pytest.raises(InputError, match="no column user_id") as caught:
            read_interactions(write("i.jsonl" if header[0] == "{" else "i.tsv", header + "\n"))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700
    as_parquet(tmp_path / "i.parquet", INTERACTIONS)
    whole = (tmp_path / "i.parquet").read_bytes()
    for start in (4, len(whole) - 60):  # a page's head, the file's foot
        (tmp_path / "i.parquet").write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])
        with pytest.raises(InputError, match="can't be read as Parquet") as caught:
            read_interactions(tmp_path / "i.parquet")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        (("1970-01-02", "1970-01-01T00:00:05", " 1970-01-01 00:01:00.250 "), [86400, 5, 60]),
        (("1970-01-01T00:00:05Z", "1970-01-01T01:00:06+01:00", "1969-12-31T23:59:59-00:30"), [5, 6, 1799]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_times_in_iso_8601(write, tmp_path, cells, seconds, kind):
    if kind == "csv":
        path = write("i.csv", "user_id,item_id,timestamp\n" + "".join(f"u,a,{cell}\n" for cell in cells))
    elif kind == "jsonl":
        path = write(
            "i.jsonl", "".join(json.dumps({"user_id": "u", "item_id": "a", "timestamp": c}) + "\n" for c in cells)
        )
    else:
        path = tmp_path / "i.parquet"
        pyarrow.parquet.write_table(pa.table({"user_id": ["u"] * 3, "item_id": ["a"] * 3, "timestamp": cells}), path)
    found = read_interactions(path)
    assert found.timestamps.tolist() == seconds
    rest = [0, 0, 250_000_000] if "250" in cells[2] else None
    assert (None if found.nanoseconds is None else found.nanoseconds.tolist()) == rest


def test_bad_times_in_iso_8601(write):
    head = "user_id,item_id,timestamp\nu,a,2026-01-31T12:00:00\n"
    for cell, message in (
        ("2026-02-31", r"line 3: timestamp '2026-02-31' is no time like 2026-01-31T12:00:00, with a zone"),
        ("31.1.2026", r"line 3: timestamp '31.1.2026' is no time like"),
        ("2026-W05-6", r"line 3: timestamp '2026-W05-6' is no time like"),  # which Python reads
        ("17", r"line 3: timestamp '17' is a number in a column of written times; the two can't be mixed"),
        ("", r"line 3: timestamp is empty; every row needs one"),
        ("2026-01-31T12:00:00Z", r"line 3: timestamp '2026-01-31T12:00:00Z' has a zone, and those before it have none"),
    ):
        with pytest.raises(InputError, match=message):
            read_interactions(write("i.csv", f"{head}u,b,{cell}\n"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_times_with_a_zone_and_without_can_not_be_mixed(write, kind):
    times = ["2026-01-31T10:00:00Z", "2026-01-31T09:00:00"]
    for cells in (times, times[::-1]):
        if kind == "csv":
            path = write("i.csv", "user_id,item_id,timestamp\n" + "".join(f"u,a,{cell}\n" for cell in cells))
        else:
            lines = [json.dumps({"user_id": "u", "item_id": "a", "timestamp": cell}) + "\n" for cell in cells]
            path = write("i.jsonl", "".join(lines))
        second = 3 if kind == "csv" else 2
        told = rf"line {second}: timestamp '{cells[1]}' has (no|a) zone, .* \(Z, \+02:00\) on all of them or none\."
        with pytest.raises(InputError, match=told):
            read_interactions(path)


def test_duplicates_are_kept_or_dropped_and_counted(write):
    items = write("items.jsonl", ITEMS)
    path = write(
        "i.csv",
        "user_id,item_id,timestamp,position\n"
        "ann,b,5,1\nann,a,5,1\nann,b,5,1\nann,b,5,2\nbob,b,5,1\nann,b,6,1\nann,a,5,1\nann,a,5,1\n",
    )
    kept = read(path, items)
    assert rows(kept) == {"ann": ["b", "a", "b", "a", "a", "b", "b"], "bob": ["b"]}
    assert kept.dropped == {}
    once = read(path, items, duplicates="drop")
    assert rows(once) == {"ann": ["b", "a", "b", "b"], "bob": ["b"]}
    assert once.dropped == {"duplicates": 3}
    plain = read(write("j.csv", "user_id,item_id,position\nann,b,1\nann,b,1\nann,b,0\n"), items, duplicates="drop")
    assert rows(plain) == {"ann": ["b", "b"]}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_all_forms_of_items_say_the_same(write, tmp_path, kind):
    columns = {"item_id": [7, 3], "title": ['Say "hi", please', "Grüße"], "price": ["1.5", ""]}
    path = tmp_path / f"items.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
    elif kind == "jsonl":
        lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        write(path.name, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    elif kind == "csv":
        write(path.name, 'item_id,title,price\n7,"Say ""hi"", please",1.5\n3,Grüße,\n')
    else:
        write(path.name, 'item_id\ttitle\tprice\n7\tSay "hi", please\t1.5\n3\tGrüße\t\n')
    items = read_items(path)
    assert items.ids == [7, 3]
    assert items.columns == {"title": columns["title"], "price": columns["price"]}
    assert items.text_columns == ("title",)


def test_integer_ids_come_back_as_integers_and_written_zeros_are_kept(write):
    items = write("items.jsonl", '{"item_id": 12}\n{"item_id": 5}\n')
    content = read(write("i.tsv", "user_id\titem_id\tposition\n007\t12\t1\n007\t5\t0\n"), items)
    assert rows(content) == {"007": [5, 12]}
    assert content.histories.timestamps is None
    content = read(write("j.tsv", "user_id\titem_id\tposition\n7\t12\t1\n7\t5\t0\n"), items)
    assert rows(content) == {7: [5, 12]}


def test_position_breaks_ties_in_time(write):
    text = "user_id,item_id,position,timestamp\nu,a,2,5\nu,b,1,5\nu,c,0,9\n"
    content = read(write("i.csv", text), write("items.jsonl", ITEMS))
    assert rows(content) == {"u": ["b", "a", "c"]}


def test_fractions_and_dates(write, tmp_path):
    items = write("items.jsonl", ITEMS)
    content = read(write("i.csv", "user_id,item_id,timestamp\nu,a,2.9\nu,b,1e1\n"), items)
    assert content.histories.timestamps.tolist() == [2, 10]
    path = tmp_path / "dates.parquet"
    when = np.array(["1970-01-02", "1970-01-01T00:00:05"], "datetime64[ns]")
    pyarrow.parquet.write_table(pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": when}), path)
    assert read(path, items).histories.timestamps.tolist() == [5, 86400]


@pytest.mark.parametrize("kind", ["seconds", "strings", "s", "ms", "us", "ns"])
def test_parts_of_a_second_order_a_history(write, tmp_path, kind):
    """Of three interactions within one second, and two at the same time."""
    items, path = write("items.jsonl", ITEMS), tmp_path / "i.parquet"
    moments = [1_700_000_332.9, 1_700_000_332.1, 1_700_000_332.5, -0.25, 1_700_000_332.1]
    columns = {"user_id": ["u"] * 5, "item_id": ["a", "b", "c", "a", "c"]}
    if kind == "strings":
        lines = [f"u,{item},{moment}\n" for item, moment in zip(columns["item_id"], moments, strict=True)]
        path = write("i.csv", "user_id,item_id,timestamp\n" + "".join(lines))
    elif kind == "seconds":
        pyarrow.parquet.write_table(pa.table({**columns, "timestamp": moments}), path)
    else:
        parts = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind]
        when = pa.array([int(np.floor(t * 1000)) * parts // 1000 for t in moments], pa.timestamp(kind, "UTC"))
        pyarrow.parquet.write_table(pa.table({**columns, "timestamp": when}), path)
    content = read(path, items)
    assert content.histories.timestamps.tolist() == [-1] + [1_700_000_332] * 4
    if kind == "s":
        assert rows(content) == {"u": ["a", "a", "b", "c", "c"]}
        assert content.histories.placed is None
    else:
        assert rows(content) == {"u": ["a", "b", "c", "c", "a"]}
        assert content.histories.placed[1:].tolist() == [True, False, True, True]


def test_categories_of_parquet_need_not_all_occur(write, tmp_path):
    path = tmp_path / "i.parquet"
    users = pa.DictionaryArray.from_arrays(pa.array([2, 1, 2]), pa.array(["nobody", "v", "u"]))
    pyarrow.parquet.write_table(pa.table({"user_id": users, "item_id": ["a", "b", "c"], "position": [0, 1, 2]}), path)
    assert rows(read(path, write("items.jsonl", ITEMS))) == {"v": ["b"], "u": ["a", "c"]}


def test_categories_of_parquet_may_differ_from_part_to_part(write, tmp_path):
    path = tmp_path / "i.parquet"
    ids, kind = [f"u{n:03d}" for n in range(300)], pa.dictionary(pa.int8(), pa.string())
    parts = [pa.array(ids[start : start + 100]).dictionary_encode().cast(kind) for start in range(0, 300, 100)]
    table = pa.table({"user_id": pa.chunked_array(parts), "item_id": ["a"] * 300, "position": range(300)})
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    assert rows(read(path, write("items.jsonl", ITEMS))) == {user: ["a"] for user in ids}


def test_an_empty_category_that_does_not_occur(write, tmp_path):
    path = tmp_path / "i.parquet"
    users = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["u", "v", ""]))
    pyarrow.parquet.write_table(pa.table({"user_id": users, "item_id": ["a", "b"], "position": [0, 1]}), path)
    assert rows(read(path, write("items.jsonl", ITEMS))) == {"u": ["a"], "v": ["b"]}


def test_ids_of_64_bits_without_a_sign(write, tmp_path):
    path, large = tmp_path / "i.parquet", 2**63 + 5
    users = pa.array([1, large], pa.uint64())
    pyarrow.parquet.write_table(pa.table({"user_id": users, "item_id": ["a", "b"], "position": [0, 1]}), path)
    assert rows(read(path, write("items.jsonl", ITEMS))) == {1: ["a"], large: ["b"]}


def test_line_breaks_in_cells_of_a_file_of_many_blocks(write):
    """PyArrow reads a megabyte at a time."""
    review, count = '"good\nnice, cheap, 5, buy"', 30_000
    text = "user_id,item_id,timestamp,review\n" + "".join(f"u,a,{n},{review}\n" for n in range(count))
    table = read_interactions(write("i.csv", text))
    assert table.timestamps.tolist() == list(range(count))
    assert table.items.originals() == ["a"]
    text = '"item_id"\t"text"\n' + "".join(f'"{n}"\t"good\n{n}\tand more of it, much"\n' for n in range(count))
    assert read_items(write("items.tsv", text)).ids == list(range(count))


def test_histories_by_user_in_original_ids(write):
    text = "user_id,item_id,timestamp\n9,b,3\n4,7,1\n9,a,2\n9,x,3\n"
    users, items, times = histories_by_user(read_interactions(write("i.csv", text)))
    assert users == [9, 4]
    assert items == [["a", "b", "x"], ["7"]]
    assert times == [[2, 3, 3], [1]]
    users, items, times = histories_by_user(read_interactions(write("i.csv", text + "9,b,3\n9,b,4\n9,a,2\n")), "drop")
    assert items == [["a", "b", "x", "b"], ["7"]]
    assert times == [[2, 3, 3, 4], [1]]


def test_unknown_items(write):
    items = write("items.jsonl", '{"item_id": "a"}\n')
    path = write("i.tsv", INTERACTIONS + "bob\tx\t1\nbob\ty\t2\nzoe\tb\t2\n")
    with pytest.raises(
        InputError, match=r"5 interactions of 4 items that .*\('b', 'c', 'x', \.\.\.\).*unknown_items=drop"
    ):
        read(path, items)
    content = read(path, items, unknown_items="drop")
    assert rows(content) == {"ann": ["a"], "bob": ["a"]}
    assert content.dropped == {"unknown_items": 5, "users_of_unknown_items_only": 1}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ("45.0", 45, "'45.0' as '45': write whole numbers without .0"),
        ("045", 45, "'045' as '45': write numbers with the same leading zeros"),
        ("0", "000", "'0' as '000': write numbers with the same leading zeros"),
        ("p45 ", "p45", "'p45 ' as 'p45': leave out the blanks around ids"),
        ("e\u0301", "\xe9", "'e\\u0301' as '\\xe9': write both files in one normal form of Unicode"),
        ("B00X", "b00x", "'B00X' as 'b00x': write letters in the same case"),
    ],
)
def test_ids_in_another_spelling(write, theirs, ours, message):
    """They are not changed, but told; to leave them out is no advice where nothing would be left."""
    items = write("items.jsonl", json.dumps({"item_id": ours}) + '\n{"item_id": "a"}\n')
    lines = f"user_id\titem_id\tposition\nu\t{theirs}\t0\n"
    for options in ({}, {"unknown_items": "drop"}):
        with pytest.raises(InputError) as caught:
            read(write("i.tsv", lines), items, **options)
        assert f"; all of them are there in another spelling, {message}" in str(caught.value)
        assert "=drop." not in str(caught.value)
    with pytest.raises(InputError) as caught:
        read(write("i.tsv", lines + "u\tx\t1\nu\ta\t2\n"), items)
    assert f"; 1 of them is there in another spelling, {message}" in str(caught.value)
    assert "; of the others, add them, or leave these interactions out with --unknown_items=drop." in str(caught.value)


def test_nothing_left(write):
    path, items = write("i.tsv", INTERACTIONS), write("items.jsonl", '{"item_id": "z"}\n')
    with pytest.raises(InputError, match="no interactions are left"):
        read(path, items, unknown_items="drop")
    with pytest.raises(InputError, match=r"no interactions are left.*lower --k_core"):
        read(path, write("all.jsonl", ITEMS), k_core=9)


def test_k_core_against_brute_force(write):
    rng = np.random.default_rng(1)
    pairs = list(zip(rng.integers(0, 30, 300).tolist(), (rng.geometric(0.07, 300) - 1).tolist(), strict=True))
    items = write("items.jsonl", "\n".join(json.dumps({"item_id": i}) for i in range(100)))
    text = "user_id\titem_id\tposition\n" + "".join(f"{u}\t{i}\t{n}\n" for n, (u, i) in enumerate(pairs))
    content = read(write("i.tsv", text), items, k_core=5)
    kept = pairs
    while True:
        users, goods = [u for u, _ in kept], [i for _, i in kept]
        smaller = [(u, i) for u, i in kept if users.count(u) >= 5 and goods.count(i) >= 5]
        if len(smaller) == len(kept):
            break
        kept = smaller
    assert 0 < len(kept) < len(pairs)
    assert content.item_ids == sorted({i for _, i in kept})
    assert content.items_row.tolist() == content.item_ids
    assert rows(content) == {u: [i for v, i in kept if v == u] for u in dict.fromkeys(u for u, _ in kept)}
    assert content.dropped["k_core_items"] == 100 - len(content.item_ids)
    assert content.dropped.get("k_core_users", 0) == len({u for u, _ in pairs}) - len(content.user_ids)


BAD_INTERACTIONS = {
    "no column item_id; columns found: user_id, item, timestamp. Rename 'item' to 'item_id'?": (
        "user_id\titem\ttimestamp\na\tb\t1\n"
    ),
    "columns found: User_ID, itemid, timestamp. Rename 'User_ID' to 'user_id' and 'itemid' to 'item_id'?": (
        "User_ID\titemid\ttimestamp\na\tb\t1\n"
    ),
    "no column item_id; columns found: user_id,item_id. It looks separated by commas; columns of a .tsv file are": (
        "user_id,item_id\na,b\n"
    ),
    "no column timestamp or position to order by; columns found: user_id, item_id, when.": (
        "user_id\titem_id\twhen\na\tb\t1\n"
    ),
    "columns found: user_id, item_id, TimeStamp. Rename 'TimeStamp' to 'timestamp'?": (
        "user_id\titem_id\tTimeStamp\na\tb\t1\n"
    ),
    "no column user_id; columns found: item_id, title. It looks like a file for --items; are two flags exchanged?": (
        "item_id\ttitle\na\tx\n"
    ),
    "bad.tsv: is compressed by gzip; name it bad.tsv.gz.": gzip.compress(INTERACTIONS.encode()),
    "line 2: position 'first' is no number; give whole numbers": "user_id\titem_id\tposition\na\tb\tfirst\n",
    "is empty": "",
    "line 1: can't be read": "user_id\titem_id\ttimestamp\ra\tb\t1\r",
    "has a header but no rows": "user_id\titem_id\ttimestamp\n",
    "line 3: too few columns, 2 where the header has 3": INTERACTIONS.replace("bob\ta\t1", "bob\ta"),
    "line 3: too many columns, 4 where the header has 3": INTERACTIONS.replace("bob\ta\t1", "bob\ta\t1\t1"),
    "line 5: too few columns": INTERACTIONS.replace("bob\ta\t1", "\nbob\ta\t1").replace("ann\ta\t2", "ann"),
    "line 4: byte 4 is not valid UTF-8": INTERACTIONS.encode().replace(b"ann\ta\t2", b"ann\xff\ta\t2"),
    "line 4: timestamp 'today' is no time": INTERACTIONS.replace("ann\ta\t2", "ann\ta\ttoday"),
    "line 4: timestamp 'nan' is no time": INTERACTIONS.replace("ann\ta\t2", "ann\ta\tnan"),
    "line 3: position '1.5' is not a whole number": "user_id\titem_id\tposition\na\tb\t1.0\na\tc\t1.5\n",
    "line 3: timestamp '1700000000000' looks like milliseconds or a written date; times are Unix seconds": (
        INTERACTIONS.replace("bob\ta\t1", "bob\ta\t1700000000000")
    ),
    "line 4: timestamp is empty; every row needs one": INTERACTIONS.replace("ann\ta\t2", "ann\ta\t"),
    "line 4: timestamp ' ' is empty": INTERACTIONS.replace("ann\ta\t2", "ann\ta\t "),
    "line 4: timestamp '2026-01-31' is a written time in a column of numbers; the two can't be mixed": (
        INTERACTIONS.replace("ann\ta\t2", "ann\ta\t2026-01-31")
    ),
    "line 2: timestamp '20260131T120000' is a date or time in another form; give Unix seconds, or ISO 8601 like 2026": (
        "user_id\titem_id\ttimestamp\na\tb\t20260131T120000\na\tc\t20260131T130000\n"
    ),
    "line 2: position '2026-01-31' is a date or time in another form; give whole numbers": (
        "user_id\titem_id\tposition\na\tb\t2026-01-31\n"
    ),
    "line 3: item_id is empty": INTERACTIONS.replace("bob\ta", "bob\t"),
    "column 'item_id' occurs more than once": "user_id\titem_id\titem_id\ttimestamp\na\tb\tc\t1\n",
}


@pytest.mark.parametrize("message", BAD_INTERACTIONS)
def test_bad_interactions(write, message):
    path = write("bad.tsv", BAD_INTERACTIONS[message])
    with pytest.raises(InputError) as caught:
        read_interactions(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_text_of_an_item(tmp_path):
    """Vectors, images, prices and dates; lists of words are text, and so are strings of any Parquet kind."""
    table = pa.table(
        {
            "item_id": pa.array(["a", "b"], pa.string_view()),
            "vector": [[0.1, 0.2], [0.3, 0.4]],
            "image": [b"\xff", None],
            "price": [decimal.Decimal("9.99"), None],
            "since": [datetime.date(2024, 1, 1), None],
            "tags": [["red", "blue"], []],
            "title": ["One", None],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "items.parquet")
    items = read_items(tmp_path / "items.parquet")
    assert items.ids == ["a", "b"]
    assert items.text_columns == ("tags", "title")


def test_a_missing_time_is_told_with_its_row(tmp_path):
    path = tmp_path / "i.parquet"
    times = pa.array([datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2), None], pa.timestamp("us"))
    pyarrow.parquet.write_table(pa.table({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": times}), path)
    with pytest.raises(InputError, match="row 3: timestamp is empty"):
        read_interactions(path)


def test_missing_file_folder_and_unknown_kind(tmp_path, write):
    with pytest.raises(InputError, match=r"nowhere\.tsv: no such file"):
        read_interactions(tmp_path / "nowhere.tsv")
    with pytest.raises(InputError, match="is not a file"):
        read_items(tmp_path)
    with pytest.raises(InputError, match=r"unknown kind of file '\.xls'; use \.jsonl, .*\.tsv"):
        read_interactions(write("a.xls", INTERACTIONS))
    with pytest.raises(InputError, match=r"log: has no ending; name it \.tsv, \.csv, \.jsonl or \.parquet\."):
        read_interactions(write("log", INTERACTIONS))
    with pytest.raises(InputError, match=r"log\.gz: has no ending before \.gz; name it \.tsv\.gz, .*\.jsonl\.gz\."):
        read_interactions(write("log.gz", gzip.compress(INTERACTIONS.encode())))


def test_bad_parquet(write, tmp_path):
    with pytest.raises(InputError, match="can't be read as Parquet"):
        read_interactions(write("a.parquet", "no parquet"))
    path = tmp_path / "b.parquet"

    def put(**columns):
        pyarrow.parquet.write_table(
            pa.table({"user_id": [1, 2], "item_id": [3, 4], "timestamp": [5, 6], **columns}), path
        )

    put(item_id=[1.5, 2.5])
    with pytest.raises(InputError, match="column 'item_id' has type double; ids must be integers or strings"):
        read_interactions(path)
    put(item_id=[1.0, 2.0])
    with pytest.raises(InputError, match=r"type double; ids must be .*; write whole numbers without \.0"):
        read_interactions(path)
    put(item_id=[1.0, None])
    with pytest.raises(InputError, match="row 2: item_id is empty; every row needs one"):
        read_interactions(path)
    put(item_id=[float("nan"), 1.0])
    with pytest.raises(InputError, match="row 1: item_id 'nan' is empty"):
        read_interactions(path)
    put(item_id=[1, None])
    with pytest.raises(InputError, match="row 2: item_id is empty"):
        read_interactions(path)
    put(timestamp=[None, 6])
    with pytest.raises(InputError, match="row 1: timestamp is empty"):
        read_interactions(path)
    put(timestamp=[5.0, float("inf")])
    with pytest.raises(InputError, match="row 2: timestamp 'inf' is no time"):
        read_interactions(path)
    put(timestamp=[5.0, 1.7e12])
    with pytest.raises(InputError, match=r"row 2: timestamp '1700000000000\.0' looks like milliseconds"):
        read_interactions(path)
    pyarrow.parquet.write_table(pa.table({"user_id": [1]}), path)
    with pytest.raises(InputError, match="no column item_id; columns found: user_id"):
        read_interactions(path)


BAD_ITEMS = {
    "line 2: malformed JSON (Expecting value: column 13); each": '{"item_id": 1}\n{"item_id": }\n',
    "line 2: malformed JSON (Expecting property name": '{"item_id": 1}\n{"item_id": 2,\n',
    "line 1: malformed JSON (maximum recursion depth": "[" * 100_000,
    "line 2: each line must be one JSON object, got list": '{"item_id": 1}\n[2]\n',
    "line 1: no item_id; columns found: title, itemId. Rename 'itemId' to 'item_id'?": '{"title": "x", "itemId": 1}',
    "line 1: no item_id; columns found: id, title. Rename 'id' to 'item_id'?": '{"id": 1, "title": "x"}',
    "line 3: no item_id; columns found: title": '{"item_id": 1}\n\n{"title": "x"}\n',
    r"line 2: item_id 'x\ud83d' holds half a character": '{"item_id": 1}\n{"item_id": "x\\ud83d"}\n',
    "line 1: item_id None must be an integer or a string": '{"item_id": null}\n',
    "line 1: item_id 1.5 must be an integer or a string": '{"item_id": 1.5}\n',
    "1 duplicate item id, the first '2' in lines 1 and 4": (
        '{"item_id": 2}\n{"item_id": 1}\n\n{"item_id": "2"}\n{"item_id": 2}\n'
    ),
    "line 2: byte 13 is not valid UTF-8": b'{"item_id": 1}\n{"item_id":"\xe9"}\n',
    "is empty": "",
    "has no items": "\n\n",
}


@pytest.mark.parametrize("message", BAD_ITEMS)
def test_bad_items(write, message):
    path = write("items.jsonl", BAD_ITEMS[message])
    with pytest.raises(InputError) as caught:
        read_items(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_item_tables(write):
    with pytest.raises(InputError, match="2 duplicate item ids, the first 'a' in lines 2 and 4"):
        read_items(write("a.csv", "item_id,title\na,x\nb,y\na,z\nb,z\n"))
    with pytest.raises(InputError, match="seem to be interactions, by their columns item_id, user_id, timestamp; "):
        read_items(write("log.csv", "user_id,item_id,timestamp\n1,a,1\n2,a,1\n"))
    with pytest.raises(InputError, match="line 4: too few columns, 1 where the header has 2"):
        read_items(write("b.csv", 'item_id,title\na,"two\nlines"\nb\n'))
    with pytest.raises(InputError, match="no column item_id; columns found: id, title"):
        read_items(write("c.csv", "id,title\na,x\n"))
    with pytest.raises(InputError, match=r"damaged \.gz file"):
        read_items(write("d.jsonl.gz", gzip.compress(b'{"item_id": 1}\n' * 50)[:-9]))
    with pytest.raises(InputError, match=r"damaged \.gz file"):
        read_items(write("e.jsonl.gz", gzip.compress(b'{"item_id": 1}\n')[:10] + b"\xff" * 20))


def test_item_text_of_lists_numbers_and_gaps(write):
    items = read_items(
        write(
            "items.jsonl",
            '{"item_id": 1, "title": " A ", "tags": ["x", "y"], "price": 3}\n'
            '{"item_id": 2, "price": 4.5, "extra": {"k": 1}}\n{"item_id": 3, "tags": []}\n',
        )
    )
    assert items.columns == {
        "title": ["A", "", ""],
        "tags": ["x, y", "", ""],
        "price": ["3", "4.5", ""],
        "extra": ["", '{"k": 1}', ""],
    }
    assert items.text_columns == ("title", "tags", "extra")


def test_missing_numbers_are_no_text(write, tmp_path):
    items = read_items(
        write("items.jsonl", '{"item_id": 1, "title": NaN, "tags": ["x", NaN]}\n{"item_id": 2, "title": "B"}\n')
    )
    assert items.columns == {"title": ["", "B"], "tags": ["x", ""]}
    path = tmp_path / "items.parquet"
    pyarrow.parquet.write_table(pa.table({"item_id": [1], "sizes": [[1.5, float("nan")]]}), path)
    assert read_items(path).columns == {"sizes": ["1.5"]}


def test_half_characters_are_replaced(write):
    line = r'{"item_id": 1, "title": "cut \ud83d", "tags": ["\ude00", "\ud83d\ude00"], "more": {"k": "\ud83d"}}'
    items = read_items(write("items.jsonl", line))
    assert items.columns == {"title": ["cut \ufffd"], "tags": ["\ufffd, 😀"], "more": ['{"k": "\ufffd"}']}


def test_dates_in_objects(tmp_path):
    path = tmp_path / "items.parquet"
    pyarrow.parquet.write_table(pa.table({"item_id": [1], "made": [{"on": datetime.date(2020, 1, 2)}]}), path)
    assert read_items(path).columns == {"made": ['{"on": "2020-01-02"}']}


def test_choice_of_text_columns(write):
    items = write(
        "items.jsonl",
        '{"item_id": 1, "brand": "B.", "title": "A", "year": 1999}\n{"item_id": 2, "title": "C"}\n{"item_id": 3}\n',
    )
    content = read(write("i.csv", "user_id,item_id,position\nu,1,0\nu,2,1\nu,3,2\n"), items)
    dataset = to_dataset(content, name="n", digest="d")
    assert dataset.text_columns == ("brand", "title")
    assert dataset.item_text == ["B. A", "C", ""]
    assert dataset.item_titles == ["A", "C", "3"]
    chosen = to_dataset(content, name="n", digest="d", text_columns=" title, year ")
    assert chosen.text_columns == ("title", "year")
    assert chosen.item_text == ["A. 1999", "C", ""]
    with pytest.raises(InputError, match=r"names 'colour'.*columns found: brand, title, year"):
        to_dataset(content, name="n", digest="d", text_columns="title,colour")
    with pytest.raises(InputError, match=r"columns found: brand, title, year\. Did you mean 'title'\?"):
        to_dataset(content, name="n", digest="d", text_columns="Titel")


def test_join_text():
    assert join_text(("A", "", "B!", "C.", "D")) == "A. B! C. D"
    assert join_text(("A", "")) == "A"
    assert join_text(("", "")) == ""


def test_titles_without_a_title_column(write):
    path = write("i.csv", "user_id,item_id,position\nu,1,0\n")
    content = read(path, write("items.jsonl", '{"item_id": 1, "blurb": "text"}\n'))
    assert to_dataset(content, name="n", digest="d").item_titles == ["text"]
    content = read(path, write("bare.jsonl", '{"item_id": 1}\n'))
    dataset = to_dataset(content, name="n", digest="d")
    assert (dataset.item_titles, dataset.item_text, dataset.text_columns) == (["1"], [""], ())
