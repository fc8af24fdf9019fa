"""Optax transformations for tables of which a step sees only some rows (`catalogue.py` takes them out).

Any Optax transformation whose state has one row for each row of the table works on taken rows, `scale_by_adam`
among them: its moments then belong to the steps that touched the row, while its count goes with every step. What is
here knows more of a row: when it was last touched, how often, or one accumulator for all of its dimensions.

| of a row that a step does not touch | first moment | second moment | weight | decay of the weight | bias correction |
|---|---|---|---|---|---|
| dense Adam | decays | decays | drifts along the first | yes | by the step |
| `scale_by_row_adam("decayed")` | decays by the root of that | decays | rests | when touched | by the step |
| `optax.scale_by_adam` on taken rows, "lazy" | rests | rests | rests | when touched | by the step |
| `scale_by_row_adam("counted")` | rests | rests | rests | when touched | by the row's own count |
| `scale_by_rowwise_adagrad` | has none | never decays | rests | when touched | none |

Why the second moment decays by default: for a row that a share f of the steps touch, with gradients g, dense Adam's
second moment is about f E[g^2], and all that a gradient moves the row in the end is rate * g / sqrt(f E[g^2]). A second
moment that rests is E[g^2], which makes rare rows slower by sqrt(f): a third for one step in nine. With the decay made
up for when the row is touched again, gradients of one size move their row as far as in dense Adam; only later, at the
touches that follow, instead of in between.

The first moment decays by the root of b2 at a missed step, so that its ratio to the root of the second is what it was
at the last touch, and below 7, as in dense Adam. If it rested, that ratio would grow by exp(missed / 2000): a row that
one large gradient moved, and that is drawn again 20,000 steps later, would be thrown 20,000 learning rates far. The
decay costs 3 % of a row's way for one step in nine.

Bias correction by the step takes a lazy row that is first touched late for one with a long history of zero gradients:
its first update is (1 - b1) / sqrt(1 - b2), about 3.2 times, as long as that of a row that was there from the
beginning. By the row's own count every row starts as the first one did.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class RowAdamState(NamedTuple):
    """Leaves have the rows of the parameters; `step` is one number."""

    step: Int[Array, ""]
    """int32 updates so far."""
    seen: Any
    """int32 [N, 1]: of "decayed" the last step that touched the row, of "counted" how many did."""
    mu: Any
    nu: Any


def scale_by_row_adam(
    kind: str = "decayed", b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, ICLR 2015) for rows that not every step touches; see the table above.

    Every row that `update` is given counts as touched. Given all rows at every step it is `optax.scale_by_adam`.

    Args:
      kind: "decayed", the second moment decays with every step, touched or not, and the first with its root where it is
        not; "counted", both moments rest and the bias is corrected by the row's own count.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """
    decayed = {"decayed": True, "counted": False}[kind]

    def init(params: Any) -> RowAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        seen = jax.tree.map(lambda p: jnp.zeros((len(p), 1), jnp.int32), params)
        return RowAdamState(jnp.zeros((), jnp.int32), seen, zeros, zeros)

    def update(updates: Any, state: RowAdamState, params: Any = None) -> tuple[Any, RowAdamState]:
        del params
        step = state.step + 1

        def kept(seen: Int[Array, "N 1"]) -> Float[Array, "N 1"] | float:
            """Of the second moment: the steps since the last touch had no gradient, each would only have decayed it."""
            return b2 ** (step - 1 - seen).astype(jnp.float32) if decayed else 1.0

        def first(m: Float[Array, "N d"], g: Float[Array, "N d"], seen: Int[Array, "N 1"]) -> Float[Array, "N d"]:
            return b1 * (m * kept(seen) ** 0.5) + (1 - b1) * g

        def second(v: Float[Array, "N d"], g: Float[Array, "N d"], seen: Int[Array, "N 1"]) -> Float[Array, "N d"]:
            return b2 * (v * kept(seen)) + (1 - b2) * g * g

        mu = jax.tree.map(first, state.mu, updates, state.seen)
        nu = jax.tree.map(second, state.nu, updates, state.seen)
        # The maximum is the step. Written as a plain broadcast, XLA would copy all N of them before it writes the rows.
        seen = jax.tree.map(lambda s: jnp.maximum(s, step) if decayed else s + 1, state.seen)

        def scaled(s: Int[Array, "N 1"], m: Float[Array, "N d"], v: Float[Array, "N d"]) -> Float[Array, "N d"]:
            times = s.astype(jnp.float32)  # of a touched row and "decayed" the step itself
            return (m / (1 - b1**times)) / (jnp.sqrt(v / (1 - b2**times)) + eps)

        return jax.tree.map(scaled, seen, mu, nu), RowAdamState(step, seen, mu, nu)

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
