"""`llminit`: an ID table that starts from the text."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float

from spectran_jax.config import EncoderConfig
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.id import IdEncoder
from spectran_jax.item_encoders.svd import SvdEncoder

_CHUNK = 2**16
"""Items whose start is computed at once."""


class LlmInitEncoder(IdEncoder, kw_only=True):
    """`llminit`: the item vectors start at the top-d spectral coordinates of the text, and all of them are trained.

    Harte, Zorgdrager, Louridas, Katsifodimos, Jannach and Fragkoulis, Leveraging Large Language Models for Sequential
    Recommendation, RecSys 2023 (LLM2BERT4Rec): PCA of LLM embeddings as the initial item embeddings. LLMInit: A Free
    Lunch from Large Language Models for Selective Initialization of Recommendation (2025) starts from dimensions that
    it selects instead. Open there, decided here: the start is what `svd` has for its semantic part (the paper's PCA
    with `--spectral_power=1`), at `--semantic_scale`. Trained items without text start normal, at `--id_scale`; items
    in no training keep the text.

    A vector is a frozen start plus a learned table that starts at zero: e = start + id_embedding. Its gradient is that
    of e, so every step is that of a table that starts at e; sparse updates and stochastic rounding work as ever.
    Only weight decay differs: it pulls towards the start and not towards zero. This is also why `svd` with
    `--fusion=sum` is nearly the same method: its ID part starts with noise at `--id_scale` instead of zero.
    """

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "start")
    wide_arrays: ClassVar[tuple[str, ...]] = ("start",)
    needs_spectrum: ClassVar[bool] = True

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class; the table starts at zero."""
        return {**super().options(config, source, dtype), "id_scale": 0.0}

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`start [N, d]` float32, as many numbers as the table has; and `trained [N]`."""
        head = SvdEncoder.frozen(source, config)
        factor = config.semantic_scale * head["weights"] * head.get("u_scale", 1.0)
        rng = np.random.default_rng(0)  # the start is data, the same for every seed of a run
        start = np.zeros((source.num_items, config.dimension), np.float32)
        for first in range(0, source.num_items, _CHUNK):
            rows = start[first : first + _CHUNK]
            rows[:, : len(factor)] = head["u"][first : first + _CHUNK].astype(np.float32) * factor
            bare = ~rows.any(axis=1) & head["trained"][first : first + _CHUNK]
            rows[bare] = config.id_scale * rng.standard_normal((np.count_nonzero(bare), config.dimension))
        return {"start": start, "trained": head["trained"]}

    def identity(self, rows: Rows) -> Float[Array, "*b d"]:
        """start + what was learned, added in float32."""
        return (rows["start"] + super().identity(rows)).astype(self.dtype)

    def diagnostics(self) -> dict[str, Array]:
        """`moved_rms`: root mean square, over the trained items, of how far a vector is from its start."""
        return {"moved_rms": super().diagnostics()["id_rms"]}
