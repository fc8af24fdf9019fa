"""`llmesr`: a view of the text and a view of the IDs, which attend to each other; similar users teach."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from spectran_jax.adapter import component_weights
from spectran_jax.backbones.layers import LayerNorm, attention, causal_mask, history_mask
from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.base import ItemSource, Rows, StepView
from spectran_jax.item_encoders.id import IdEncoder
from spectran_jax.item_encoders.semantic import spectral_arrays
from spectran_jax.layout import SequenceLayout
from spectran_jax.objectives.scores import normalize

_TEACHERS = 10
"""Similar users that a user learns from, the paper's number."""
_USERS = 1024
"""Users of a batch that distillation sees at most: it compares each with each."""


class LlmEsrEncoder(IdEncoder, kw_only=True):
    """`llmesr`: e = [semantic view, collaborative view] of d / 2 dimensions each.

    Liu et al., LLM-ESR: Large Language Models Enhancement for Long-tailed Sequential Recommendation, NeurIPS 2024.

    - The semantic view is the frozen text through two linear layers, the collaborative one an ID table that starts from
      the text's principal components.
    - In a history, each view attends to the other (`contextualize`): the queries are one view's, keys and values the
      other's, and the result takes the place of the latter. Items to be scored stay as they are.
    - Self-distillation (`auxiliary`): the state of a user is drawn to the mean state, without gradient, of the users
      whose text is the most similar.

    Decided here. Attention is causal for causal backbones (the authors' code masks padding alone, and lets a position
    see what it has to predict), within one history, of one head, over normalised views, and added to the view instead
    of taking its place: the backbone, which knows positions, comes after it. For a backbone with hidden positions it
    sees the whole history but those. What it adds is scaled like the views, so that one's own item keeps its weight
    against it at every scale. One backbone reads both views at once; in the paper it reads one after the other.
    Text is u diag(sigma), the centred text rotated, and the adapter has `--adapter_width` hidden units. The paper
    embeds a user's history by a prompt and searches all users; here a history's text is the mean of its items', in the
    first d / 2 principal components, and the ten most similar users are those of the batch, among 1,024 at most. Where
    a backbone is trained on beginnings of histories, too (`--prefixes`), each of them learns and teaches like a history
    of its own, but never from one of the same user. States are compared at unit length, squared distances summed over
    dimensions, so that `--alignment_weight` means the same for every d and score. The ID table starts at zero plus
    noise of `--id_scale` upon a frozen start, as in `llminit`, the paper's PCA with `--spectral_power=1`; both views
    start at `--semantic_scale`. There is nothing to fuse.
    """

    width: int
    semantic_scale: float
    alignment_weight: float = 0.1
    fused: bool = True
    """Whether attention may be a kernel of this process's devices; see `backbones.layers.attention`."""

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "u")
    wide_arrays: ClassVar[tuple[str, ...]] = ("u",)
    needs_spectrum: ClassVar[bool] = True

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class; raises `InputError` for an odd dimension."""
        if config.dimension % 2:
            raise InputError(
                f"--item_encoder=llmesr halves the vectors into two views, and --dimension={config.dimension} is odd; "
                "take an even one that --heads divides."
            )
        return {
            **super().options(config, source, dtype),
            "width": config.adapter_width,
            "semantic_scale": config.semantic_scale,
            "alignment_weight": config.alignment_weight,
        }

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`u [N, r]` as stored, `trained [N]`, and what columns of u are multiplied by.

        `weights [r]` give the text at mean square 1, `start_weights [min(d / 2, r)]` the start of the IDs.
        """
        arrays = spectral_arrays(config, source)
        sigma, u_scale = arrays["sigma"], arrays.get("u_scale", np.float32(1))
        half = config.dimension // 2
        start = config.semantic_scale * component_weights(sigma, half, config.spectral_power) * u_scale
        weights = component_weights(sigma, len(sigma), 1.0) * u_scale
        return {
            "u": arrays["u"],
            "weights": weights.astype(np.float32),
            "start_weights": start[:half].astype(np.float32),
            **super().frozen(source, config),
        }

    @property
    def table_width(self) -> int:
        """d / 2."""
        return self.dimension // 2

    def setup(self) -> None:
        """Creates the adapter and the attention between the views beside the ID table."""
        super().setup()
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # keeps the mean square at start
        self.hidden = nn.Dense(self.width, kernel_init=init, dtype=self.dtype)
        self.output = nn.Dense(self.table_width, kernel_init=init, dtype=self.dtype)
        self.attend_semantic = CrossAttention(self.dtype, self.fused)
        self.attend_collaborative = CrossAttention(self.dtype, self.fused)

    def encode(self, rows: Rows, *, train: bool = False) -> Float[Array, "*b d"]:
        """[scale * adapter(text), start + what was learned]; of an item without text, what was learned alone."""
        u = rows["u"].astype(jnp.float32)
        adapted = self.output(self.hidden(u * self._frozen("weights"))).astype(jnp.float32)
        semantic = jnp.where(jnp.any(u != 0, axis=-1, keepdims=True), self.semantic_scale * adapted, 0)
        start = self._components(rows, "start_weights")
        return jnp.concatenate([semantic, start + self.identity(rows)], axis=-1).astype(self.dtype)

    def _components(self, rows: Rows, weights: str) -> Float[Array, "*b h"]:
        """The first h = d / 2 components of the text by these weights, zeros beyond the rank; float32."""
        factors = self._frozen(weights)[: self.table_width]
        values = rows["u"][..., : len(factors)].astype(jnp.float32) * factors
        return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, self.table_width - len(factors))])

    def contextualize(
        self, inputs: Float[Array, "B L d"], layout: SequenceLayout, *, train: bool = False
    ) -> Float[Array, "B L d"]:
        """Adds to each view what the other's queries find in it."""
        if layout.hidden is not None:
            inputs = jnp.where(layout.hidden[..., None], 0, inputs)
        semantic, collaborative = jnp.split(inputs.astype(self.dtype), 2, axis=-1)
        if layout.hidden is None:
            mask = causal_mask(layout)
        else:  # both ways, at what is not hidden
            mask = history_mask(layout._replace(mask=jnp.asarray(layout.mask) & ~jnp.asarray(layout.hidden)))
        found = [
            semantic + self.semantic_scale * self.attend_semantic(collaborative, semantic, mask),
            collaborative + self.semantic_scale * self.attend_collaborative(semantic, collaborative, mask),
        ]
        return jnp.where(jnp.asarray(layout.mask)[..., None], jnp.concatenate(found, axis=-1), 0)

    def auxiliary(self, rows: Rows, view: StepView) -> dict[str, Float[Array, ""]]:
        """`distillation`: mean squared distance, over users, of their state to their teachers' mean, times its weight.

        Histories that share a row are users of their own; those of one user (`layout.user`) do not teach each other.
        The state of a user is that of the last position of the history, or, of a backbone that hides positions, of the
        last hidden one: what predicts.
        """
        layout = view.layout
        mask, last = jnp.asarray(layout.mask).reshape(-1), layout.last_positions().reshape(-1)
        predicts = mask if layout.hidden is None else mask & jnp.asarray(layout.hidden).reshape(-1)
        size = min(len(last), _USERS)
        # The user of each position, counting ends before it: histories are contiguous. Those beyond `size` are dropped.
        user = jnp.where(mask, jnp.cumsum(last) - last, size)
        at = jnp.full(size, -1).at[user].max(jnp.where(predicts, jnp.arange(len(last)), -1), mode="drop")
        states = normalize(view.states.reshape(len(last), -1)[jnp.maximum(at, 0)].astype(jnp.float32))
        text = self._components({"u": rows["u"][view.item_at.reshape(-1)]}, "weights")
        texts = jnp.zeros((size, text.shape[-1])).at[user].add(text, mode="drop")  # a cosine does not see the count
        owner = jnp.arange(size)
        if layout.user is not None:
            owner = owner.at[user].set(jnp.asarray(layout.user).reshape(-1), mode="drop")
        loss = distillation(states, texts, owner, at >= 0)
        return {"distillation": self.alignment_weight * loss}

    def diagnostics(self) -> dict[str, Array]:
        """`moved_rms`: root mean square, over the trained items, of the ID view's distance from its start."""
        return {"moved_rms": super().diagnostics()["id_rms"]}


class CrossAttention(nn.Module):
    """One head of attention over `values`, by the queries of another view; all its parameters are float32."""

    dtype: Any = jnp.float32
    fused: bool = True

    @nn.compact
    def __call__(
        self, queries: Float[Array, "B L h"], values: Float[Array, "B L h"], mask: Bool[Array, "B 1 L L"]
    ) -> Float[Array, "B L h"]:
        """What the queries find; its size does not follow that of the views, which are normalised."""
        h = values.shape[-1]
        asking = LayerNorm(name="query_norm")(queries.reshape(-1, h))
        asked = LayerNorm(name="value_norm")(values.reshape(-1, h))
        q = nn.Dense(h, use_bias=False, dtype=self.dtype, name="query")(asking)
        kv = nn.Dense(2 * h, use_bias=False, dtype=self.dtype, name="key_value")(asked)
        found = attention(jnp.concatenate([q, kv], axis=-1), mask, heads=1, fused=self.fused)
        out = nn.Dense(h, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name="out")(found)
        return out.reshape(values.shape)


def distillation(
    states: Float[Array, "k d"], texts: Float[Array, "k h"], owner: Int[Array, "k"], present: Bool[Array, "k"]
) -> Float[Array, ""]:
    """Mean over the users present of |state - mean state of the most similar others|^2, gradients to the former alone.

    Similar by the cosine of their texts, so that users without any are left out. Rows of one owner are one user's, and
    no others to each other. A user alone has no teacher: 0.
    """
    unit, present = normalize(texts), present & jnp.any(texts != 0, axis=-1)
    others = present & (owner[:, None] != owner)
    similar, who = jax.lax.top_k(jnp.where(others, unit @ unit.T, -jnp.inf), min(_TEACHERS, len(present)))
    chosen = jnp.isfinite(similar).astype(states.dtype)
    total = jnp.einsum("kn,knd->kd", chosen, jax.lax.stop_gradient(states)[who])
    teacher = total / jnp.maximum(chosen.sum(axis=-1, keepdims=True), 1)
    taught = present & (chosen.sum(axis=-1) > 0)
    distance = jnp.sum((states - teacher) ** 2, axis=-1)
    return jnp.sum(jnp.where(taught, distance, 0)) / jnp.maximum(jnp.sum(taught), 1)
