"""What is kept beside a run is read again, and made again where it is not what was asked for."""

import numpy as np
import pytest

from spectran_jax.studies.kept import kept


@pytest.fixture
def made():
    return []


@pytest.fixture
def read(tmp_path, made):
    """Reads `values` beside a run of the digest given; counts how often they are made."""

    def values(digest):
        arrays = {"values": np.array([1 / 3, 0.0]), "other": np.arange(3)}
        return kept(tmp_path / "part.npz", digest, "values", lambda: made.append(digest) or arrays)

    return values


def test_it_is_made_once(read, made):
    for _ in range(2):
        found = read("d")
        assert sorted(found) == ["other", "values"]
        assert found["values"].tolist() == [1 / 3, 0.0]
    assert made == ["d"]


def test_a_run_that_went_on_has_other_parameters(read, made):
    read("before")
    for _ in range(2):
        read("after")
    assert made == ["before", "after"]


@pytest.mark.parametrize("content", [b"", b"PK", b"{}", None])
def test_a_damaged_file_is_made_again(tmp_path, read, made, content):
    read("d")
    whole = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "part.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert read("d")["values"].tolist() == [1 / 3, 0.0]
    assert made == ["d", "d"]
    read("d")
    assert made == ["d", "d"]


@pytest.mark.parametrize("arrays", [{"values": [2.0]}, {"digest": "d", "other": [2.0]}])
def test_a_file_of_something_else_is_made_again(tmp_path, read, made, arrays):
    np.savez(tmp_path / "part.npz", **arrays)
    assert read("d")["values"].tolist() == [1 / 3, 0.0]
    assert made == ["d"]
