"""A .npz file read whole; whatever may be wrong with one is a `ValueError`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; never unpickles.

    Raises:
      OSError: it can't be opened or read.
      ValueError: it is no such file, or damaged.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file):  # or NumPy takes a .npy file, too
                pass
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        # RuntimeError: a bit of the method of compression, or one that says encrypted; KeyError: of a name.
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
            raise ValueError(f"damaged or no .npz file: {error}") from error
