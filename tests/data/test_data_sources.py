import dataclasses
import errno
import gzip
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from spectran_jax import data, writing
from spectran_jax.config import Config
from spectran_jax.data import builders, sources
from spectran_jax.data.content import Content
from spectran_jax.data.interactions import Histories
from spectran_jax.errors import InputError, RunError

INTERACTIONS = "user_id\titem_id\ttimestamp\n" + "".join(
    f"u{u}\t{(u + n) % 5}\t{100 * u + n}\n" for u in range(6) for n in range(2 if u == 5 else 4)
)
ITEMS = "item_id,title,year\n" + "".join(f"{i},Title {i},{1990 + i}\n" for i in range(6))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "i.tsv").write_text(INTERACTIONS)
    (tmp_path / "items.csv").write_text(ITEMS)
    return Config().replace(
        dataset="files",
        interactions=str(tmp_path / "i.tsv"),
        items=str(tmp_path / "items.csv"),
        data_dir=str(tmp_path / "cache"),
    )


@pytest.fixture
def preparations(monkeypatch):
    """Counts how often data is prepared."""
    calls = []
    write = builders.write
    monkeypatch.setattr(builders, "write", lambda *args: calls.append(args) or write(*args))
    return calls


def assert_same(one, other):
    for field in dataclasses.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Histories):
            assert_same(mine, theirs)
        elif isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs


def prepared(config):
    return sorted(path.name for path in (sources.data_dir(config) / "prepared").iterdir())


def test_prepared_data_equals_what_was_read(config, preparations):
    first = data.load(config)
    second = data.load(config)
    assert len(preparations) == 1
    assert_same(first, second)
    assert first.num_users == 5
    assert first.dropped == {"users_too_short": 1}
    assert first.user_ids == ["u0", "u1", "u2", "u3", "u4"]
    assert first.item_ids == [0, 1, 2, 3, 4, 5]
    assert first.histories[1].tolist() == [1, 2, 3, 4]
    assert first.item_text[2] == "Title 2"
    assert len(prepared(config)) == 1
    assert prepared(config)[0].startswith(f"files-{first.digest[:32]}")


def test_what_another_process_prepared_needs_no_input(config, preparations, tmp_path):
    first = data.load(config)
    (tmp_path / "i.tsv").rename(tmp_path / "away.tsv")
    assert_same(first, data.load(config, first.digest))
    assert len(preparations) == 1
    elsewhere = config.replace(data_dir=str(tmp_path / "other"))  # that did not come to this host
    with pytest.raises(InputError, match=r"i\.tsv"):
        data.load(elsewhere, first.digest)
    (tmp_path / "i.tsv").write_text(INTERACTIONS.replace("u0\t0\t0\n", "u0\t4\t0\n"))
    assert data.load(elsewhere, first.digest).digest != first.digest


def test_dots_in_a_name_do_not_matter_and_its_endings_do(config, preparations, tmp_path):
    before = data.load(config)
    assert before.digest.startswith("2265bed4f0e95576")  # what is kept of names with one dot serves on
    for name in ("i.v2.tsv", "2026.01.31.TSV"):
        (tmp_path / name).write_text(INTERACTIONS)
        assert data.load(config.replace(interactions=str(tmp_path / name))).digest == before.digest
    assert len(preparations) == 1
    for name in ("i.inter", "i.v2.tsv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(INTERACTIONS.encode()) if "gz" in name else INTERACTIONS.encode())
        assert data.load(config.replace(interactions=str(tmp_path / name))).digest != before.digest


def test_a_changed_file_is_read_again_and_a_moved_one_is_not(config, preparations, tmp_path):
    before = data.load(config)
    (tmp_path / "i.tsv").rename(tmp_path / "moved.tsv")
    config = config.replace(interactions=str(tmp_path / "moved.tsv"))
    assert data.load(config).digest == before.digest
    assert len(preparations) == 1
    stat = (tmp_path / "moved.tsv").stat()
    (tmp_path / "moved.tsv").write_text(INTERACTIONS.replace("u0\t0\t0\n", "u0\t4\t0\n"))
    os.utime(tmp_path / "moved.tsv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = data.load(config)
    assert after.digest != before.digest
    assert (before.histories[0][0], after.histories[0][0]) == (0, 4)
    assert len(preparations) == 2


def test_filters_are_part_of_the_digest_and_the_choice_of_text_is_not(config, preparations):
    plain = data.load(config)
    assert data.load(config.replace(k_core=2)).num_items == 5
    assert data.load(config.replace(k_core=2)).items_file_rows == plain.items_file_rows == plain.num_items
    assert data.load(config.replace(k_core=2)).digest != plain.digest
    chosen = data.load(config.replace(text_columns="title,year"))
    assert chosen.digest == plain.digest
    assert chosen.item_text[2] == "Title 2. 1992"
    assert len(preparations) == 2


def test_short_histories_stay_under_the_temporal_split(config):
    assert data.load(config.replace(split="temporal")).num_users == 6


def test_a_damaged_copy_is_made_anew(config, preparations, caplog):
    first = data.load(config)
    folder = sources.data_dir(config) / "prepared" / prepared(config)[0]
    record = next(folder.rglob("*sequences*/*/*array_record*"))
    record.write_bytes(record.read_bytes()[:40])
    assert_same(data.load(config), first)
    assert "made anew" in caplog.text
    next(folder.rglob("items/*/features.json")).unlink()
    assert_same(data.load(config), first)
    assert len(preparations) == 3
    described = next(folder.rglob("items/*/metadata.json"))
    described.write_text(described.read_text().replace("title", "tjtle", 1))  # still JSON, and the same columns
    assert_same(data.load(config), first)
    assert len(preparations) == 4
    assert_same(data.load(config), first)
    assert len(preparations) == 4
    assert len(prepared(config)) == 1


def test_a_copy_from_before_its_metadata_had_a_digest_serves_on(config, preparations):
    first = data.load(config)
    both = list((sources.data_dir(config) / "prepared").rglob("1.0.0/metadata.json"))  # and not TFDS's own
    assert len(both) == 2
    for described in both:
        metadata = json.loads(described.read_text())
        del metadata["sha256"]
        described.write_text(json.dumps(metadata))
    assert_same(data.load(config), first)
    assert len(preparations) == 1


def test_a_killed_preparation_leaves_nothing_that_counts_as_done(config, monkeypatch):
    write = builders.write

    def killed(*args):
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(builders, "write", killed)
    monkeypatch.setattr(writing.shutil, "rmtree", lambda *args, **kwargs: None)  # a kill cleans nothing up
    with pytest.raises(KeyboardInterrupt):
        data.load(config)
    monkeypatch.undo()
    (left,) = prepared(config)
    assert left.startswith(".spectran-draft-")
    assert data.load(config).num_users == 5
    assert len(prepared(config)) == 2
    # Once it is certain that nobody works on it, the next preparation removes it.
    old = time.time() - 2 * 24 * 3600
    draft = sources.data_dir(config) / "prepared" / left
    os.utime(draft, (old, old))
    data.load(config.replace(k_core=2))
    assert left in prepared(config)  # a file in it is younger
    for path in draft.rglob("*"):
        os.utime(path, (old, old))
    data.load(config.replace(k_core=3))
    assert left not in prepared(config)


def test_another_process_that_was_first_wins(config, monkeypatch):
    write = builders.write

    def slow(name, content, folder):
        write(name, content, folder)
        if not folder.parent.joinpath("race").exists():
            folder.parent.joinpath("race").mkdir()
            data.load(config)  # finishes first

    monkeypatch.setattr(builders, "write", slow)
    first = data.load(config)
    assert [name for name in prepared(config) if name != "race"] == [f"files-{first.digest[:32]}"]
    assert_same(data.load(config), first)


def test_where_it_cannot_be_written(config, monkeypatch, tmp_path):
    (tmp_path / "blocked").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"prepared can't be written.*--data_dir"):
        data.load(config.replace(data_dir=str(tmp_path / "blocked")))

    def failing(error):
        def write(*_):
            raise error

        return write

    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Failed to write\nmore"),  # as ArrayRecord says it
    ):
        monkeypatch.setattr(builders, "write", failing(error))
        with pytest.raises(RunError, match=rf"{str(error).splitlines()[0][-10:]}.*--data_dir"):
            data.load(config)
        assert prepared(config) == []
    told = 'Failed to finalize writing of split "full": write() failed: File too large; writing /x/a: b; at byte 3'
    monkeypatch.setattr(builders, "write", failing(RuntimeError(told)))
    with pytest.raises(RunError, match=r"prepared can't be written \(File too large\); make room"):
        data.load(config)


def test_flags_that_are_missing(config):
    with pytest.raises(InputError, match="--dataset=files needs --items=FILE"):
        data.load(config.replace(items=""))
    with pytest.raises(InputError, match=r"nowhere\.tsv: no such file"):
        data.load(config.replace(interactions="nowhere.tsv"))
    with pytest.raises(InputError, match=r"Unknown data set 'movielens_100'.*Did you mean 'movielens_100k'"):
        data.load(config.replace(dataset="movielens_100"))


def test_all_users_too_short(config, tmp_path):
    (tmp_path / "i.tsv").write_text("user_id\titem_id\tposition\nu\t1\t0\nu\t2\t1\nv\t1\t0\n")
    with pytest.raises(InputError, match="all 2 users have fewer than 3 interactions"):
        data.load(config)


def test_data_dir_follows_the_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.data_dir(Config()) == tmp_path / "spectran_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.data_dir(Config()) == tmp_path / ".cache" / "spectran_jax"
    assert data.data_dir(Config().replace(data_dir="~/x")) == tmp_path / "x"


def test_a_data_set_of_ones_own(config, monkeypatch):
    monkeypatch.setattr(sources, "_SOURCES", dict(sources._SOURCES))
    data.register("mine", sources._SOURCES["files"])
    dataset = data.load(config.replace(dataset="mine"))
    assert (dataset.name, dataset.num_users) == ("mine", 5)
    assert_same(data.load(config.replace(dataset="mine")), dataset)


def test_many_blocks_and_odd_ids(tmp_path):
    users = 2 * builders._BLOCK + 3
    lengths = np.arange(users) % 3 + 1
    content = Content(
        user_ids=[f"ü\n{u}" for u in range(users)],
        item_ids=list(range(5, 5 + users)),
        histories=Histories(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), np.arange(lengths.sum(), dtype=np.int32) % users
        ),
        items_row=np.arange(users, dtype=np.int32)[::-1].copy(),
        columns={"title": ["", "日本"] * (users // 2) + ["x"], "a/b.c": ["1"] * users},
        text_columns=("title",),
        dropped={"k_core_users": 4},
    )
    builders.write("files", content, tmp_path)
    assert_same(builders.read("files", tmp_path), content)


def test_importing_is_cheap_and_reading_needs_no_tensorflow(config):
    code = (
        "import sys\nfrom spectran_jax import data\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'pyarrow', 'jax', 'orbax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from spectran_jax.config import Config\n"
        f"config = Config.from_dict({config.to_dict()!r})\n"
        "print(data.load(config).num_users)\nassert 'tensorflow' not in sys.modules\n"
        "assert 'grain' not in sys.modules and 'jax' not in sys.modules\n"
    )
    for _ in ("prepares", "reads"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
