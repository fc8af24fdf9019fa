"""TFDS builders: a data set as ArrayRecord on disk, written and read without TensorFlow.

Each builder has two configurations: `sequences` (users and their histories) and `items` (the catalogue and its
text). A record holds a block of many users or items, so that the time to read follows the bytes, not the users;
its arrays are those of `Histories`, cut at block borders.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from spectran_jax.data.content import Content
from spectran_jax.data.interactions import Histories, OriginalId

_BLOCK = 2048
_SPLIT = "full"
_DIGEST = "sha256"
"""Key of the digest of all other entries of metadata.json."""
_CITATION = """@article{harper2015movielens,
  title={The MovieLens Datasets: History and Context}, author={Harper, F. Maxwell and Konstan, Joseph A.},
  journal={ACM Transactions on Interactive Intelligent Systems}, volume={5}, number={4}, year={2015}}"""


class _Interactions(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes a `Content`; both configurations have one split."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS wants a list)
        tfds.core.BuilderConfig(name="sequences", description="Users and their histories, oldest item first."),
        tfds.core.BuilderConfig(name="items", description="The items and their text, in the order of dense ids."),
    ]
    DESCRIPTION = ""
    CITATION = ""
    code_path = None
    """Nothing is downloaded through TFDS, so there is no file of checksums beside the code to look for."""

    def __init__(self, *, content: Content, **kwargs: Any) -> None:
        self._content = content
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        content = self._content
        strings, int32, int64 = (
            tfds.features.Tensor(shape=(None,), dtype=dtype) for dtype in (np.object_, np.int32, np.int64)
        )
        if self.builder_config.name == "items":
            features = {"item_id": strings, "row": int32}
            features |= {f"text_{index}": strings for index in range(len(content.columns))}
            metadata = {
                "ids": _kind(content.item_ids),
                "columns": json.dumps(list(content.columns)),
                "text_columns": json.dumps(content.text_columns),
            }
        else:
            features = {"user_id": strings, "length": int64, "items": int32}
            if content.histories.timestamps is not None:
                features["timestamps"] = int64
            if content.histories.placed is not None:
                features["placed"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_)
            metadata = {"ids": _kind(content.user_ids), "dropped": json.dumps(content.dropped)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(metadata, **{_DIGEST: _digest(metadata)}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._item_blocks() if self.builder_config.name == "items" else self._user_blocks()

    def _user_blocks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        content = self._content
        for start in range(0, len(content.user_ids), _BLOCK):
            stop = min(start + _BLOCK, len(content.user_ids))
            part = content.histories.take(np.arange(start, stop))
            block = {"user_id": _strings(content.user_ids[start:stop]), "length": part.lengths, "items": part.items}
            if part.timestamps is not None:
                block["timestamps"] = part.timestamps
            if part.placed is not None:
                block["placed"] = part.placed
            yield start, block

    def _item_blocks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        content = self._content
        for start in range(0, len(content.item_ids), _BLOCK):
            stop = start + _BLOCK
            block = {"item_id": _strings(content.item_ids[start:stop]), "row": content.items_row[start:stop]}
            for index, texts in enumerate(content.columns.values()):
                block[f"text_{index}"] = _strings(texts[start:stop])
            yield start, block


class MovieLens100K(_Interactions):
    """MovieLens-100K: 943 users, 1,682 films, 100,000 ratings, taken as interactions."""

    name = "movielens_100k"
    DESCRIPTION = "MovieLens-100K (GroupLens; research use, with citation): ratings as interactions, titles, genres."
    CITATION = _CITATION


class Files(_Interactions):
    """The user's own interactions and items."""

    name = "files"
    DESCRIPTION = "Interactions and items from the user's own files."


BUILDERS: dict[str, type[_Interactions]] = {builder.name: builder for builder in (MovieLens100K, Files)}


def write(name: str, content: Content, folder: Path) -> None:
    """Prepares both configurations of builder `name` in `folder`, quietly."""
    for config in BUILDERS[name].BUILDER_CONFIGS:
        builder = BUILDERS[name](content=content, config=config.name, data_dir=folder)
        with _quiet():
            builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS makes it whether or not it downloads


def read(name: str, folder: Path) -> Content:
    """Reads back what `write` wrote.

    Raises:
      Exception: of whatever kind TFDS and ArrayRecord raise where files are missing or damaged.
    """
    sequences, users = _read_config(name, "sequences", folder)
    catalogue, items = _read_config(name, "items", folder)
    lengths = _joined(users, "length", np.int64)
    names = json.loads(catalogue["columns"])
    return Content(
        user_ids=_originals(sequences["ids"], users, "user_id"),
        item_ids=_originals(catalogue["ids"], items, "item_id"),
        histories=Histories(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            _joined(users, "items", np.int32),
            _joined(users, "timestamps", np.int64) if "timestamps" in users[0] else None,
            _joined(users, "placed", np.bool_) if "placed" in users[0] else None,
        ),
        items_row=_joined(items, "row", np.int32),
        columns={column: _texts(items, f"text_{index}") for index, column in enumerate(names)},
        text_columns=tuple(json.loads(catalogue["text_columns"])),
        dropped=json.loads(sequences["dropped"]),
    )


def _read_config(name: str, config: str, folder: Path) -> tuple[Any, list[dict[str, np.ndarray]]]:
    builder = tfds.builder_from_directory(folder / name / config / str(BUILDERS[name].VERSION))
    metadata = dict(builder.info.metadata)
    # Records have checksums of their own. What was prepared before this one had none.
    if metadata.pop(_DIGEST, None) not in (None, _digest(metadata)):
        raise ValueError(f"{config}: metadata.json is not as it was written")
    return metadata, list(builder.as_data_source(_SPLIT))


def _joined(blocks: list[dict[str, np.ndarray]], feature: str, dtype: Any) -> np.ndarray:
    return np.concatenate([block[feature] for block in blocks]).astype(dtype, copy=False)


def _texts(blocks: list[dict[str, np.ndarray]], feature: str) -> list[str]:
    return [entry.decode() for block in blocks for entry in block[feature]]


def _originals(kind: str, blocks: list[dict[str, np.ndarray]], feature: str) -> list[OriginalId]:
    texts = _texts(blocks, feature)
    return [int(text) for text in texts] if kind == "int" else list(texts)


def _digest(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _kind(ids: list[OriginalId]) -> str:
    return "int" if all(isinstance(one, int) for one in ids) else "str"


def _strings(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = [str(value) for value in values]
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from drawing progress bars and printing where it writes."""
    bars = getattr(tfds.core.utils.tqdm_utils, "_active", True)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(bars)
