"""Named changes of a configuration: what an ablation takes away, what a sensitivity study moves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from spectran_jax.config import Config, fields
from spectran_jax.errors import InputError, unknown_name
from spectran_jax.studies.reads import refuse_unread, unread_because


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration of a study, by the fields it changes."""

    name: str
    """Unique in the study; also the name of its folder."""
    values: Mapping[str, Any]
    """Configuration fields by flat name."""


def encoder_variants(encoders: Sequence[str], **values: Any) -> list[Variant]:
    """One variant an item encoder, of all there are where none is named; `values` hold for all.

    Raises:
      InputError: an encoder that stands twice, or an unknown one (the nearest is named).
    """
    from spectran_jax.item_encoders import REGISTRY  # imports Flax
    from spectran_jax.studies.flags import check_names

    names = check_names("item_encoders", "item encoder", encoders, REGISTRY)
    return [Variant(name, {"item_encoder": name, **values}) for name in names]


def single_changes(base: Config, changes: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """One variant for each value of each field, `field=value`, all else as in `base`; the values of `base` are left
    out, for they would be `base` again."""
    now = base.flat()
    return [
        Variant(f"{name}={text_of(value)}", {name: value})
        for name, values in changes.items()
        for value in values
        if value != now[name]
    ]


def read_changes(
    datasets: Mapping[str, Config], changes: Mapping[str, Sequence[Any]], *, asked: bool
) -> tuple[dict[str, dict[str, Sequence[Any]]], str]:
    """The changes of the fields that each data set's configuration reads, and a sentence on those that are left out.

    Args:
      datasets: configurations to start from.
      changes: values by field.
      asked: whether somebody named the changes: then one that nothing reads is refused instead of left out.

    Raises:
      InputError: as `refuse_unread`, where asked.
    """
    if asked:
        refuse_unread(datasets, changes, "changes")
    kept = {
        dataset: {name: values for name, values in changes.items() if not unread_because(config, name)}
        for dataset, config in datasets.items()
    }
    left = [
        f"{name} on {dataset} ({unread_because(datasets[dataset], name)})"
        for dataset in datasets
        for name in changes
        if name not in kept[dataset]
    ]
    return kept, f"Not tried, since nothing reads it: {', '.join(left)}." if left else ""


def parse_changes(text: str, flag: str) -> dict[str, tuple[Any, ...]]:
    """Reads `attention=none:softmax,taylor_order=0:1:4,center=*`: values of fields, by field.

    Args:
      text: values are separated by colons; `*` is every choice of a field that has a closed list of them.
      flag: for messages.

    Raises:
      InputError: for an unknown field, one that stands twice, a value that does not fit its type or its choices.
    """
    known = {field.name: field for _, field in fields()}
    changes: dict[str, tuple[Any, ...]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, values = part.partition("=")
        if name not in known:
            raise unknown_name(f"field in --{flag}:", name, known)
        if name in changes:
            raise InputError(f"--{flag} names {name} twice; give all its values at once, with colons.")
        if not values:
            raise InputError(f"--{flag}={part}: write NAME=VALUE:VALUE, for example dropout=0.1:0.3.")
        choices = _choices(known[name])
        if values == "*":
            if not choices:
                raise InputError(f"--{flag}={part}: {name} has no closed list of choices; write its values.")
            changes[name] = choices
        else:
            changes[name] = tuple(_value(v, known[name], choices, f"--{flag}={part}") for v in values.split(":"))
    return changes


def text_of(value: Any) -> str:
    """A value as a flag writes it: `true`, `0.1`, `softmax`."""
    return value if isinstance(value, str) else json.dumps(value)


def _choices(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    return (True, False) if isinstance(field.default, bool) else field.metadata["choices"]


def _value(text: str, field: dataclasses.Field[Any], choices: tuple[Any, ...], where: str) -> Any:
    kind: Any = type(field.default)
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{where}: {field.name} takes {kind.__name__} values, got {text!r}.") from None
    if choices and value not in choices:
        raise unknown_name(f"value of {field.name} in {where.partition('=')[0]}:", text, [text_of(c) for c in choices])
    return value
