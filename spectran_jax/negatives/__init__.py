"""Negatives: from which distribution they are drawn, and which of them do not count for a position."""

from spectran_jax.negatives.alias import AliasTable, alias_table
from spectran_jax.negatives.exclusions import exclude_history, exclude_positive, history_mass, seen_items
from spectran_jax.negatives.samplers import SAMPLERS, InBatch, Popularity, Sampler, Uniform, build, checked_counts

__all__ = [
    "SAMPLERS",
    "AliasTable",
    "InBatch",
    "Popularity",
    "Sampler",
    "Uniform",
    "alias_table",
    "build",
    "checked_counts",
    "exclude_history",
    "exclude_positive",
    "history_mass",
    "seen_items",
]
