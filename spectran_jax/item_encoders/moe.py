"""`moe`: a gated mixture of parametric whitening experts on the text embedding."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from spectran_jax.config import EncoderConfig
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.text import TextAdapterEncoder

_LEAST_NOISE = 0.01
"""Standard deviation of the gate's noise below which training can't take it."""


class WhiteningExperts(nn.Module):
    """sum_k g_k (x - b_k) W_k with g = softmax(x W_g + noise * (softplus(x W_n) + 0.01)): [..., m] to [..., d] float32.

    Parameters (float32): `kernel [m, K, d]` of the W_k, `shift [K m]` of the b_k (one axis: weight decay takes it for
    the bias that it is), `gate [m, K]` and `noise [m, K]`. All but the kernel start at zero: the gate is even, and as
    K independent experts are averaged, a kernel of variance K / m gives outputs of the inputs' mean square.
    """

    experts: int
    dimension: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b m"], noise: Float[Array, "*b K"] | None = None) -> Float[Array, "*b d"]:
        """The mixture; without `noise`, standard normal draws, the gate is certain."""
        m, count, zeros = x.shape[-1], self.experts, nn.initializers.zeros
        init = nn.initializers.normal(math.sqrt(count / m))
        kernel = self.param("kernel", init, (m, count, self.dimension), jnp.float32)
        shift = self.param("shift", zeros, (count * m,), jnp.float32).reshape(count, m)
        gate = self.param("gate", zeros, (m, count), jnp.float32)
        spread = self.param("noise", zeros, (m, count), jnp.float32)
        logits = self._product(x, gate)
        if noise is not None:
            logits = logits + noise * (jax.nn.softplus(self._product(x, spread)) + _LEAST_NOISE)
        # (x - b_k) W_k = x W_k - b_k W_k: one product for all experts.
        outputs = self._product(x, kernel.reshape(m, -1)).reshape(*x.shape[:-1], count, self.dimension)
        outputs = outputs - jnp.einsum("km,mkd->kd", shift, kernel)
        return jnp.einsum("...k,...kd->...d", jax.nn.softmax(logits), outputs)

    def _product(self, x: Float[Array, "*b m"], kernel: Float[Array, "m n"]) -> Float[Array, "*b n"]:
        return jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32)


class MoeEncoder(TextAdapterEncoder, kw_only=True):
    """`moe`: a mixture of whitening experts, plus a learned ID part by `--fusion`.

    Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems (UniSRec), KDD 2022,
    and the authors' code for what the paper leaves open: gate and noise start at zero, all experts
    take part. Decided here: x as the decomposition sees it (`text.TextAdapterEncoder`), so that b_k starts at the
    mean; no dropout on x (theirs is 0.2); an item's noise is drawn once a step, wherever it stands in the batch.
    UniSRec's inductive setting is `--fusion=none`, its transductive one `sum`.
    """

    experts: int

    item_arrays: ClassVar[tuple[str, ...]] = (*TextAdapterEncoder.item_arrays, "number")

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """Beside what the base class has, `number [N]` int32: of each item, which its noise follows."""
        return {**super().frozen(source, config), "number": np.arange(source.num_items, dtype=np.int32)}

    @classmethod
    def new_rows(cls, new: ItemSource, catalogue: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """See the base class; numbers go on from the catalogue's."""
        number = catalogue.num_items + np.arange(new.num_items, dtype=np.int32)
        return {**super().new_rows(new, catalogue, config), "number": number}

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        return {**super().options(config, source, dtype), "experts": config.experts}

    def setup(self) -> None:
        """Creates the experts beside what the base class has."""
        super().setup()
        self.mixture = WhiteningExperts(self.experts, self.dimension, self.dtype)

    def encode(self, rows: Rows, *, train: bool = False) -> Float[Array, "*b d"]:
        """See the base class; in training the gate is noisy, by the random stream "dropout"."""
        if train:
            key = self.make_rng("dropout")
            draw = jax.vmap(lambda item: jax.random.normal(jax.random.fold_in(key, item), (self.experts,)))
            number = rows["number"]
            rows = {**rows, "noise": draw(number.reshape(-1)).reshape(*number.shape, self.experts)}
        return super().encode(rows, train=train)

    def adapt(self, x: Float[Array, "*b m"], rows: Rows) -> Float[Array, "*b d"]:
        """The mixture."""
        return self.mixture(x, rows.get("noise"))
