import pickle

import ml_dtypes
import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.text import digests, item_embeddings, precomputed


def embeddings(path, tmp_path, *, n=6, items_row=None, item_ids=None, **options):
    items_row = np.arange(n, dtype=np.int32) if items_row is None else np.asarray(items_row, np.int32)
    ids = [f"item-{row}" for row in items_row] if item_ids is None else item_ids
    config = Config().replace(embeddings=str(path), k_core=options.pop("k_core", 0))
    return item_embeddings(
        config, item_ids=ids, item_text=[""] * len(ids), items_row=items_row, cache_dir=tmp_path / "cache", **options
    )


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float16)


@pytest.fixture
def path(tmp_path, matrix):
    np.save(tmp_path / "x.npy", matrix)
    return tmp_path / "x.npy"


def test_whole_file_is_mapped(path, matrix, tmp_path):
    result = embeddings(path, tmp_path)
    np.testing.assert_array_equal(result.matrix, matrix)
    assert isinstance(result.matrix, np.memmap)
    assert result.matrix.dtype == np.float16
    assert result.has_text.all()
    assert result.name == "precomputed"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("rows", [[4, 1, 2], [5, 4, 3, 2, 1, 0], [0, 2, 3, 5], [2, 3, 4]])
def test_rows_of_the_catalogue_are_picked(path, matrix, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(digests, "_CHUNK_BYTES", 16)
    for _ in range(2):  # made, then read back
        result = embeddings(path, tmp_path, items_row=rows, k_core=2)
        np.testing.assert_array_equal(result.matrix, matrix[rows])
        assert isinstance(result.matrix, np.memmap)
    assert (tmp_path / "cache").exists() == (rows != [2, 3, 4])  # a run of rows needs no copy


def test_rows_picked_for_one_catalogue_are_not_those_of_another(path, matrix, tmp_path):
    for rows in ([4, 1], [1, 4], [4, 0]):
        np.testing.assert_array_equal(embeddings(path, tmp_path, items_row=rows, k_core=2).matrix, matrix[rows])


def test_picked_rows_that_were_damaged_are_copied_again(path, matrix, tmp_path, caplog):
    embeddings(path, tmp_path, items_row=[4, 1], k_core=2)
    (stored,) = (tmp_path / "cache").rglob("embeddings.npy")
    np.save(stored, np.zeros((2, 4), np.float16))
    np.testing.assert_array_equal(embeddings(path, tmp_path, items_row=[4, 1], k_core=2).matrix, matrix[[4, 1]])
    assert "made anew" in caplog.text


def test_a_file_that_changes_while_its_rows_are_picked_is_refused(path, matrix, tmp_path, monkeypatch):
    def then_changed(rows):
        found = digests.scan(rows)
        with path.open("r+b") as file:
            file.seek(-2 * matrix.shape[1], 2)
            file.write(matrix[0].tobytes())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(precomputed, "scan", then_changed)
        with pytest.raises(InputError, match=r"x\.npy was changed while it was read; start again when it is complete"):
            embeddings(path, tmp_path, items_row=[5, 1], k_core=2)
    assert not any((tmp_path / "cache" / "text").iterdir())
    np.testing.assert_array_equal(embeddings(path, tmp_path, items_row=[5, 1], k_core=2).matrix, matrix[[0, 1]])


def test_digest_follows_content_order_and_items(path, matrix, tmp_path):
    first = embeddings(path, tmp_path).digest
    assert embeddings(path, tmp_path).digest == first
    others = {
        embeddings(path, tmp_path, item_ids=list("abcdef")).digest,
        embeddings(path, tmp_path, items_row=[1, 0, 2, 3, 4, 5]).digest,
        embeddings(path, tmp_path, items_row=range(5), k_core=2).digest,
    }
    matrix[3, 2] += 1
    np.save(path, matrix)
    others.add(embeddings(path, tmp_path).digest)
    np.save(path, matrix.astype(np.float32))
    others.add(embeddings(path, tmp_path).digest)
    assert len(others | {first}) == 6


def test_zero_rows_are_items_without_text(tmp_path, matrix, caplog):
    matrix[[1, 4]] = 0
    np.save(tmp_path / "x.npy", matrix)
    result = embeddings(tmp_path / "x.npy", tmp_path)
    assert result.has_text.tolist() == [True, False, True, True, False, True]
    assert result.without_text == 2
    assert "2 of 6 items have no text" in caplog.text
    picked = embeddings(tmp_path / "x.npy", tmp_path, items_row=[4, 3, 1, 5], k_core=2)
    assert picked.has_text.tolist() == [False, True, False, True]


def test_foreign_byte_order_and_fortran_order(tmp_path, matrix):
    np.save(tmp_path / "big.npy", matrix.astype(">f4"))
    result = embeddings(tmp_path / "big.npy", tmp_path)
    assert result.matrix.dtype.isnative
    np.testing.assert_array_equal(result.matrix, matrix.astype(np.float32))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(matrix))
    np.testing.assert_array_equal(embeddings(tmp_path / "fortran.npy", tmp_path).matrix, matrix)


def test_number_of_rows(path, tmp_path):
    with pytest.raises(InputError, match=r"x\.npy: text embeddings have 6 rows, but the items file has 5 items"):
        embeddings(path, tmp_path, n=5)
    with pytest.raises(InputError, match=r"6 rows, but the items file has 7 items; .* in its order"):
        embeddings(path, tmp_path, n=7)
    # With a k-core the catalogue may be smaller than the file; its size is told, or at least bounded.
    assert len(embeddings(path, tmp_path, n=5, k_core=2).matrix) == 5
    with pytest.raises(InputError, match="6 rows, but the items file has at least 8 items"):
        embeddings(path, tmp_path, items_row=[1, 7], k_core=2)
    with pytest.raises(InputError, match="6 rows, but the items file has 9 items"):
        embeddings(path, tmp_path, n=5, k_core=2, items_file_rows=9)


def test_nan_rows_are_counted_and_named(tmp_path, matrix):
    matrix[[0, 2, 3, 5], 1] = [np.nan, np.inf, -np.inf, np.nan]
    np.save(tmp_path / "x.npy", matrix)
    with pytest.raises(InputError, match=r"4 of 6 items have NaN or inf.*'item-0', 'item-2', 'item-3'"):
        embeddings(tmp_path / "x.npy", tmp_path)
    with pytest.raises(InputError, match=r"1 of 2 items have NaN or inf.*'item-5'"):
        embeddings(tmp_path / "x.npy", tmp_path, items_row=[4, 5], k_core=2)
    # Rows of items that left the catalogue do not matter.
    assert len(embeddings(tmp_path / "x.npy", tmp_path, items_row=[1, 4], k_core=2).matrix) == 2


def test_numbers_beyond_float32_are_named_as_such(tmp_path, matrix):
    large = matrix.astype(np.float64)
    large[[1, 4], 2] = [np.finfo(np.float32).max, -1e300]
    np.save(tmp_path / "x.npy", large)
    with pytest.raises(
        InputError, match=r"x\.npy: 1 of 6 items have numbers beyond float32's range.*'item-4'.*3\.4e38"
    ):
        embeddings(tmp_path / "x.npy", tmp_path)
    assert len(embeddings(tmp_path / "x.npy", tmp_path, items_row=[1, 3], k_core=2).matrix) == 2


def write_pickle(path):
    path.write_bytes(pickle.dumps(np.ones((6, 4))))


def write_truncated(path):
    np.save(path, np.ones((6, 4)))
    path.write_bytes(path.read_bytes()[:-9])


def write_archive(path):
    with path.open("wb") as file:
        np.savez(file, x=np.ones((6, 4)))


UNREADABLE = {
    "objects": (lambda p: np.save(p, np.array([[{}, {}]] * 6, object), allow_pickle=True), "pickled Python objects"),
    "pickle": (write_pickle, "can't be read as a .npy file"),
    "archive": (write_archive, "can't be read as a .npy file"),
    "text": (lambda p: p.write_text("1,2\n3,4\n"), "can't be read as a .npy file"),
    "empty": (lambda p: p.write_text(""), "can't be read as a .npy file"),
    "truncated": (write_truncated, "can't be read as a .npy file"),
    "vector": (lambda p: np.save(p, np.ones(6)), "shape [items, dimension]"),
    "cube": (lambda p: np.save(p, np.ones((6, 2, 2))), "got (6, 2, 2)"),
    "one column": (lambda p: np.save(p, np.ones((6, 1))), "dimension of at least 2"),
    "integers": (lambda p: np.save(p, np.ones((6, 4), np.int8)), "got dtype int8; np.save it with .astype('float32')"),
    "complex": (lambda p: np.save(p, np.ones((6, 4), complex)), "got dtype complex128"),
    "bfloat16": (lambda p: np.save(p, np.ones((6, 4), ml_dtypes.bfloat16)), "no name for bfloat16"),
    "long double": (lambda p: np.save(p, np.ones((6, 4), np.longdouble)), "float16, float32 or float64"),
    "zeros": (lambda p: np.save(p, np.zeros((6, 4))), "all 6 rows are zero"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_bad_files(tmp_path, name):
    write, words = UNREADABLE[name]
    write(tmp_path / "x.npy")
    with pytest.raises(InputError) as error:
        embeddings(tmp_path / "x.npy", tmp_path)
    assert words in str(error.value)
    assert "x.npy" in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"file not found: .*none\.npy"):
        embeddings(tmp_path / "none.npy", tmp_path)
    with pytest.raises(InputError, match="file not found"):
        embeddings(tmp_path, tmp_path)
