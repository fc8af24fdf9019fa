import os
import sys
import types
from importlib import metadata

import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.text import encoders


@pytest.fixture(scope="module")
def wordllama():
    return encoders.build("wordllama")


def test_wordllama_is_the_mean_of_token_vectors(wordllama):
    rows = wordllama.encode(["Toy Story (1995)"])
    model = wordllama._loaded()
    ids = model.tokenizer.encode("Toy Story (1995)", add_special_tokens=False).ids
    assert len(ids) > 3
    np.testing.assert_allclose(rows[0], np.mean([model.embedding[i] for i in ids], axis=0), rtol=1e-5)
    assert rows.dtype == np.float32
    assert rows.shape == (1, wordllama.dimension) == (1, 256)


def test_wordllama_equals_its_own_pooling(wordllama):
    import wordllama as package

    texts = ["red lipstick", "a stapler for the office, grey", "x"]
    theirs = package.WordLlama.load(cache_dir=package.__path__[0], disable_download=True).embed(texts)
    np.testing.assert_allclose(wordllama.encode(texts), theirs, atol=1e-6)


def test_wordllama_rows_do_not_depend_on_the_other_texts(wordllama):
    long = "very " * 3000
    together = wordllama.encode(["pen", long, "", "paper"])
    np.testing.assert_array_equal(together[0], wordllama.encode(["pen"])[0])
    np.testing.assert_array_equal(together[3], wordllama.encode(["paper"])[0])
    assert not together[2].any()
    assert wordllama.encode([]).shape == (0, 256)


def test_wordllama_tells_meaning(wordllama):
    rows = wordllama.encode(
        ["science fiction movie about space", "film about astronauts and planets", "stapler refill"]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1


def test_name_and_version_need_no_model():
    encoder = encoders.build("wordllama")
    assert encoder.name == "wordllama"
    assert encoder.version.startswith(metadata.version("wordllama") + "/")
    assert encoder._model is None


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match=r"Unknown text encoder 'wordlama'.*Known: .*Did you mean 'wordllama'\?"):
        encoders.build("wordlama")
    with pytest.raises(InputError, match="wordllama takes no argument, got wordllama:big"):
        encoders.build("wordllama:big")
    with pytest.raises(InputError, match="needs a model: --text_encoder=sentence-transformers:MODEL"):
        encoders.build("sentence-transformers")


def test_missing_extra_is_named(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(encoders.metadata, "version", absent)
    with pytest.raises(InputError, match=r"sentence-transformers, which is not installed: pip install '\.\[llm\]'"):
        encoders.build("sentence-transformers:all-MiniLM-L6-v2")


class _Model:
    """Stands for sentence_transformers.SentenceTransformer: a vector of lengths."""

    def __init__(self, source):
        if source == "nowhere":
            raise OSError("nowhere is not a known model\nand more lines")
        self.source = source

    def get_embedding_dimension(self):
        return 3

    def encode(self, texts, *, convert_to_numpy, show_progress_bar):
        assert convert_to_numpy
        assert not show_progress_bar
        return np.array([[len(text), 1, 2] for text in texts], np.float64)


class _OlderModel(_Model):
    """Before version 5.4."""

    get_embedding_dimension = property()  # raises AttributeError

    def get_sentence_embedding_dimension(self):
        return 3


@pytest.fixture(params=[_Model, _OlderModel])
def library(request, monkeypatch):
    monkeypatch.setattr(encoders.metadata, "version", lambda name: "9.9")
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=request.param))


@pytest.mark.usefixtures("library")
def test_sentence_transformers():
    encoder = encoders.build("sentence-transformers:org/model:tag")
    assert encoder.name == "sentence-transformers:org/model:tag"
    assert encoder.version == "9.9/hub"
    assert encoder.dimension == 3
    rows = encoder.encode(("ab", "c"))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[2, 1, 2], [1, 1, 2]])


@pytest.mark.usefixtures("library")
def test_sentence_transformers_folder_has_a_version(tmp_path):
    version = lambda: encoders.build(f"sentence-transformers:{tmp_path}").version  # noqa: E731
    weights, content = tmp_path / "weights", np.random.default_rng(0).bytes(3 * 2**20)
    weights.write_bytes(content)
    before = version()
    os.utime(weights, (1, 1))  # a copy on another host
    assert version() == before
    for at in (5, len(content) // 2, len(content) - 5):
        weights.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert version() != before
    weights.write_bytes(content)
    weights.rename(tmp_path / "other")
    assert version() != before


@pytest.mark.usefixtures("library")
def test_sentence_transformers_model_that_does_not_load():
    with pytest.raises(
        InputError, match=r"'nowhere' of --text_encoder can't be loaded \(nowhere is not a known model\)"
    ):
        encoders.build("sentence-transformers:nowhere").encode(["a"])
