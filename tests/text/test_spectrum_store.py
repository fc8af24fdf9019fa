import dataclasses
import json
import types

import numpy as np
import pytest

from spectran_jax import spectral
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.text import TextEmbeddings, item_embeddings, load_or_decompose
from spectran_jax.text.digests import checksum


def make(digest="d" * 64, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(30, 8)).astype(np.float32)
    has_text = np.arange(30) != 4
    return TextEmbeddings(matrix, has_text, digest, "test")


@pytest.fixture
def decompositions(monkeypatch):
    """What was passed on to each decomposition."""
    calls, original = [], spectral.decompose_to

    def counted(path, x, has_text, **options):
        calls.append(options)
        return original(path, x, has_text, **options)

    monkeypatch.setattr(spectral, "decompose_to", counted)
    return calls


def equal(one, two):
    for field in dataclasses.fields(spectral.Spectrum):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if a is None or b is None:
            assert a is b
            continue
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape


def test_decomposed_once(tmp_path, decompositions):
    embeddings = make()
    first = load_or_decompose(Config(), embeddings, tmp_path)
    second = load_or_decompose(Config(), embeddings, tmp_path)
    assert len(decompositions) == 1
    equal(first, second)
    assert isinstance(first.u, np.memmap)
    again = spectral.project(second, embeddings.matrix)
    np.testing.assert_allclose(again[embeddings.has_text], first.u[embeddings.has_text], atol=1e-5)
    assert not first.u[4].any()
    assert int(first.count) == 29
    equal(first, spectral.decompose(embeddings.matrix, embeddings.has_text))


def test_embeddings_that_change_meanwhile_leave_no_spectrum(tmp_path, monkeypatch):
    path, original, other = tmp_path / "x.npy", spectral.decompose_to, make(seed=1).matrix
    np.save(path, make().matrix)
    rows = np.arange(30, dtype=np.int32)

    def read():
        config = Config().replace(embeddings=str(path))
        return item_embeddings(
            config, item_ids=rows.tolist(), item_text=[""] * 30, items_row=rows, cache_dir=tmp_path / "cache"
        )

    def changed_first(*args, **options):
        np.save(path, other)  # in place: what is mapped is the new content
        return original(*args, **options)

    before = read()
    monkeypatch.setattr(spectral, "decompose_to", changed_first)
    with pytest.raises(InputError, match=r"x\.npy was changed while it was read; start again when it is complete"):
        load_or_decompose(Config(), before, tmp_path / "cache")
    assert not any((tmp_path / "cache" / "spectrum").iterdir())
    monkeypatch.setattr(spectral, "decompose_to", original)
    after = read()
    equal(load_or_decompose(Config(), after, tmp_path / "cache"), spectral.decompose(other))
    path.unlink()
    with pytest.raises(InputError, match="was changed while it was read"):
        load_or_decompose(Config().replace(max_rank=2), after, tmp_path / "cache")


def test_options_reach_the_decomposition_and_the_key(tmp_path, decompositions):
    embeddings = make()
    changes = [
        {},
        {"normalize_rows": False},
        {"center": False},
        {"rtol": 0.5},
        {"max_rank": 3},
        {"decomposition": "gram"},
        {"spectrum_dtype": "int8"},
    ]
    for change in changes:
        load_or_decompose(Config().replace(**change), embeddings, tmp_path)
    load_or_decompose(Config(), make(digest="e" * 64), tmp_path)
    assert len(decompositions) == len(changes) + 1
    assert decompositions[1]["normalize_rows"] is False
    assert decompositions[2]["center"] is False
    assert decompositions[3]["rtol"] == 0.5
    assert decompositions[4]["max_rank"] == 3
    assert decompositions[5]["method"] == "gram"
    assert decompositions[6]["dtype"] == "int8"
    load_or_decompose(Config().replace(dropout=0.1), embeddings, tmp_path)  # no business of the spectrum
    assert len(decompositions) == len(changes) + 1


def test_code_version_is_part_of_the_key(tmp_path, decompositions, monkeypatch):
    load_or_decompose(Config(), make(), tmp_path)
    monkeypatch.setattr(spectral, "VERSION", spectral.VERSION + 1)
    load_or_decompose(Config(), make(), tmp_path)
    assert len(decompositions) == 2


@pytest.mark.parametrize("name", ["u", "sigma", "basis", "mean", "scale", "count"])
def test_damage_is_mended(tmp_path, decompositions, name, caplog):
    want = load_or_decompose(Config(), make(), tmp_path)
    want = dataclasses.replace(want, u=np.array(want.u))
    (file,) = tmp_path.rglob(f"{name}.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    equal(load_or_decompose(Config(), make(), tmp_path), want)
    assert "made anew" in caplog.text
    assert len(decompositions) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_small_dtypes_come_back(tmp_path, decompositions, dtype, caplog):
    config = Config().replace(spectrum_dtype=dtype)
    embeddings = make()
    want = spectral.decompose(embeddings.matrix, embeddings.has_text, dtype=dtype)
    for _ in range(2):
        got = load_or_decompose(config, embeddings, tmp_path)
        equal(got, want)
        assert isinstance(got.u, np.memmap)
    assert len(decompositions) == 1
    for file in [*tmp_path.rglob("u_scale.npy"), *tmp_path.rglob("u.npy")]:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        equal(load_or_decompose(config, embeddings, tmp_path), want)
    assert "made anew" in caplog.text


def test_seal_is_of_what_lies_on_disk(tmp_path):
    for dtype in spectral.DTYPES:
        load_or_decompose(Config().replace(spectrum_dtype=dtype), make(), tmp_path)
    metas = list(tmp_path.rglob("meta.json"))
    assert len(metas) == 3
    for meta in metas:
        for name, sealed in json.loads(meta.read_text())["arrays"].items():
            assert checksum(np.load(meta.parent / f"{name}.npy")) == sealed["sha256"]


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 4)])
@pytest.mark.parametrize(("max_rank", "rank"), [(0, 8), (3, 3)])
def test_a_disk_too_small_is_said_first(tmp_path, decompositions, monkeypatch, dtype, size, max_rank, rank):
    config = Config().replace(spectrum_dtype=dtype, max_rank=max_rank)
    needed = 30 * rank * size + 8 * 8 * rank
    free = [needed - 1]
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=free[0]))
    with pytest.raises(InputError) as error:
        load_or_decompose(config, make(), tmp_path)
    for word in (f"needs {needed} bytes", f"has {needed - 1} bytes", str(tmp_path), "--data_dir", "--max_rank"):
        assert word in str(error.value)
    assert "--spectrum_dtype=bfloat16" in str(error.value)
    assert not decompositions
    assert not list((tmp_path / "spectrum").iterdir())
    free[0] = needed
    assert load_or_decompose(config, make(), tmp_path).rank == len(
        spectral.decompose(make().matrix, make().has_text, max_rank=max_rank).sigma
    )
