"""Data sets of an experiment by name: built in, or tables of a TOML file. The one place that turns a name into a run.

[beauty]
interactions = "beauty/interactions.tsv"     # relative to the TOML file
items = "beauty/items.jsonl"
embeddings = "beauty/embeddings.minilm.npy"
max_length = 20                              # any field of the configuration that the study does not set itself
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.config import FILES, Config, fields
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError, unknown_name

BUILT_IN: dict[str, dict[str, Any]] = {
    "movielens_100k": {
        "dataset": "movielens_100k", "max_length": 100, "batch_size": 64, "learning_rate": 0.003, "epochs": 60,
        "eval_every": 5,
    },
}  # fmt: skip
"""Fields that suit each data set of this package; 943 users need more and larger updates than the defaults give."""

PATHS = ("interactions", "items", "embeddings", "movielens", "data_dir")
"""Fields that are paths: in a TOML file, relative to it."""

FLAGS_OWN = "files"
"""The name of the data set that the flags themselves describe (--interactions, --items)."""

SET_BY_STUDIES = ("seed", "evaluate")
"""Fields that a study sets run by run: by --seeds, and by whether a run is a trial."""

_OF_THE_PROTOCOL = (
    "dataset", "interactions", "items", "movielens", "unknown_items", "k_core", "duplicates", "split", "valid_time",
    "test_time", "holdout_items", "holdout_seed", "filter_seen",
)  # fmt: skip


def of_the_protocol(config: Config) -> tuple[str, ...]:
    """Fields that decide what is measured: runs that differ from `config` in one of them have no table in common."""
    held = config.data.holdout_items > 0  # drawn from those in training sequences, which are as long as max_length
    return (*_OF_THE_PROTOCOL, "max_length") if held else _OF_THE_PROTOCOL


def dataset_configs(
    names: Sequence[str],
    file: Path | None = None,
    *,
    base: Config | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Config]:
    """The configuration that an experiment starts from on each data set.

    What is said later overrules: `base`, then the data set's own fields, then `given`. Files of `base` are those of its
    own data set, files of `given` those of `files`; embeddings alone are those of the one data set that is named.

    Args:
      names: `movielens_100k`, tables of `file`, or `files` for what `given` or `base` describe.
      file: a TOML file of data sets, a table each.
      base: the values that nobody names; the defaults, with what suits a data set of this package, if None.
      given: fields by flat name, as given on the command line.

    Raises:
      InputError: no name or one twice, an unknown one (the nearest is named), a file that is missing or holds something
        else than known fields, files without the data set that they describe, or a configuration out of range.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"--dataset={','.join(names)}: name at least one data set, and each only once.")
    known: dict[str, dict[str, Any]] = {name: {"dataset": name} for name in (*BUILT_IN, FLAGS_OWN)}
    known |= {} if file is None else read_datasets(file)
    given = dict(given or {})
    own = {key: given.pop(key) for key in FILES if given.get(key)}
    owner = names[0] if len(names) == 1 and set(own) == {"embeddings"} else FLAGS_OWN
    if own and owner not in names:
        raise InputError(
            f"--{next(iter(own))} belongs to one data set, got --dataset={','.join(names)}: take "
            f"--dataset={FLAGS_OWN}, or name the file in a table of --datasets."
        )
    found = {}
    for name in names:
        if name not in known:
            if name.endswith(".toml"):
                raise InputError(f"--dataset={name} is a file: take --datasets={name}, and --dataset for its tables.")
            raise unknown_name("data set", name, known)
        config = Config().replace(**BUILT_IN.get(name, {})) if base is None else base
        if name != config.data.dataset:
            config = config.replace(**dict.fromkeys(FILES, ""))
        config = config.replace(**known[name]).replace(**(own if name == owner else {})).replace(**given)
        check(config)
        found[name] = config
    return found


def read_datasets(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a TOML file: fields by data set, paths made absolute, `dataset = "files"` but for the names of `BUILT_IN`.

    Raises:
      InputError: as `dataset_configs`.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--datasets={path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--datasets={path}: not a readable TOML file: {error}.") from None
    return {name: _read_table(path, name, table) for name, table in tables.items()}


def _read_table(path: Path, name: str, table: Any) -> dict[str, Any]:
    owners = {field.name: section for section, field in fields()}
    if not isinstance(table, dict):
        raise InputError(f"{path}: {name} must be a table of fields, written [{name}], got {table!r}.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name == FLAGS_OWN:
        raise InputError(f"{path}: a data set can't be named {name!r}; take letters, digits, -, _ and dots.")
    values = {"dataset": name if name in BUILT_IN else FLAGS_OWN}
    for key, value in table.items():
        if key not in owners:
            raise unknown_name(f"field in {path}, data set {name}:", key, owners)
        if key in SET_BY_STUDIES:
            raise InputError(f"{path}, data set {name}: a study sets {key} itself, run by run; leave it out.")
        section = owners[key]
        config = Config.from_dict({section: {key: value}}, source=f"{path}, data set {name}")
        values[key] = config.get(key)
        if key in PATHS and values[key]:
            values[key] = str(path.parent.resolve() / Path(values[key]).expanduser())
    for key in FILES:
        if values.get(key) and not Path(values[key]).is_file():
            raise InputError(f"{path}, data set {name}: {key} names {values[key]}, and there is no such file.")
    return values
