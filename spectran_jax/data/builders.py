"""TFDS builders: a data set as ArrayRecord on disk, written and read without TensorFlow.

Each builder has two configurations: `sequences` (users and their histories) and `items` (the catalogue and its
text). A record holds a block of many users or items, so that the time to read follows the bytes, not the users;
its arrays are those of `Histories`, cut at block borders.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from spectran_jax.data.content import Content
from spectran_jax.data.entries import Entries, Packed
from spectran_jax.data.interactions import Histories, OriginalId
from spectran_jax.errors import RunError, first_line

T = TypeVar("T")

_BLOCK = 2048
"""Users or items of each record but the last; another number is another layout."""
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
    """Reads back what `write` wrote: all records, so that damage is found, but text only when it is asked for.

    Ids and text have no Python object each. A record of text that is damaged later raises a `RunError`.

    Raises:
      Exception: of whatever kind TFDS and ArrayRecord raise where files are missing or damaged.
    """
    sequences, catalogue = (_Records(folder, name, config) for config in ("sequences", "items"))
    optional = {"timestamps": np.int64, "placed": np.bool_}
    users, of_users = sequences.columns(
        "user_id",
        {"length": np.int64, "items": np.int32}
        | {feature: dtype for feature, dtype in optional.items() if feature in sequences.features},
    )
    items, of_items = catalogue.columns("item_id", {"row": np.int32})
    names = json.loads(catalogue.metadata["columns"])
    return Content(
        user_ids=users,
        item_ids=items,
        histories=Histories(
            np.concatenate([[0], np.cumsum(of_users["length"])]).astype(np.int64),
            of_users["items"],
            of_users.get("timestamps"),
            of_users.get("placed"),
        ),
        items_row=of_items["row"],
        columns=catalogue.texts(names, len(items)),
        text_columns=tuple(json.loads(catalogue.metadata["text_columns"])),
        dropped=json.loads(sequences.metadata["dropped"]),
    )


class _Records:
    """One configuration as it lies on disk, a block a record."""

    def __init__(self, folder: Path, name: str, config: str) -> None:
        builder = tfds.builder_from_directory(folder / name / config / str(BUILDERS[name].VERSION))
        self.metadata = dict(builder.info.metadata)
        # Records have checksums of their own. What was prepared before this one had none.
        if self.metadata.pop(_DIGEST, None) not in (None, _digest(self.metadata)):
            raise ValueError(f"{config}: metadata.json is not as it was written")
        self.features = builder.info.features
        self._folder = folder
        self._records = builder.as_data_source(_SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    def columns(self, ids: str, arrays: dict[str, Any]) -> tuple[Entries[OriginalId], dict[str, np.ndarray]]:
        """The ids of this feature, and arrays of these features and dtypes, from all records."""
        original, block = int if self.metadata["ids"] == "int" else str, self._decoder([ids, *arrays])
        packed: list[Packed] = []
        parts: dict[str, list[np.ndarray]] = {feature: [] for feature in arrays}
        for index in range(len(self._records)):
            found = block(index)
            packed.append(Packed.of(found[ids], original))
            for feature, dtype in arrays.items():
                parts[feature].append(found[feature].astype(dtype, copy=False))

        originals = self._in_blocks(lambda index, start, stop: packed[index].part(start, stop), sum(map(len, packed)))
        return originals, {feature: np.concatenate(part) for feature, part in parts.items()}

    def texts(self, names: list[str], rows: int) -> dict[str, Entries[str]]:
        """The text of these columns, which are all that there are; decoded in blocks when it is asked for."""
        features = [f"text_{index}" for index in range(len(names))]
        block = self._decoder(features)

        @functools.lru_cache(maxsize=2)  # who goes through all of it asks for less than a block at a time
        def decoded(index: int) -> dict[str, list[str]]:
            try:
                return {feature: [entry.decode() for entry in entries] for feature, entries in block(index).items()}
            except Exception as error:  # whatever TFDS and ArrayRecord raise
                raise RunError(
                    f"{self._folder} can't be read any more ({first_line(error)}), and was whole when this run began; "
                    "start again: what is damaged is made anew."
                ) from error

        def of(feature: str) -> Entries[str]:
            return self._in_blocks(lambda index, start, stop: decoded(index)[feature][start:stop], rows)

        return {name: of(feature) for name, feature in zip(names, features, strict=True)}

    def _in_blocks(self, part: Callable[[int, int, int], list[T]], rows: int) -> Entries[T]:
        """So many entries, of which `part(index, start, stop)` gives those of a record, cut at its end."""
        if len(self._records) != -(-rows // _BLOCK):
            raise ValueError(f"{rows} entries are in {len(self._records)} records, not {_BLOCK} in each")

        def read(start: int, stop: int) -> list[T]:
            found: list[T] = []
            for index in range(start // _BLOCK, -(-stop // _BLOCK)):
                found += part(index, max(0, start - index * _BLOCK), stop - index * _BLOCK)
            return found

        return Entries(read, rows)

    def _decoder(self, features: list[str]) -> Callable[[int], dict[str, np.ndarray]]:
        """What gives these features of a record, by its number."""
        wanted = tfds.features.FeaturesDict({feature: self.features[feature] for feature in features})

        def decode(index: int) -> dict[str, np.ndarray]:
            record = self._records[index]
            if not record:  # as ArrayRecord says it of a file that was cut while it was open
                raise ValueError(f"record {index} is not there")
            return wanted.deserialize_example_np(record)

        return decode


def _digest(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _kind(ids: Sequence[OriginalId]) -> str:
    return "int" if all(isinstance(one, int) for one in ids) else "str"


def _strings(values: Sequence[Any]) -> np.ndarray:
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
