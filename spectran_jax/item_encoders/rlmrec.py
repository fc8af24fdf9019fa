"""`rlmrec`: ID vectors that a loss of their own aligns with the text."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectran_jax.adapter import component_weights
from spectran_jax.backbones.layers import Dropout
from spectran_jax.config import EncoderConfig
from spectran_jax.gather import gather_rows
from spectran_jax.item_encoders.base import ItemSource, Rows, StepView
from spectran_jax.item_encoders.id import IdEncoder
from spectran_jax.item_encoders.semantic import spectral_arrays
from spectran_jax.item_encoders.text import TwoLayers
from spectran_jax.objectives.scores import normalize

_MASKED = 0.1
"""Share of an ID vector's numbers that the generative loss masks."""


class RlmRecEncoder(IdEncoder, kw_only=True):
    """`rlmrec`: the item vector is the learned ID vector; text is read by an auxiliary loss of training alone.

    Ren et al., Representation Learning with Large Language Models for Recommendation (RLMRec), WWW 2024. Maximises a
    bound on the mutual information of ID vectors e_i and text s_i, InfoNCE over the items of a batch,

        - log exp(cos(a_i, b_i) / t) / sum_j exp(cos(a_i, b_j) / t)

    with a_i = e_i, b_i = f(s_i) (contrastive, RLMRec-Con) or a_i = f(mask(e_i)), b_i = s_i (generative, RLMRec-Gen). f
    has two layers, t is `--alignment_temperature`.

    Not done: the paper aligns users too, with text profiles that an LLM wrote of them; nobody has those here. Open or
    other there, decided here: the paper masks whole nodes of a graph and reconstructs them from their neighbours, and
    here there is no graph: a tenth of an ID vector's numbers is masked, in training. "The items of a batch" are its
    supervised targets, each once in the denominator however often it stands in the batch (two copies would be each
    other's negatives), and as often in the mean; without the paper's sampled negatives, whose ID vectors there pull
    apart. s is u diag(sigma): the centred text, rotated, without a number lost, and small where the rank is; also what
    `--spectrum_dtype` and `--spectrum_memory` apply to. f is `text.TwoLayers`, of `--adapter_width` units and ReLU
    instead of (m + d) / 2 and leaky ReLU. Items without text take no part.
    """

    rank: int
    """r, numbers of a text."""
    width: int
    alignment: str = "contrastive"
    alignment_weight: float = 0.1
    alignment_temperature: float = 0.2

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "u")
    wide_arrays: ClassVar[tuple[str, ...]] = ("u",)
    needs_spectrum: ClassVar[bool] = True

    @classmethod
    def knows_cold_items(cls) -> bool:
        """Never: text teaches the ID vectors, and is no part of a vector."""
        return False

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        return {
            **super().options(config, source, dtype),
            "rank": len(_arrays(config, source)["sigma"]),
            "width": config.adapter_width,
            "alignment": config.alignment,
            "alignment_weight": config.alignment_weight,
            "alignment_temperature": config.alignment_temperature,
        }

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`u [N, r]` as stored; `weights [r]`, that make it the text at mean square 1; `trained [N]`."""
        arrays = _arrays(config, source)
        weights = component_weights(arrays["sigma"], len(arrays["sigma"]), 1.0) * arrays.get("u_scale", 1.0)
        return {"u": arrays["u"], "weights": weights.astype(np.float32), **super().frozen(source, config)}

    def setup(self) -> None:
        """Creates f beside the ID table."""
        super().setup()
        outputs = self.dimension if self.alignment == "contrastive" else self.rank
        self.adapter = TwoLayers(self.width, outputs, self.dtype)

    def auxiliary(self, rows: Rows, view: StepView) -> dict[str, Float[Array, ""]]:
        """`alignment`: the loss times its weight, mean over the supervised positions whose target has text.

        Rows of equal targets are equal, so the loss is taken once for each distinct target, at most min(S, U) of them.
        """
        count = jnp.zeros(len(view.vectors)).at[view.target_at].add(view.weight)
        size = min(len(view.target_at), len(view.vectors))
        (items,) = jnp.nonzero(count, size=size, fill_value=0)
        u = rows["u"][items]
        taken = (jnp.arange(size) < jnp.count_nonzero(count)) & jnp.any(u != 0, axis=-1)
        share = jnp.where(taken, count[items], 0)
        text = u.astype(jnp.float32) * self._frozen("weights")
        identity = gather_rows(view.vectors, items).astype(jnp.float32)
        if self.alignment == "contrastive":
            loss = info_nce(identity, self.adapter(text), share, self.alignment_temperature)
        else:
            # At one length, since f has biases and a cosine score leaves the length of e free.
            whole = normalize(identity) * self.dimension**0.5
            drop = Dropout(_MASKED, self.make_rng("dropout") if self.has_rng("dropout") else None)
            loss = info_nce(self.adapter(drop(whole, 0)), text, share, self.alignment_temperature)
        return {"alignment": self.alignment_weight * loss}


def info_nce(
    a: Float[Array, "k n"], b: Float[Array, "k n"], share: Float[Array, "k"], temperature: float
) -> Float[Array, ""]:
    """Mean, weighted by `share`, of -log softmax(cos(a_i, .) / temperature)_i over the b_j of positive share.

    0 where nothing has a share. float32.
    """
    logits = normalize(a) @ normalize(b).T / temperature
    reached = jnp.where(share > 0, logits, jnp.finfo(logits.dtype).min)
    losses = jax.nn.logsumexp(reached, axis=-1) - jnp.diagonal(logits)
    return jnp.sum(jnp.where(share > 0, share * losses, 0)) / jnp.maximum(jnp.sum(share), 1)


def _arrays(config: EncoderConfig, source: ItemSource) -> dict[str, np.ndarray]:
    """`spectral_arrays`, whatever their rank: f takes it to d."""
    return spectral_arrays(dataclasses.replace(config, pad_rank=True), source)
