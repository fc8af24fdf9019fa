"""Files are written whole or not at all, and nothing but a plain file is replaced."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from spectran_jax.errors import InputError, RunError, outcome
from spectran_jax.writing import is_stdout, new_folder, require_writable, write_bytes, write_errors, write_text


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_text(tmp_path / "link", "one")
    write_text(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "two"
    assert os.listdir(tmp_path / "there") == ["file"]


def test_a_pipe_gets_the_content(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    write_bytes(tmp_path / "pipe", b"content")
    reader.join(10)
    assert got == [b"content"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_pipe_without_a_name_gets_the_content():
    """As /dev/stdout is where the output of a command goes to another one."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader:
        with os.fdopen(write, "wb"):
            output = Path(f"/dev/fd/{write}")
            require_writable(output)
            write_bytes(output, b"content")
        assert reader.read() == b"content"


def test_an_open_file_gets_the_content_where_it_stands(tmp_path):
    """As in `{ echo header; python -m experiments.recommend --output=/dev/stdout; echo trailer; } > FILE`."""
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"header ")
        output = Path(f"/dev/fd/{file.fileno()}")
        require_writable(output)
        write_bytes(output, b"content ")
        file.write(b"trailer")
    assert (tmp_path / "file").read_bytes() == b"header content trailer"


def test_what_is_stdout():
    """Where a command says nothing else, as another may read what it writes there."""
    for name, whether in (
        ("/dev/stdout", True),
        ("/proc/self/fd/1", True),
        ("/dev/stderr", False),
        ("top.jsonl", False),
    ):
        assert is_stdout(Path(name)) is whether


def test_a_pipe_that_nobody_reads_is_no_failure_to_write():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb"), pytest.raises(BrokenPipeError):
        write_bytes(Path(f"/dev/fd/{write}"), b"content")


def test_a_name_as_long_as_names_can_be(tmp_path):
    write_text(tmp_path / ("x" * 255), "one")
    assert [len(name) for name in os.listdir(tmp_path)] == [255]
    with pytest.raises(RunError, match="File name too long"):
        write_text(tmp_path / ("x" * 256), "one")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, RunError, "The disk is full: place could not be written"),
        (errno.EDQUOT, RunError, "The disk is full: place could not be written"),
        (errno.EFBIG, RunError, "The disk is full: place could not be written"),
        (errno.EIO, RunError, "place can't be written"),
        (errno.EACCES, InputError, "place can't be written"),
    ],
)
def test_a_disk_that_is_full_or_broken_is_a_failure_and_another_place_is_input(code, kind, message):
    refused = OSError(code, os.strerror(code), "/place")
    with pytest.raises(kind, match=rf"^{message} .*--data_dir"), write_errors(Path("place")):
        raise refused
    assert outcome(refused) == (kind.exit_status, f"/place: {os.strerror(code)}.")


def filled(folder, text, **options):
    with new_folder(folder, **options) as draft:
        (draft / "file").write_text(text)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("replace", [True, False])
def test_two_that_make_one_folder(tmp_path, old, replace):
    folder = tmp_path / "parent" / "folder"
    if old:
        filled(folder, "old")
    with new_folder(folder, replace=replace) as draft:
        (draft / "file").write_text("last")
        filled(folder, "first", replace=replace)
        assert (folder / "file").read_text() == "first"
    assert (folder / "file").read_text() == ("last" if replace else "first")
    assert os.listdir(folder.parent) == ["folder"]


@pytest.mark.parametrize("replace", [True, False])
def test_an_older_folder_outlives_a_draft_that_fails(tmp_path, replace):
    filled(tmp_path / "folder", "old")
    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "folder", replace=replace):
        raise ValueError("no")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "folder", replace=replace) as draft:
        shutil.rmtree(draft)  # it can't take its place
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_new_folder_may_be_read_by_others_as_any_other(tmp_path):
    filled(tmp_path / "new", "")
    (tmp_path / "other").mkdir()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode
