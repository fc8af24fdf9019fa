"""TensorBoard summaries, an option: the lines of metrics.jsonl as scalars, written by clu."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectran_jax.errors import InputError


class Summaries:
    """Writes the numbers of each entry under `kind/name`, e.g. `valid/ndcg@20`."""

    def __init__(self, folder: Path) -> None:
        """Opens a writer in `folder`.

        Raises:
          InputError: where the extra is not installed.
        """
        try:
            from clu import metric_writers

            self._writer = metric_writers.SummaryWriter(str(folder))
        except ImportError as error:
            raise InputError(
                f"--tensorboard needs an extra; in the repository, pip install '.[tensorboard]' ({error})."
            ) from None

    def write(self, entry: Mapping[str, Any]) -> None:
        """Adds one entry of metrics.jsonl; lists and text are left out."""
        scalars = {
            f"{entry['kind']}/{name}": float(value)
            for name, value in entry.items()
            if name not in ("kind", "step") and isinstance(value, int | float)
        }
        self._writer.write_scalars(entry["step"], scalars)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.flush()
        self._writer.close()
