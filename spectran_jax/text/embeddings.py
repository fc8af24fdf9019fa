"""The text embeddings of a catalogue: the user's own, or encoded from the items' text and cached."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from spectran_jax import processes
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.file_state import FileState
from spectran_jax.report.words import count
from spectran_jax.text import encoders, precomputed, store
from spectran_jax.text.digests import digest_of

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

_ENCODE_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class TextEmbeddings:
    """One text embedding per dense item."""

    matrix: Float[np.ndarray, "N m"]
    """Floating, read-only, memory-mapped; rows in the order of the dense ids; zero rows for items without text."""
    has_text: Bool[np.ndarray, "N"]
    """False for items without text: they take no part in the spectrum."""
    digest: str
    """SHA-256 of content, order and items, 64 hex digits: equal digests mean equal rows for equal items."""
    name: str
    """Where they come from: the encoder's name, or "precomputed"."""
    file: FileState | None = None
    """Of your own that `matrix` is mapped from, as it was when `digest` was taken; None for what lies in the cache."""

    @property
    def without_text(self) -> int:
        """How many items have no text."""
        return int(np.count_nonzero(~self.has_text))


def item_embeddings(
    config: Config,
    *,
    item_ids: Sequence[str | int],
    item_text: Sequence[str],
    items_row: Int[np.ndarray, "N"],
    cache_dir: Path,
    items_file_rows: int | None = None,
    require_text: bool = True,
    progress: Progress | None = None,
) -> TextEmbeddings:
    """The text embeddings of a catalogue: `config.text.embeddings`, or `config.text.text_encoder` over its text.

    What is encoded is kept in `cache_dir`, keyed by the item ids, their text, and the encoder's name and version;
    a cache that is damaged or of other items is reported and made anew. Items without text are counted
    in a warning, have a zero row, and are not encoded. With several processes each encodes its own items (collective;
    see `store`).

    Args:
      config: the sections `text` and `data` are read.
      item_ids: original id of each dense item, [N].
      item_text: what is encoded, [N]; "" (or blanks) where an item has no text. Not used with precomputed embeddings.
      items_row: int32 [N], row of the items file of each dense item: picks the rows of precomputed embeddings.
      cache_dir: folder of caches; made if absent.
      items_file_rows: rows of the items file. Where it is not given, precomputed embeddings must have N rows,
        or, where `config.data.k_core` may have left items out, at least as many as `items_row` names.
      require_text: whether items that all have no text are refused, as nothing can be learned of them.
      progress: called with (done, total) while text is encoded; with several processes, as if all were as far.

    Raises:
      InputError: bad precomputed embeddings (see `precomputed.load`), unknown encoder, no item with text,
        an encoder that gives NaN or inf, or `cache_dir` can't be written to.
      RunError: the disk is full.
    """
    items_row = np.asarray(items_row)
    if not len(item_ids) == len(item_text) == len(items_row):
        raise InputError(
            f"Each item needs one id, one text and one row: got {len(item_ids)} ids, {len(item_text)} texts "
            f"and {len(items_row)} rows."
        )
    if config.text.embeddings:
        if items_file_rows is None and config.data.k_core == 0:
            items_file_rows = len(item_ids)
        matrix, has_text, digest, file = precomputed.load(
            Path(config.text.embeddings).expanduser(),
            item_ids=item_ids,
            items_row=items_row,
            expected_rows=items_file_rows,
            cache_dir=cache_dir,
            items_file=config.data.items or "the items file",
        )
        if require_text and not has_text.any():
            raise InputError(
                f"{config.text.embeddings}: all {len(item_ids)} rows are zero, which says that no item has text; "
                "at least two rows must hold a text embedding."
            )
        result = TextEmbeddings(matrix, has_text, digest, "precomputed", file)
    else:
        encoder = processes.together(lambda: encoders.build(config.text.text_encoder))
        if require_text and not any(text.strip() for text in item_text):
            raise InputError(
                f"None of the {len(item_ids)} items has text to encode; give --items with text columns, or "
                "--embeddings, or choose --item_encoder=id."
            )
        result = _encoded(encoder, item_ids, item_text, cache_dir, progress)
    if result.without_text:
        logger.warning("%d of %d items have no text: their semantic part is zero.", result.without_text, len(item_ids))
    return result


def _encoded(
    encoder: encoders.TextEncoder,
    item_ids: Sequence[str | int],
    item_text: Sequence[str],
    cache_dir: Path,
    progress: Progress | None,
) -> TextEmbeddings:
    identity = {
        "items": digest_of(item_ids),
        "text": digest_of(item_text),
        "encoder": encoder.name,
        "version": encoder.version,
    }
    _require_same(identity)
    names = ["embeddings", "has_text"]
    folder = cache_dir / "text" / digest_of(identity.values())[:32]
    stored = store.open_sealed(folder, identity, names)
    if stored is None:
        rows = processes.rows_of(len(item_text))
        has_text = np.zeros(rows.stop - rows.start, bool)
        shape = (len(item_text), processes.together(lambda: encoder.dimension))
        with store.sealed_folder(folder, identity) as draft:
            # float32: a model's own rounding, where float16 would add noise at 5e-4 of every number.
            blocks = _blocks(encoder, item_ids[rows], item_text[rows], has_text, progress, len(item_text))
            draft.write_rows("embeddings", blocks, shape=shape, dtype=np.float32)
            draft.write_rows("has_text", [has_text], shape=shape[:1], dtype=np.bool_)
        stored = store.reopen(folder, identity, names)
    has_text = np.array(stored.arrays["has_text"])
    return TextEmbeddings(stored.arrays["embeddings"], has_text, stored.digest, encoder.name)


def _require_same(identity: store.Identity) -> None:
    """Refuses processes that would encode other items, other text or with another encoder (collective)."""
    for index, data in enumerate(processes.gathered_bytes(json.dumps(dict(identity)).encode())):
        for name, theirs in json.loads(data).items():
            if theirs != identity[name]:
                raise InputError(
                    f"The processes disagree on the {name} of the text encoding: {identity[name]} for process "
                    f"{jax.process_index()}, {theirs} for process {index}. Give all of them the same model, packages "
                    "and input files."
                )


def _blocks(
    encoder: encoders.TextEncoder,
    item_ids: Sequence[str | int],
    item_text: Sequence[str],
    has_text: np.ndarray,
    progress: Progress | None,
    total: int,
) -> Iterator[np.ndarray]:
    """Consecutive rows of the matrix; marks in `has_text` the items whose text the encoder could read."""
    for start in range(0, len(item_text), _ENCODE_AT_ONCE):
        texts = list(item_text[start : start + _ENCODE_AT_ONCE])
        block = np.zeros((len(texts), encoder.dimension), np.float32)
        chosen = [i for i, text in enumerate(texts) if text.strip()]
        if chosen:
            ids = list(item_ids[start : start + len(texts)])
            vectors = encoder.encode([texts[i] for i in chosen])
            block[chosen] = _checked(encoder, vectors, [ids[i] for i in chosen])
        has_text[start : start + len(texts)] = block.any(axis=1)
        yield block
        if progress is not None:
            progress((start + len(texts)) * total // len(item_text), total)


def _checked(encoder: encoders.TextEncoder, vectors: np.ndarray, item_ids: Sequence[str | int]) -> np.ndarray:
    """What an encoder returned for these items, if it is one finite vector each."""
    if vectors.shape != (len(item_ids), encoder.dimension):
        raise InputError(
            f"Text encoder {encoder.name} returned shape {vectors.shape} for {len(item_ids)} texts; "
            f"it must be [{len(item_ids)}, {encoder.dimension}]."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        first = ", ".join(repr(item_ids[i]) for i in bad[:3])
        raise InputError(
            f"Text encoder {encoder.name} returned NaN or inf for {count(len(bad), 'item')}, the first: {first}; "
            "every number must be finite."
        )
    return vectors
