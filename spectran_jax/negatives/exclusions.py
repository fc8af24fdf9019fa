"""Which negatives do not count for a position, and how probable all that is excluded is: no array of N items."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.layout import SequenceLayout

_WORD = 32


def exclude_positive(positive_ids: Int[jax.Array, "T"], negative_ids: Int[jax.Array, "n"]) -> Bool[jax.Array, "T n"]:
    """True where a negative is the position's own target."""
    return positive_ids[:, None] == negative_ids


def exclude_history(
    item_ids: Int[jax.Array, "B L"],
    targets: Int[jax.Array, "B L"],
    layout: SequenceLayout,
    negative_ids: Int[jax.Array, "n"],
) -> Bool[jax.Array, "B L n"]:
    """True where a negative is any item or target of the history (segment) that the position belongs to.

    On padding all is False. Each negative's segments are first gathered as bits, [B, n] in words of 32 segments, so
    that no array holds more than the result.

    Args:
      item_ids: int32 global ids of the rows' items.
      targets: int32 global ids of the items that follow.
      layout: segments of the rows and their mask.
      negative_ids: int32 global ids.
    """
    segment = jnp.where(layout.mask, layout.segment, 0)
    first = jnp.arange(1, item_ids.shape[1] + 1, _WORD)[:, None, None]  # a row holds at most L segments, 1..L
    here = (segment >= first) & (segment < first + _WORD)
    place = jnp.where(here, segment - first, 0).astype(jnp.uint32)
    bits = jnp.where(here, jnp.uint32(1) << place, jnp.uint32(0))  # [words, B, L]

    def gather(words: jax.Array, column: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        item, target, bit = column
        seen = (item[:, None] == negative_ids) | (target[:, None] == negative_ids)
        return words | jnp.where(seen, bit[..., None], jnp.uint32(0)), None

    # A loop over the columns: the compiler would hold the reduction over L, written at once, as [B, L, n] integers.
    columns = item_ids.swapaxes(0, 1), targets.swapaxes(0, 1), jnp.moveaxis(bits, 2, 0)
    words, _ = jax.lax.scan(gather, jnp.zeros((*bits.shape[:2], len(negative_ids)), jnp.uint32), columns)
    excluded = jnp.zeros((*item_ids.shape, len(negative_ids)), bool)
    for word, bit in zip(words, bits, strict=True):
        excluded |= (word[:, None] & bit[..., None]) != 0
    return excluded


def seen_items(
    item_ids: Int[jax.Array, "B L"], targets: Int[jax.Array, "B L"], layout: SequenceLayout
) -> Bool[jax.Array, "B L L"]:
    """True where the second position holds an item that the first has seen: once each, and never its target.

    Seen are the items of the history up to the position; where a backbone reads both ways, all that are not hidden.

    Args:
      item_ids: int32 global ids of the rows' items.
      targets: int32 global ids, each position's own.
      layout: segments of the rows and their mask.
    """
    length = item_ids.shape[1]
    segment = jnp.where(layout.mask, layout.segment, 0)
    same = (segment[:, :, None] == segment[:, None, :]) & layout.mask[:, None, :]
    shown = same & (jnp.tri(length, dtype=bool) if layout.hidden is None else ~layout.hidden[:, None, :])
    # An item that stands twice counts where it is shown first.
    first = shown if layout.hidden is not None else same
    equal = (item_ids[:, :, None] == item_ids[:, None, :]) & first & jnp.tri(length, k=-1, dtype=bool)
    again = jnp.any(equal, axis=2)
    return shown & ~again[:, None, :] & (item_ids[:, None, :] != targets[:, :, None])


def history_mass(
    item_ids: Int[jax.Array, "B L"],
    targets: Int[jax.Array, "B L"],
    layout: SequenceLayout,
    log_q_of_item: Float[jax.Array, "B L"],
    log_q_of_target: Float[jax.Array, "B L"],
) -> Float[jax.Array, "B L"]:
    """Probability, under the sampler, of the distinct items that `exclude_history` excludes; 0 on padding.

    Args:
      item_ids: int32 global ids of the rows' items.
      targets: int32 global ids of the items that follow.
      layout: segments of the rows and their mask.
      log_q_of_item: log-probability of each item under the sampler; -inf counts as nothing.
      log_q_of_target: the same of each target.
    """
    segment = jnp.where(layout.mask, layout.segment, 0)
    same = (segment[:, :, None] == segment[:, None, :]) & layout.mask[:, :, None]
    earlier = jnp.tri(item_ids.shape[1], k=-1, dtype=bool)

    def known(ids: Int[jax.Array, "B L"], others: Int[jax.Array, "B L"], where: Bool[jax.Array, "..."]) -> jax.Array:
        return jnp.any((ids[:, :, None] == others[:, None, :]) & where, axis=2)

    item = jnp.where(known(item_ids, item_ids, same & earlier), 0.0, jnp.exp(log_q_of_item))
    target = jnp.where(
        known(targets, item_ids, same) | known(targets, targets, same & earlier), 0.0, jnp.exp(log_q_of_target)
    )
    mass = jnp.einsum("blk,bk->bl", same.astype(jnp.float32), item + target, precision=jax.lax.Precision.HIGHEST)
    return jnp.minimum(mass, 1.0)
