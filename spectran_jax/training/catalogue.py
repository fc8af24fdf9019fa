"""A step on the items that it touches, at a cost that does not follow the catalogue.

The distinct items of a batch and its negatives are a small catalogue of their own: their rows are taken out of every
array that has one row an item (parameters, optimiser state, frozen arrays), the model and the optimiser run on these
as they would on the whole, and what changed goes back in place. `ItemEncoder.item_params` and `item_arrays` name the
arrays, so no encoder, loss or optimiser knows that this happens.

What it means for an optimiser: a row that no step touches keeps its parameters, its moments and, with a row count, its
count; weight decay reaches it only when it is touched. Adam on dense gradients would also let its moments decay, which
`row_optimizers.py` makes up for at the next touch, and let it drift along the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Path = tuple[Any, ...]
"""Of a leaf in a tree: the keys of `jax.tree_util`."""


def distinct(ids: Int[Array, "n"], size: int, num_items: int) -> Int[Array, "size"]:
    """The distinct ids, ascending, so that `searchsorted` numbers them.

    Args:
      ids: int32 in [0, num_items); `num_items` stands for "no item".
      size: rows of the result, at least the number of distinct items. What is left is filled with `num_items`.
      num_items: N.
    """
    ordered = jnp.sort(ids)
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    place = jnp.cumsum(first, dtype=jnp.int32) - 1
    # Equal ids have equal places, so it does not matter which of them is written last.
    return jnp.full(size, num_items, jnp.int32).at[place].set(ordered, mode="drop", indices_are_sorted=True)


def place(distinct_ids: Int[Array, "U"], ids: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """Where each id stands among the distinct ones: `distinct_ids[place] == ids`; somewhere, for one that does not."""
    return jnp.minimum(jnp.searchsorted(distinct_ids, ids), len(distinct_ids) - 1).astype(jnp.int32)


def path_names(path: Path) -> list[str]:
    """The names along a path: of dictionaries' entries and of fields; of a sequence's entries their places."""
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def has_item_rows(path: Path, item_params: Collection[str]) -> bool:
    """Whether the leaf at this path, of parameters or of an optimiser's state, has one row an item."""
    *above, last = path_names(path)
    return last in item_params and "item_encoder" in above


def frozen_by_row(path: Path, item_arrays: Mapping[str, Collection[str]]) -> bool:
    """Whether this leaf of `step.Frozen` has one row an item: `candidates`, and those named for its other fields."""
    field, *_ = names = path_names(path)
    return field == "candidates" or names[-1] in item_arrays[field]


def map_item_rows(change: Callable[..., Any], item_params: Collection[str], tree: Any, *rest: Any) -> Any:
    """`change` of the leaves that have one row an item, all else as it is; as it is in the last tree, of several."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, *others: change(leaf, *others) if has_item_rows(path, item_params) else (*others, leaf)[0],
        tree,
        *rest,
    )


def take(tree: Any, ids: Int[Array, "U"] | None, item_params: Collection[str], *, as_stored: bool = False) -> Any:
    """The tree over the items `ids`, floating rows in float32 or as they are stored; over all items for None.

    An id of N gives some row, which `put` drops.
    """

    def rows(leaf: Array) -> Array:
        chosen = leaf if ids is None else leaf.at[ids].get(mode="clip")
        return chosen.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) and not as_stored else chosen

    return map_item_rows(rows, item_params, tree)


def put(
    tree: Any,
    changed: Any,
    ids: Int[Array, "U"] | None,
    item_params: Collection[str],
    key: Array,
    *,
    first: Int[Array, ""] | int = 0,
) -> Any:
    """`tree` with the rows of `changed` at `ids`, and with its other leaves; undoes `take`.

    Rows of a bfloat16 leaf are rounded stochastically (see `round_stochastically`).

    Args:
      tree: what `take` took from. Donated to the program that this is a part of, it is written in place.
      changed: the tree over the items `ids`.
      ids: distinct, ascending; those of N are dropped. None for all items.
      item_params: see `has_item_rows`.
      key: of the rounding.
      first: the item of the tree's first row, where it is a part of the catalogue.
    """

    def back(leaf: Array, rows: Array) -> Array:
        if leaf.dtype == jnp.bfloat16:
            rows = round_stochastically(key, rows, first + (jnp.arange(len(leaf)) if ids is None else ids))
        rows = rows.astype(leaf.dtype)
        if ids is None:
            return rows
        # Those that are dropped are made distinct, too: where indices that are called so repeat, XLA promises nothing.
        places = jnp.where(ids < len(leaf), ids, len(leaf) + jnp.arange(len(ids), dtype=ids.dtype))
        return leaf.at[places].set(rows, mode="drop", unique_indices=True, indices_are_sorted=True)

    return map_item_rows(back, item_params, tree, changed)


def round_stochastically(key: Array, x: Float[Array, "n d"], ids: Int[Array, "n"]) -> Float[Array, "n d"]:
    """float32 to bfloat16, up or down with the probability that makes the expectation exact.

    Rounding to nearest loses every update below 2^-9 of a weight, which is most of them late in training. A value
    that bfloat16 holds comes out as it is; so do infinities and NaN. A row's chances follow its item, not its place.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    # The upper 16 bits are the bfloat16 below; a carry from the lower 16 makes it the one above.
    noise = jax.vmap(lambda item: jax.random.bits(jax.random.fold_in(key, item), x.shape[1:], jnp.uint16))(ids)
    rounded = jax.lax.bitcast_convert_type((bits + noise.astype(jnp.uint32)) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
