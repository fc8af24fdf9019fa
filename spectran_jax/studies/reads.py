"""Which fields a configuration reads: moving one that its encoder, loss or backbone does not read changes nothing.

A field that stands in none of these tables counts as read by all, and encoders, losses and backbones of one's own as
reading every field. Tests vary each field of the tables on each of the library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spectran_jax.config import Config
from spectran_jax.errors import InputError

OWN: dict[str, Sequence[str]] = {
    "item_encoder": ("id", "svd", "llminit", "mlp", "moe", "whiten", "alphafuse", "rlmrec", "llmesr", "spectran"),
    "loss": ("infonce", "softmax", "sampled_softmax", "bce", "gbce"),
    "backbone": ("sasrec", "bert4rec", "hstu"),
}
"""Those of the library, which the tables speak of."""

_OF_THE_TEXT_ITSELF = ("mlp", "moe", "whiten")
_OF_THE_SPECTRUM = ("svd", "llminit", "alphafuse", "rlmrec", "llmesr", "spectran")
_OF_TEXT = (*_OF_THE_TEXT_ITSELF, *_OF_THE_SPECTRUM)
_WITH_A_PART_OF_TEXT = ("svd", "mlp", "moe", "whiten", "spectran")
_WITH_COLD_ITEMS = tuple(name for name in _OF_TEXT if name != "rlmrec")
"""They give an item a vector that has nothing but its text."""
_SAMPLED = ("infonce", "sampled_softmax", "bce", "gbce")

ENCODERS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("embeddings", "text_encoder", "text_columns"), _OF_TEXT),
    "normalize_rows": _OF_TEXT,
    "center": ("mlp", "moe", *_OF_THE_SPECTRUM),  # whiten always centres
    **dict.fromkeys(("rtol", "max_rank", "decomposition", "decomposition_precision"), _OF_THE_SPECTRUM),
    "spectrum_dtype": _OF_THE_SPECTRUM,
    "spectrum_memory": _OF_TEXT,
    "pad_rank": ("svd", "llminit", "alphafuse", "llmesr", "spectran"),
    "fusion": _WITH_A_PART_OF_TEXT,
    "learn_scale": _WITH_A_PART_OF_TEXT,
    "semantic_scale": (*_WITH_A_PART_OF_TEXT, "llminit", "alphafuse", "llmesr"),
    "spectral_power": ("svd", "llminit", "llmesr", "spectran"),
    "attention": ("spectran",),
    "attention_dimension": ("spectran",),
    "attention_live": ("spectran",),
    "attention_energy": ("spectran",),
    "position_encoding": ("spectran",),
    "taylor_order": ("spectran",),
    "spectral_norm": ("spectran",),
    "spectral_lr_multiplier": ("spectran",),
    "spectral_epochs": ("spectran",),
    "adapter_lr_multiplier": (*_WITH_A_PART_OF_TEXT, "rlmrec", "llmesr"),  # svd and spectran have a gate at most
    "cold_scale": _WITH_COLD_ITEMS,
    "adapter_width": ("mlp", "whiten", "rlmrec", "llmesr"),
    "experts": ("moe",),
    "whiten_groups": ("whiten",),
    "null_share": ("alphafuse",),
    "alignment": ("rlmrec",),
    "alignment_weight": ("rlmrec", "llmesr"),
    "alignment_temperature": ("rlmrec",),
}
"""Item encoders that read a field."""

LOSSES: dict[str, Sequence[str]] = {
    "negatives": _SAMPLED,
    "sampling": _SAMPLED,
    "popularity_power": _SAMPLED,
    "mask_negatives": _SAMPLED,
    "history_negatives": _SAMPLED,
    "gbce_t": ("gbce",),
}
"""Losses that read a field."""

BACKBONES: dict[str, Sequence[str]] = {
    "mask_ratio": ("bert4rec",),
    "prefixes": ("bert4rec",),
    "ffn_multiplier": ("sasrec", "bert4rec"),
}
"""Backbones that read a field."""

UNLESS: dict[str, tuple[str, Sequence[Any]]] = {
    "attention_dimension": ("attention", ("none",)),
    "attention_live": ("attention", ("none", "softmax")),
    "attention_energy": ("attention", ("none",)),
    "taylor_order": ("position_encoding", (False,)),
    "alignment": ("alignment_weight", (0,)),
    "alignment_temperature": ("alignment_weight", (0,)),
    "popularity_power": ("sampling", ("uniform", "in_batch")),
    "id_scale": ("fusion", ("none",)),
    "decomposition_precision": ("decomposition", ("exact", "randomized")),
}
"""Another field, and its values with which a field is not read, where the other is read itself."""


OF_ENCODED_TEXT = ("text_encoder", "text_columns")
"""Fields that say how text is encoded, which is not done where `embeddings` names a file of vectors."""


def unread_because(config: Config, name: str) -> str:
    """`item_encoder=svd`: the value for which nothing reads the field `name`; empty where it is read."""
    for owner, table in (("item_encoder", ENCODERS), ("loss", LOSSES), ("backbone", BACKBONES)):
        value = config.get(owner)
        if value in OWN[owner] and name in table and value not in table[name]:
            return f"{owner}={value}"
    if name in OF_ENCODED_TEXT and config.text.embeddings:
        return f"embeddings={config.text.embeddings}"
    own = all(config.get(owner) in names for owner, names in OWN.items())
    if own and name in UNLESS:
        other, values = UNLESS[name]
        if config.get(other) in values and not unread_because(config, other):
            return f"{other}={str(config.get(other)).lower()}"
    return ""


def refuse_unread(datasets: Mapping[str, Config], names: Iterable[str], flag: str) -> None:
    """Raises `InputError` where a flag moves a field that the configuration of a data set does not read."""
    for name in names:
        for dataset, config in datasets.items():
            if reason := unread_because(config, name):
                raise InputError(
                    f"--{flag} moves {name}, which nothing reads at {reason} (data set {dataset}), so that its values "
                    "would all be one; leave it out."
                )
