import errno
import hashlib
import http.client
import subprocess
import urllib.error
import zipfile

import pytest

from spectran_jax.data import movielens
from spectran_jax.data.content import assemble
from spectran_jax.errors import InputError, RunError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t3\t5\n2\t11\t4\t3\n1\t11\t5\t5\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "10\tToy Story\t1995\tAnimation Children's\n11\tunknown\t\tunknown\n"
)
U_DATA = "1\t10\t3\t5\n2\t11\t4\t3\n1\t11\t5\t5\n"
FLAGS = "|".join("1" if genre in ("Animation", "Children's") else "0" for genre in movielens._GENRES)
U_ITEM = f"10|Toy Story (1995)|01-Jan-1995||url|{FLAGS}\n11|Misérables|||url|1{'|0' * 18}\n"


@pytest.fixture
def recbole_folder(tmp_path):
    (tmp_path / "ml-100k.inter").write_text(INTER)
    (tmp_path / "ml-100k.item").write_text(ITEM)
    return tmp_path


def test_recbole_form(recbole_folder, tmp_path):
    interactions, items = movielens.find(str(recbole_folder), tmp_path / "downloads").read()
    assert items.ids == [10, 11]
    assert items.columns == {"title": ["Toy Story (1995)", "unknown"], "genres": ["Animation, Children's", "unknown"]}
    content = assemble(interactions, items)
    assert content.user_ids == [1, 2]
    assert content.item_ids == [10, 11]
    assert content.histories.items.tolist() == [0, 1, 1]
    assert content.histories.timestamps.tolist() == [5, 5, 3]


def test_grouplens_form_in_a_subfolder(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text(U_DATA)
    (folder / "u.item").write_text(U_ITEM, encoding="latin-1")
    interactions, items = movielens.find(str(tmp_path), tmp_path / "downloads").read()
    assert items.columns == {
        "title": ["Toy Story (1995)", "Misérables"],
        "genres": ["Animation, Children's", "unknown"],
    }
    assert assemble(interactions, items).histories.items.tolist() == [0, 1, 1]


def test_digest_follows_the_content(recbole_folder, tmp_path):
    before = movielens.find(str(recbole_folder), tmp_path).digest()
    assert movielens.find(str(recbole_folder), tmp_path).digest() == before
    (recbole_folder / "ml-100k.inter").write_text(INTER.replace("\t5\n", "\t6\n", 1))
    assert movielens.find(str(recbole_folder), tmp_path).digest() != before


def make_archive(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A tiny wheel and a tiny zip whose checksums stand for the real ones."""
    source = tmp_path / "source"
    source.mkdir()
    names = ("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item")
    wheel = make_archive(source / movielens.WHEEL_NAME, dict(zip(names, (INTER, ITEM), strict=True)))
    archive = make_archive(
        source / movielens.ARCHIVE_NAME, {"ml-100k/u.data": U_DATA, "ml-100k/u.item": U_ITEM.encode("latin-1")}
    )
    monkeypatch.setattr(movielens, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(movielens, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    return source


@pytest.mark.parametrize("name", [movielens.WHEEL_NAME, movielens.ARCHIVE_NAME])
def test_archives_are_copies_too(archives, tmp_path, name):
    _, items = movielens.find(str(archives / name), tmp_path / "downloads").read()
    assert items.ids == [10, 11]


def test_folder_that_holds_an_archive(archives, tmp_path):
    assert movielens.find(str(archives), tmp_path / "downloads").form == movielens.RECBOLE


def pip(wheel, calls):
    def run(command, **_):
        calls.append(command)
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no route\n")
        folder = next(part for part in command if part.startswith("--dest=")).removeprefix("--dest=")
        (movielens.Path(folder) / movielens.WHEEL_NAME).write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_the_wheel_is_fetched_once_and_only_downloaded(archives, tmp_path, monkeypatch):
    calls, downloads = [], tmp_path / "downloads"
    monkeypatch.setattr(subprocess, "run", pip((archives / movielens.WHEEL_NAME).read_bytes(), calls))
    assert movielens.find("", downloads).path == downloads / movielens.WHEEL_NAME
    movielens.find("", downloads)
    assert len(calls) == 1
    assert calls[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in calls[0]
    assert calls[0][-1] == "recbole==1.2.1"
    assert [path.name for path in downloads.iterdir()] == [movielens.WHEEL_NAME]


def test_a_damaged_download_is_never_kept(archives, tmp_path, monkeypatch):
    downloads = tmp_path / "downloads"
    monkeypatch.setattr(subprocess, "run", pip(b"half a wheel", []))
    archive = archives / movielens.ARCHIVE_NAME
    monkeypatch.setattr(movielens.urllib.request, "urlopen", lambda url, timeout: archive.open("rb"))
    assert movielens.find("", downloads).form == movielens.GROUPLENS
    assert [path.name for path in downloads.iterdir()] == [movielens.ARCHIVE_NAME]


def test_nothing_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip(None, []))

    def unreachable(url, timeout):
        raise urllib.error.URLError("name not known")

    monkeypatch.setattr(movielens.urllib.request, "urlopen", unreachable)
    with pytest.raises(InputError) as caught:
        movielens.find("", tmp_path / "downloads")
    for words in ("pip download recbole==1.2.1 failed (ERROR: no route)", "name not known", "--movielens=PATH"):
        assert words in str(caught.value)
    assert not list((tmp_path / "downloads").iterdir())


class CutShort:
    """An answer of the net that ends too early."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self):
        raise http.client.IncompleteRead(b"abc", 7)


def test_a_download_that_is_cut_short_is_a_failed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip(None, []))
    monkeypatch.setattr(movielens.urllib.request, "urlopen", lambda url, timeout: CutShort())
    with pytest.raises(InputError, match=r"ml-100k\.zip can't be fetched \(IncompleteRead\(3 bytes read, 7 more"):
        movielens.find("", tmp_path / "downloads")


def test_a_full_disk_is_not_taken_for_the_net(archives, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(subprocess, "run", pip(None, []))
    archive = archives / movielens.ARCHIVE_NAME
    monkeypatch.setattr(movielens.urllib.request, "urlopen", lambda url, timeout: archive.open("rb"))
    monkeypatch.setattr(movielens.Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"The disk is full: .*downloads could not be written"):
        movielens.find("", tmp_path / "downloads")


def test_downloads_that_have_no_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/downloads can't be written .*--data_dir"):
        movielens.find("", tmp_path / "file" / "downloads")


def test_copies_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        movielens.find(str(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(InputError, match=r"holds neither ml-100k\.inter"):
        movielens.find(str(tmp_path), tmp_path)
    other = tmp_path / "other.whl"
    other.write_bytes(b"something else")
    with pytest.raises(InputError, match="the file is damaged or another one"):
        movielens.find(str(other), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ml-100k.inter", INTER + "1\t10\n", r"ml-100k\.inter, line 5: too few columns, 2 where 4"),
        ("ml-100k.inter", INTER + "1\tten\t3\t4\n", "whole numbers only"),
        ("ml-100k.inter", "header\n", r"ml-100k\.inter is empty"),
        ("ml-100k.item", ITEM + "x\ta\t1\tb\n", "item id 'x', which must be a whole number"),
    ],
)
def test_damaged_files(recbole_folder, tmp_path, name, content, message):
    (recbole_folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        movielens.find(str(recbole_folder), tmp_path).read()
