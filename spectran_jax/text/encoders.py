"""Text encoders: from the words of an item to its text embedding. A new one is a class and a registry line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from spectran_jax.errors import InputError, first_line, unknown_name


class TextEncoder(Protocol):
    """What every text encoder offers. `name` and `version` together decide the numbers: caches are keyed by them."""

    name: str
    version: str

    @property
    def dimension(self) -> int:
        """m, the length of a text embedding."""

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n m"]:
        """float32, one row a text, in order; a row does not depend on the other texts."""


class WordLlama:
    """Mean of the text's token vectors (WordLlama: distilled from LLaMA-2's token embeddings); NumPy, offline."""

    def __init__(self) -> None:
        self.name = "wordllama"
        self.version = f"{_installed('wordllama', 'pip install wordllama')}/l2_supercat_256/mean-1"
        self._model: Any = None

    @property
    def dimension(self) -> int:
        """m = 256."""
        return int(self._loaded().embedding.shape[1])

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n m"]:
        """float32 [n, 256], not scaled to unit length; a text without a known token gives a row of zeros."""
        model = self._loaded()
        rows = np.zeros((len(texts), self.dimension), np.float32)
        # The library's own pooling pads a batch to its longest text: one long text costs gigabytes there.
        for row, tokens in enumerate(model.tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            if tokens.ids:
                rows[row] = model.embedding[tokens.ids].mean(axis=0)
        return rows

    def _loaded(self) -> Any:
        if self._model is None:
            import wordllama

            # The vectors and the tokenizer lie in the wheel; without the folder it would try to download them.
            folder = Path(wordllama.__file__).parent
            self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
            self._model.tokenizer.no_padding()
            self._model.tokenizer.no_truncation()
        return self._model


class SentenceTransformers:
    """Any sentence-transformers or Hugging Face model, by its hub name or folder; needs the extra [llm].

    The version of a folder tells its states apart. That of a hub name can't: which revision it stands for is known only
    once the model is loaded, and caches are looked up without that.
    """

    def __init__(self, model: str) -> None:
        if not model:
            raise InputError(
                "Text encoder sentence-transformers needs a model: --text_encoder=sentence-transformers:MODEL, "
                "e.g. sentence-transformers:all-MiniLM-L6-v2."
            )
        library = _installed("sentence-transformers", "pip install '.[llm]'")
        self.name = f"sentence-transformers:{model}"
        self.version = f"{library}/{_folder_fingerprint(Path(model))}"
        self._source = model
        self._model: Any = None

    @property
    def dimension(self) -> int:
        """m, as the model says."""
        model = self._loaded()
        named = ("get_embedding_dimension", "get_sentence_embedding_dimension")  # the second before version 5.4
        return int(next(getattr(model, name) for name in named if hasattr(model, name))())

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n m"]:
        """float32 [n, m], as the model pools and scales them."""
        rows = self._loaded().encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(rows, np.float32)

    def _loaded(self) -> Any:
        if self._model is None:
            import sentence_transformers

            try:
                self._model = sentence_transformers.SentenceTransformer(self._source)
            except (OSError, ValueError) as error:
                reason = first_line(error)
                raise InputError(
                    f"Model {self._source!r} of --text_encoder can't be loaded ({reason}); name one that "
                    "sentence-transformers can download, or a folder that holds one."
                ) from error
        return self._model


ENCODERS: dict[str, Callable[[str], TextEncoder]] = {
    "wordllama": lambda argument: _without_argument("wordllama", argument, WordLlama),
    "sentence-transformers": SentenceTransformers,
}
"""From the part of `--text_encoder` before the colon to what builds the encoder from the part after it."""


def build(name: str) -> TextEncoder:
    """The text encoder called `NAME` or `NAME:ARGUMENT`. Loads no model yet.

    Raises:
      InputError: unknown name (the known ones are listed), or a package that is not installed.
    """
    kind, _, argument = name.partition(":")
    if kind not in ENCODERS:
        raise unknown_name("text encoder", name, ENCODERS)
    return ENCODERS[kind](argument)


def _without_argument(name: str, argument: str, encoder: Callable[[], TextEncoder]) -> TextEncoder:
    if argument:
        raise InputError(f"Text encoder {name} takes no argument, got {name}:{argument}; write --text_encoder={name}.")
    return encoder()


def _installed(package: str, remedy: str) -> str:
    """The version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"This text encoder needs the package {package}, which is not installed: {remedy}.") from error


def _folder_fingerprint(model: Path) -> str:
    """Tells two states of a model's folder apart, by the names of its files and all that they hold (training moves
    weights in the middle of a file), so that copies on other hosts have the same; "hub" for a model by its hub name."""
    if not model.is_dir():
        return "hub"
    digest = hashlib.sha256()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(model).as_posix()}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
