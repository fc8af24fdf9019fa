"""The bar of an accelerator: a large model's step against the device's peak."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax.benchmarks import flops
from spectran_jax.benchmarks.rows import Measured, Settings, Unavailable, bar
from spectran_jax.benchmarks.sessions import Steps, synthetic
from spectran_jax.benchmarks.timing import alternate

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0, "V100": 125.0}
"""Dense 16-bit peaks from the data sheets; the measured product of large matrices stands in for other devices."""
LENGTH, DIMENSION, ROWS = 200, 256, 256


@bar("gpu", "Model FLOPs utilisation on a GPU (d 256, length 200, bfloat16)", at_least=0.40)
def gpu(settings: Settings) -> Measured:
    """Useful FLOPs of the step over the peak; tokens a second and the row update's share of the bandwidth besides."""
    if jax.default_backend() != "gpu":
        raise Unavailable("no GPU here")
    setup = synthetic(
        1_000_000,
        rank=384,
        users=4 * ROWS,
        lengths=(LENGTH + 1, LENGTH + 2),
        max_length=LENGTH,
        batch_size=ROWS,
        dimension=DIMENSION,
        precision="bfloat16",
    )
    config, plan = setup.config, setup.plan
    tokens = plan.positions / plan.steps_per_epoch
    products = flops.step_products(
        tokens=round(tokens),
        items=setup.touched or setup.dataset.num_items,
        negatives=config.objective.negatives,
        dimension=DIMENSION,
        rank=384,
        attention=config.encoder.attention_dimension,
        blocks=config.backbone.blocks,
        ffn=config.backbone.ffn_multiplier,
    )
    attention = flops.attention_flops(plan.slot_length, DIMENSION, config.backbone.blocks) / plan.steps_per_epoch
    useful = sum(p.flops for p in products) + attention
    steps = Steps(setup, 4)
    seconds = [s / 4 for s in alternate({"step": steps}, settings.repeats, calls=10).values["step"]]
    kind = jax.devices()[0].device_kind
    peak = known_peak(kind) or measured_peak()
    shares = [useful / s / peak for s in seconds]
    middle = float(np.median(seconds))
    note = (
        f"TFLOP/s on {kind}; {tokens / middle:,.0f} tokens/s; row update at {row_update_share(setup.touched or 1):.0%} "
        "of the bandwidth of a copy"
    )
    return Measured(
        float(np.median(shares)), useful / middle / 1e12, peak / 1e12, (min(shares), max(shares)), note
    )  # fmt: skip


def known_peak(kind: str) -> float | None:
    """FLOP/s of a kind of device as JAX names it, such as `NVIDIA A100-SXM4-80GB`; None where no data sheet is here."""
    words = re.split(r"[\s-]+", kind)
    return next((1e12 * value for name, value in PEAK_TFLOPS.items() if name in words), None)


def measured_peak() -> float:
    """FLOP/s of a large bfloat16 product."""
    size = 8192
    a = jnp.ones((size, size), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    return 2 * size**3 / alternate({"product": lambda: multiply(a, a)}, 3, calls=10).median("product")


def row_update_share(rows: int, items: int = 1_000_000) -> float:
    """Bytes a second of Adam on scattered rows of three tables, over those of a copy."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(np.sort(rng.choice(items, rows, replace=False)).astype(np.int32))
    gradient = jnp.ones((rows, DIMENSION))
    tables = tuple(jnp.zeros((items, DIMENSION)) for _ in range(3))

    def update(tables: tuple[jax.Array, ...], ids: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        weights, first, second = (table.at[ids].get(mode="clip", unique_indices=True) for table in tables)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        changed = (weights - 1e-3 * first / (jnp.sqrt(second) + 1e-8), first, second)
        return tuple(t.at[ids].set(c, unique_indices=True) for t, c in zip(tables, changed, strict=True))

    run = jax.jit(update, donate_argnums=0)
    copy = jax.jit(lambda x: x + 1)

    def rows_once() -> jax.Array:
        nonlocal tables
        tables = run(tables, ids, gradient)
        return tables[0][:1]

    large = jnp.zeros((items, DIMENSION))
    paired = alternate({"rows": rows_once, "copy": lambda: copy(large)}, 5, calls=20)
    moved = 7 * 4 * rows * DIMENSION / paired.median("rows")  # three tables read and written, one gradient read
    return moved / (2 * 4 * items * DIMENSION / paired.median("copy"))
