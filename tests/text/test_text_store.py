import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from spectran_jax import npy
from spectran_jax.errors import InputError, RunError
from spectran_jax.text import digests, store

IDENTITY = {"items": "abc", "encoder": "test"}


def save(folder, array, identity=IDENTITY):
    with store.sealed_folder(folder, identity) as draft:
        draft.write("x", [array], shape=array.shape, dtype=array.dtype)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "cache" / "one", np.arange(12, dtype=np.float32).reshape(4, 3))
    return tmp_path / "cache" / "one"


def test_round_trip(folder):
    sealed = store.open_sealed(folder, IDENTITY, ["x"])
    np.testing.assert_array_equal(sealed.arrays["x"], np.arange(12).reshape(4, 3))
    assert isinstance(sealed.arrays["x"], np.memmap)
    assert not sealed.arrays["x"].flags.writeable
    assert sealed.digest == store.reopen(folder, IDENTITY, ["x"]).digest
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["identity"] == IDENTITY
    assert meta["arrays"]["x"] == {
        "shape": [4, 3],
        "dtype": "<f4",
        "sha256": digests.checksum(np.arange(12, dtype=np.float32)),
    }


def test_absent_is_silent(tmp_path, caplog):
    assert store.open_sealed(tmp_path / "none", IDENTITY, ["x"]) is None
    assert not caplog.records


def flip_a_byte(folder):
    data = bytearray((folder / "x.npy").read_bytes())
    data[-1] ^= 1
    (folder / "x.npy").write_bytes(data)


def other_rows(folder):
    np.save(folder / "x.npy", np.zeros((5, 3), np.float32))


def other_dtype(folder):
    np.save(folder / "x.npy", np.arange(12, dtype=np.float32).reshape(4, 3).view(np.int32))


def pickled(folder):
    np.save(folder / "x.npy", np.array([{}, {}], object), allow_pickle=True)


def edit_header(folder, old, new):
    data = (folder / "x.npy").read_bytes()
    assert old in data
    (folder / "x.npy").write_bytes(data.replace(old, new, 1))


def other_format(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 99}))


DAMAGE = {
    "a byte": (flip_a_byte, "checksum"),
    "shape": (other_rows, "shape"),
    "dtype": (other_dtype, "dtype"),
    "pickled": (pickled, "Python objects"),
    "truncated array": (lambda f: os.truncate(f / "x.npy", 150), ""),
    "truncated header": (lambda f: os.truncate(f / "x.npy", 3), ""),
    "no end of the header": (lambda f: edit_header(f, b"}", b" "), "header is damaged"),
    "a shape too large": (lambda f: edit_header(f, b"3), }" + 30 * b" ", 33 * b"9" + b")}"), "too large"),
    "array gone": (lambda f: (f / "x.npy").unlink(), "No such file"),
    "no meta": (lambda f: (f / "meta.json").unlink(), "No such file"),
    "bad meta": (lambda f: (f / "meta.json").write_text("{"), ""),
    "not an object": (lambda f: (f / "meta.json").write_text("[]"), ""),
    "empty meta": (lambda f: (f / "meta.json").write_text("{}"), "lacks 'format'"),
    "format": (other_format, "99"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported_and_mended(folder, name, caplog):
    damage, words = DAMAGE[name]
    damage(folder)
    assert store.open_sealed(folder, IDENTITY, ["x"]) is None
    assert "can't be trusted and is made anew" in caplog.text
    assert words in caplog.text
    save(folder, np.ones((2, 2)))
    np.testing.assert_array_equal(store.open_sealed(folder, IDENTITY, ["x"]).arrays["x"], np.ones((2, 2)))
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


@pytest.mark.parametrize(
    "identity", [{**IDENTITY, "items": "other"}, {"items": "abc"}, {**IDENTITY, "more": "entries"}]
)
def test_rows_of_others_are_not_served(folder, identity, caplog):
    assert store.open_sealed(folder, identity, ["x"]) is None
    assert "made for another" in caplog.text


def test_failed_write_leaves_what_was(folder):
    def broken():
        yield np.zeros((1, 3), np.float32)
        raise RuntimeError("the encoder fell over")

    with pytest.raises(RuntimeError), store.sealed_folder(folder, IDENTITY) as draft:
        draft.write("x", broken(), shape=(4, 3), dtype=np.float32)
    assert store.open_sealed(folder, IDENTITY, ["x"]).arrays["x"][3, 2] == 11
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_too_few_rows_are_not_sealed(tmp_path):
    with pytest.raises(ValueError, match="not an array of shape"), store.sealed_folder(tmp_path / "a", {}) as draft:
        draft.write("x", [np.zeros((3, 2))], shape=(4, 2), dtype=np.float64)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("size", [3, 10**6])
def test_disk_full(tmp_path, monkeypatch, size):
    monkeypatch.setattr(store.Draft, "path", lambda self, name: Path("/dev/full"))
    with pytest.raises(RunError, match=r"disk is full.*--data_dir"):
        save(tmp_path / "a", np.ones(size))
    assert not any(tmp_path.iterdir())


def test_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"can't be written .*choose another folder with --data_dir"):
        save(tmp_path / "file" / "one", np.ones(3))


@pytest.mark.parametrize("name", ["new", "one"])
def test_the_folder_of_another_process_that_was_first_stands(folder, name):
    """Its owner may be opening it; that both found the same old folder, a damaged one, changes nothing."""
    place = folder.parent / name
    with store.sealed_folder(place, IDENTITY) as draft:
        draft.write("x", [np.zeros(3)], shape=(3,), dtype=np.float64)
        save(place, np.ones(3))
        first = place.stat().st_ino
    assert place.stat().st_ino == first
    assert store.open_sealed(place, IDENTITY, ["x"]).arrays["x"].tolist() == [1, 1, 1]
    assert {path.name for path in folder.parent.iterdir()} == {"one", name}


def test_abandoned_drafts_are_removed(folder):
    killed, running, writing = (f".spectran-draft-{what}" for what in ("killed", "running", "writing"))
    names = killed, running, writing, ".somebody's"
    past = time.time() - 2 * 24 * 3600
    for path in (folder.parent / name for name in names):
        path.mkdir()
        (path / "u.npy").write_text("")
        if path.name != writing:  # one file, for more than a day
            os.utime(path / "u.npy", (past, past))
        if path.name != running:
            os.utime(path, (past, past))
    save(folder, np.ones((2, 2)))
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted({*names, "one"} - {killed})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scan_in_one_pass(dtype, monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(dtype)
    x[7] = 0
    x[9, 1] = np.nan
    x[30, 3] = np.inf
    monkeypatch.setattr(digests, "_CHUNK_BYTES", 7 * x[:1].nbytes)
    found = digests.scan(x)
    assert np.flatnonzero(~found.finite).tolist() == [9, 30]
    assert np.flatnonzero(~found.nonzero).tolist() == [7]
    assert npy.combined(found.digests) == digests.checksum(x) == digests.checksum(np.asfortranarray(x))
    monkeypatch.undo()
    assert found.digests == digests.scan(x).digests
    assert digests.checksum(x[::-1]) != npy.combined(found.digests)


def test_digest_of_ids():
    same = digests.digest_of(["a", "bc", 12])
    assert digests.digest_of(("a", "bc", np.int64(12))) == same
    for other in (["ab", "c", 12], ["bc", "a", 12], ["a", "bc", "12"], ["a", "bc", 12, ""]):
        assert digests.digest_of(other) != same
    assert len(digests.digest_of(["\ud800"])) == 64  # a lone surrogate is text too


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f2"])
def test_scan_knows_every_special_number(dtype):
    info = np.finfo(np.dtype(dtype))
    numbers = [0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.max, info.min, 1, np.inf, -np.inf]
    x = np.zeros((len(numbers) + 2, 3), dtype)
    x[: len(numbers), 1] = numbers
    x[-2:, 2] = [np.nan, -np.nan]
    found = digests.scan(x)
    np.testing.assert_array_equal(found.finite, np.isfinite(x).all(axis=1))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found.narrow, np.isfinite(x.astype(np.float32)).all(axis=1))
    np.testing.assert_array_equal(found.nonzero, x.any(axis=1))


def test_a_folder_that_never_appears_is_an_error_for_people(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_SEEN_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"Process 0 does not see .*gone, which process 0 has written: --data_dir"):
        store.reopen(tmp_path / "gone", IDENTITY, ["x"])
    with pytest.raises(InputError, match=r"Process 0 does not see .* as process 0 does: --data_dir must lie on"):
        store._require_shared(tmp_path / "gone" / "draft")


def test_a_folder_that_a_network_file_system_shows_late_is_waited_for(tmp_path, monkeypatch):
    looks = iter([False, False, True])
    monkeypatch.setattr(Path, "exists", lambda path: next(looks))
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    store._require_shared(tmp_path / "late")
    assert next(looks, None) is None
