"""Optax transformations for tables of which a step sees only some rows (`catalogue.py` takes them out).

Any Optax transformation whose state has one row for each row of the table works on taken rows, `scale_by_adam`
among them: its moments then belong to the steps that touched the row, while its count goes with every step. What is
here knows more of a row: how often it was touched, or one accumulator for all of its dimensions.

| | moments of an untouched row | its weight | weight decay | bias correction |
|---|---|---|---|---|
| dense Adam | decay every step | drifts along the old moments | every step | by the step |
| `scale_by_adam` on taken rows | kept | kept | when touched | by the step |
| `scale_by_row_adam` | kept | kept | when touched | by the row's own count |
| `scale_by_rowwise_adagrad` | kept (they never decay) | kept | when touched | none |

Bias correction by the step takes a row that is first touched late for one with a long history of zero gradients: its
first update is (1 - b1) / sqrt(1 - b2), about 3.2 times, as long as that of a row that was there from the beginning.
By the row's own count every row starts as the first one did.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class RowAdamState(NamedTuple):
    """Leaves have the rows of the parameters."""

    count: Any
    """int32 [N, 1]: updates of each row."""
    mu: Any
    nu: Any


def scale_by_row_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, ICLR 2015) with the bias correction of each row by its own count of updates.

    Every row that `update` is given counts as touched. Given all rows at every step it is `optax.scale_by_adam`.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """

    def init(params: Any) -> RowAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return RowAdamState(jax.tree.map(lambda p: jnp.zeros((len(p), 1), jnp.int32), params), zeros, zeros)

    def update(updates: Any, state: RowAdamState, params: Any = None) -> tuple[Any, RowAdamState]:
        del params
        count = jax.tree.map(lambda c: c + 1, state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)

        def scaled(c: Int[Array, "N 1"], m: Float[Array, "N d"], v: Float[Array, "N d"]) -> Float[Array, "N d"]:
            times = c.astype(jnp.float32)
            return (m / (1 - b1**times)) / (jnp.sqrt(v / (1 - b2**times)) + eps)

        return jax.tree.map(scaled, count, mu, nu), RowAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


class RowwiseAdagradState(NamedTuple):
    """Leaves have the rows of the parameters."""

    mean_square: Any
    """float32 [N, 1]: sum over the updates of the mean square of the row's gradient."""


def scale_by_rowwise_adagrad(initial: float = 1e-8, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adagrad (Duchi et al., JMLR 2011) with one accumulator a row instead of one a weight.

    `g / (sqrt(G) + eps)`, G the sum of the mean squares of the row's gradients: 4 bytes of state a row where Adam
    has 8 d. The usual choice for tables that fill a pod (Mudigere et al., ISCA 2022, section 4.1.2).

    Args:
      initial: what G starts from.
      eps: added to the root.
    """

    def init(params: Any) -> RowwiseAdagradState:
        return RowwiseAdagradState(jax.tree.map(lambda p: jnp.full((len(p), 1), initial, jnp.float32), params))

    def update(updates: Any, state: RowwiseAdagradState, params: Any = None) -> tuple[Any, RowwiseAdagradState]:
        del params
        total = jax.tree.map(lambda s, g: s + jnp.mean(g * g, axis=-1, keepdims=True), state.mean_square, updates)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total), RowwiseAdagradState(total)

    return optax.GradientTransformation(init, update)
