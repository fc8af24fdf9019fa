"""The bar of full ranking: ranks and metrics over the bare product of the same users and items."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spectran_jax.benchmarks.rows import Measured, Settings, Unavailable, bar
from spectran_jax.benchmarks.sessions import Epochs, dataset_config
from spectran_jax.benchmarks.timing import alternate
from spectran_jax.metrics import metrics_from_ranks
from spectran_jax.ranking import rank_targets
from spectran_jax.training.setup import prepare

USERS, ITEMS, DIMENSION, BATCH, CHUNK = 22_363, 12_101, 64, 256, 2_048


@bar("ranking", "Seconds to rank 22,363 users over 12,101 items over those of the bare product", at_most=1.5)
def ranking(settings: Settings) -> Measured:
    """Ranks, their way to the host and the metrics, in turn with the product alone, in the same batches."""
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.standard_normal((-(-USERS // BATCH), BATCH, DIMENSION), np.float32))
    table = jnp.asarray(rng.standard_normal((ITEMS, DIMENSION), np.float32))
    targets = jnp.asarray(rng.integers(0, ITEMS, states.shape[:2]), jnp.int32)
    batches = list(zip(states, targets, strict=True))
    rank, product = jax.jit(rank_targets), jax.jit(bare_product)

    def ours() -> dict[str, float]:
        ranks = jax.device_get([rank(state, table, target) for state, target in batches])
        return metrics_from_ranks(np.concatenate(ranks)[:USERS])

    paired = alternate({"ours": ours, "other": lambda: [product(s, table) for s, _ in batches]}, settings.repeats)
    ratio = paired.ratio("ours", "other")
    note = f"seconds; {whole_evaluation(settings)}"
    return Measured(ratio.median, paired.median("ours"), paired.median("other"), (ratio.low, ratio.high), note)


def bare_product(
    states: Float[jax.Array, "B d"], table: Float[jax.Array, "N d"]
) -> tuple[Float[jax.Array, "C B"], Float[jax.Array, "R B"]]:
    """All scores, a chunk of items at a time, each in the place of the one before it; the last chunk and the rest."""
    whole = len(table) // CHUNK

    def scores(vectors: Float[jax.Array, "C d"]) -> Float[jax.Array, "C B"]:
        return jnp.einsum("cd,bd->cb", vectors, states, precision="highest")

    last = jax.lax.fori_loop(
        0,
        whole,
        lambda i, _: scores(jax.lax.dynamic_slice_in_dim(table, i * CHUNK, CHUNK)),
        jnp.zeros((CHUNK, len(states))),
    )
    return last, scores(table[whole * CHUNK :])


def whole_evaluation(settings: Settings) -> str:
    """What the evaluation of a Beauty model takes, item table and user states included."""
    try:
        model = Epochs(prepare(dataset_config(settings, "beauty")), 1)
    except Unavailable as reason:
        return f"whole evaluation of Beauty {reason}"
    model.test_metrics()  # compiles
    return f"whole evaluation of a Beauty model {model.test_metrics()[1]:.2f} s"
