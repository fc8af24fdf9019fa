"""The shape of a batch: what every module between the input pipeline and the loss agrees on."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

Array = jax.Array | Any
"""A JAX array inside a compiled function, a NumPy array on its way there."""


class SequenceLayout(NamedTuple):
    """Where each position of a batch stands in whose history; a pytree of `[B, L]` arrays.

    Several histories may share a row (packing): attention stays within a segment.
    """

    mask: Bool[Array, "B L"]
    """True where there is an item, False on padding."""
    segment: Int[Array, "B L"]
    """int32; which history of the row a position belongs to, 1, 2, ...; 0 on padding."""
    position: Int[Array, "B L"]
    """int32; 0 for the oldest kept item of a history; 0 on padding."""
    timestamp: Int[Array, "B L"] | None = None
    """int32 seconds since the oldest kept item of the history, or None where the data has none."""
    hidden: Bool[Array, "B L"] | None = None
    """True where the backbone puts its mask token in the item's place; None for a backbone without one."""
    row: Int[Array, "B"] | None = None
    """int32 number of each row in the global batch, where the arrays are a part of it; else None."""
    user: Int[Array, "B L"] | None = None
    """int32; whose history it is, of a training batch in which several may be one user's (beginnings of it); else None.
    0 on padding."""

    def last_positions(self) -> Bool[jax.Array, "B L"]:
        """True at the last position of each history."""
        segment = jnp.asarray(self.segment)
        following = jnp.pad(segment[:, 1:], ((0, 0), (0, 1)))  # 0, that of padding, after the end of a row
        return jnp.asarray(self.mask) & (segment != following)

    def row_numbers(self) -> Int[jax.Array, "B"]:
        """int32 number of each row in the global batch."""
        return jnp.arange(len(self.mask), dtype=jnp.int32) if self.row is None else jnp.asarray(self.row)


class TrainBatch(NamedTuple):
    """Inputs and targets of one update. Padding and hidden items have id 0; the layout alone tells them."""

    item_ids: Int[Array, "B L"]
    """int32 dense item ids in [0, N)."""
    targets: Int[Array, "B L"]
    """int32: the item that follows each position in its history; for a masked backbone the position's own item."""
    layout: SequenceLayout
    supervised: Int[Array, "G T"]
    """int32: where the loss is taken, ascending. The rows are G equal groups (one a shard of the batch axis and
    micro-batch); a number counts positions within the group, row by row, and `B / G * L` stands for none."""
    rows: ItemRows | None = None
    """What the host looked up for this batch, where item arrays are kept off the device."""

    @property
    def items(self) -> Int[Array, "B L"]:
        """int32: the item of each position, also where `item_ids` hides it from the backbone."""
        return self.item_ids if self.layout.hidden is None else self.targets

    def at_supervised(self, values: Float[Array, "B L *d"]) -> Float[jax.Array, "S *d"]:
        """The values at the supervised positions, group by group, S = G T; some others where there is none."""
        groups, _ = self.supervised.shape
        grouped = jnp.reshape(values, (groups, -1, *values.shape[2:]))
        take = lambda group, at: group.at[at].get(mode="clip", indices_are_sorted=True)  # noqa: E731
        chosen = jax.vmap(take)(grouped, self.supervised)
        return chosen.reshape(-1, *values.shape[2:])

    def weight(self) -> Float[jax.Array, "S"]:
        """float32: 1 at the supervised positions, 0 where there is none."""
        groups, _ = self.supervised.shape
        return (self.supervised < self.item_ids.size // groups).reshape(-1).astype(jnp.float32)


class ItemRows(NamedTuple):
    """Rows of item arrays that the host read for the items of a batch and its negatives."""

    ids: Int[Array, "U"]
    """int32 distinct ids, ascending, filled up with N."""
    arrays: dict[str, Array]
    """Their rows, by the name of the array."""


class EvalBatch(NamedTuple):
    """One history a row and the item to be ranked after it."""

    item_ids: Int[Array, "B L"]
    layout: SequenceLayout
    last: Int[Array, "B"]
    """int32 position of each row whose state the target is ranked by: the newest item, or the hidden one after it."""
    targets: Int[Array, "B"]
    """int32 dense id of the target."""
    user: Int[Array, "B"]
    """int32 index of the user; -1 on rows that fill up the last batch."""
    seen: Int[Array, "B S"]
    """int32 dense ids of the whole history (for the filter of seen items), padded with -1."""

    @property
    def left_out(self) -> Int[Array, "B S"] | None:
        """`seen`, or None where nothing is filtered."""
        return self.seen if self.seen.shape[1] else None
