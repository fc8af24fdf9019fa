import dataclasses

import numpy as np
import pytest

from spectran_jax import spectral
from spectran_jax.config import Config
from spectran_jax.text import TextEmbeddings, load_or_decompose, spectrum_store


def make(digest="d" * 64, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(30, 8)).astype(np.float32)
    has_text = np.arange(30) != 4
    return TextEmbeddings(matrix, has_text, digest, "test")


@pytest.fixture
def decompositions(monkeypatch):
    """What was passed on to each decomposition."""
    calls, original = [], spectral.decompose

    def counted(x, has_text, **options):
        calls.append(options)
        return original(x, has_text, **options)

    monkeypatch.setattr(spectral, "decompose", counted)
    return calls


def equal(one, two):
    for field in dataclasses.fields(spectral.Spectrum):
        a, b = getattr(one, field.name), getattr(two, field.name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape


def test_round_trip(tmp_path):
    spectrum = spectral.decompose(make().matrix)
    assert spectrum_store.load(tmp_path / "s", {"a": "1"}) is None
    spectrum_store.save(tmp_path / "s", spectrum, {"a": "1"})
    loaded = spectrum_store.load(tmp_path / "s", {"a": "1"})
    equal(loaded, spectrum)
    assert isinstance(loaded.u, np.memmap)
    assert spectrum_store.load(tmp_path / "s", {"a": "2"}) is None
    np.testing.assert_allclose(spectral.project(loaded, make().matrix), spectrum.u, atol=1e-5)


def test_decomposed_once(tmp_path, decompositions):
    embeddings = make()
    first = load_or_decompose(Config(), embeddings, tmp_path)
    second = load_or_decompose(Config(), embeddings, tmp_path)
    assert len(decompositions) == 1
    equal(first, second)
    assert not first.u[4].any()
    assert int(first.count) == 29
    equal(first, spectral.decompose(embeddings.matrix, embeddings.has_text))


def test_options_reach_the_decomposition_and_the_key(tmp_path, decompositions):
    embeddings = make()
    changes = [
        {},
        {"normalize_rows": False},
        {"center": False},
        {"rtol": 0.5},
        {"max_rank": 3},
        {"decomposition": "gram"},
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
