"""Bars of training on real data: peers, packing, the step against the machine, the loop against the step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax.benchmarks import flops, peers
from spectran_jax.benchmarks.rows import Measured, Settings, bar
from spectran_jax.benchmarks.sessions import Epochs, Steps, dataset_config
from spectran_jax.benchmarks.timing import alternate, in_turn
from spectran_jax.training.feed import training_batches
from spectran_jax.training.setup import Setup, prepare
from spectran_jax.training.step import run_keys, step_keys, touched_items

QUALITY_EPOCHS = 10
TORCH_MODES = ("", "--sparse", "--compile", "--sparse --compile")


def against_peer(
    settings: Settings, script: str, name: str, arguments: list[str], epochs: int, note: str = "", **options: Any
) -> Measured:
    """Examples a second beside a peer's, run in turn, and NDCG@10 on test after as many epochs of both."""
    data_flag = ["--data", str(settings.dataset(name))]
    settings.peer(script)
    config = dataset_config(settings, name, **options)
    ours = Epochs(prepare(config))
    ours()  # compiles
    paired = in_turn(
        {
            "ours": ours.examples_per_second,
            "other": lambda: peers.run(settings, script, *data_flag, *arguments, "--epochs", str(epochs))[
                "examples_per_second"
            ],
        },
        settings.repeats,
    )
    del ours
    gc.collect()
    data = [Path(path) for path in (config.data.interactions, config.data.items, config.text.embeddings)]
    whole = [*data_flag, *arguments, "--epochs", str(QUALITY_EPOCHS)]
    theirs = peers.remembered(settings, script, *whole, files=data)["ndcg@10"]
    trained = Epochs(prepare(config), QUALITY_EPOCHS)
    for _ in range(QUALITY_EPOCHS):
        trained()
    quality = trained.test_metrics()[0]["ndcg@10"]
    ratio = paired.ratio("ours", "other")
    quality_note = f"NDCG@10 on test after {QUALITY_EPOCHS} epochs: ours {quality:.4f}, theirs {theirs:.4f}"
    return Measured(
        ratio=ratio.median,
        ours=paired.median("ours"),
        other=paired.median("other"),
        spread=(ratio.low, ratio.high),
        note="; ".join(filter(None, (quality_note, note))),
        holds=quality >= theirs,
    )


def rectools(settings: Settings, name: str) -> Measured:
    """RecTools' UniSRec with its full softmax, against ours with the same loss."""
    return against_peer(settings, "peer_rectools.py", name, [], 2, loss="softmax")


def torch(settings: Settings, name: str) -> Measured:
    """SpecTran by hand in PyTorch, in the best of its modes, against ours with the same sampled loss."""
    script, data_flag = "torch_spectran.py", ["--data", str(settings.dataset(name))]
    mode, note = peers.best_mode(settings, script, [*data_flag, "--epochs", "2"], TORCH_MODES)
    note = f"their best mode is {mode or 'default'} of: {note}"
    options: dict[str, Any] = {"loss": "infonce", "negatives": 512}
    return against_peer(settings, script, name, mode.split(), 3, note, **options)


def _register_peers() -> None:
    for data in ("beauty", "office"):
        for peer, title, limit, measure in (
            ("rectools", "RecTools UniSRec, softmax", 3.0, rectools),
            ("torch", "SpecTran in PyTorch, InfoNCE", 2.0, torch),
        ):
            what = f"Training examples/s on {data.capitalize()}, ours over {title}; NDCG@10 no lower"
            bar(f"{peer}_{data}", what, at_least=limit)(
                lambda settings, measure=measure, data=data: measure(settings, data)  # type: ignore[misc]
            )


_register_peers()


@bar("packing_fill", "Share of real positions in Beauty's packed batches", at_least=0.90)
def packing_fill(settings: Settings) -> Measured:
    """The plan's own count, checked against the masks of an epoch."""
    setup = prepare(dataset_config(settings, "beauty"))
    iterator = training_batches(setup, 1)
    masks = [next(iterator).layout.mask for _ in range(setup.plan.steps_per_epoch)]
    counted = float(np.mean(masks))
    return Measured(ratio=counted, ours=counted, note=f"the plan says {setup.plan.fill:.4f}")


@bar("packing_speed", "Training examples/s on Beauty, packed over one history a row", at_least=2.0)
def packing_speed(settings: Settings) -> Measured:
    """Whole epochs in turn."""
    packed, padded = (Epochs(prepare(dataset_config(settings, "beauty", packing=p))) for p in (True, False))
    packed(), padded()
    paired = in_turn({"packed": packed.examples_per_second, "padded": padded.examples_per_second}, settings.repeats)
    ratio = paired.ratio("packed", "padded")
    return Measured(ratio.median, paired.median("packed"), paired.median("padded"), (ratio.low, ratio.high))


@bar("utilisation", "Useful FLOP/s of the step over the machine's on the same products (Beauty)", at_least=0.35)
def utilisation(settings: Settings) -> Measured:
    """The step on resident batches, in turn with the bare products of its real positions and items."""
    setup = prepare(dataset_config(settings, "beauty"))
    config, plan = setup.config, setup.plan
    tokens = round(plan.positions / plan.steps_per_epoch)
    items = round(distinct_items(setup))
    products = flops.step_products(
        tokens=tokens,
        items=items,
        negatives=config.objective.negatives,
        dimension=config.encoder.dimension,
        rank=len(setup.frozen.item_encoder["sigma"]),
        attention=config.encoder.attention_dimension,
        blocks=config.backbone.blocks,
        ffn=config.backbone.ffn_multiplier,
    )
    attention = flops.attention_flops(plan.slot_length, config.encoder.dimension, config.backbone.blocks)
    useful = sum(p.flops for p in products) + attention / plan.steps_per_epoch
    steps = Steps(setup, batches=20)
    bare = {f"{i} {p.name}": bare_product(p) for i, p in enumerate(products)}
    paired = alternate({"step": steps, **bare}, settings.repeats, calls=5)
    per_step = [seconds / len(steps.batches) for seconds in paired.values["step"]]
    shares, rates = [], []
    for turn, seconds in enumerate(per_step):
        machine = sum(p.times * paired.values[name][turn] for name, p in zip(bare, products, strict=True))
        rates.append(sum(p.flops for p in products) / machine)
        shares.append(useful / seconds / rates[-1])
    return Measured(
        ratio=float(np.median(shares)),
        ours=float(np.median([useful / s for s in per_step])) / 1e9,
        other=float(np.median(rates)) / 1e9,
        spread=(min(shares), max(shares)),
        note=f"GFLOP/s; {useful / 1e9:.2f} useful GFLOP a step of {1e3 * np.median(per_step):.1f} ms; "
        f"{tokens} positions, {items} distinct items",
    )


def distinct_items(setup: Setup) -> float:
    """Distinct items that a step touches, on average over an epoch, by the steps' own negatives."""
    sampler, size = setup.objective.sampler, setup.dataset.num_items
    assert sampler is not None
    key, _ = run_keys(setup.config.training.seed)

    @jax.jit
    def drawn(step: Any, arrays: Any, batch: Any) -> jax.Array:
        targets = batch.at_supervised(batch.targets)
        ids = sampler.draw(step_keys(key, step).negatives, arrays, targets=targets, weight=batch.weight())
        return touched_items(batch, ids, size)

    iterator, counts = training_batches(setup, 1), []
    for step in range(setup.plan.steps_per_epoch):
        ids = np.unique(np.asarray(drawn(step, setup.frozen.sampler, next(iterator))))
        counts.append(np.count_nonzero(ids < size))
    return float(np.mean(counts))


def bare_product(product: flops.Product) -> Callable[[], jax.Array]:
    """The product alone, compiled, on random operands stored as the step has them."""
    rng = np.random.default_rng(0)
    left, right = (product.rows, product.inner), (product.inner, product.columns)
    equation = "ab,bc->ac"
    if product.contract == "input":
        right, equation = right[::-1], "ab,cb->ac"
    if product.contract == "weight":
        left, equation = left[::-1], "ba,bc->ac"
    a, b = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in (left, right))
    multiply = jax.jit(lambda a, b: jnp.einsum(equation, a, b))
    return lambda: multiply(a, b)


@bar("loop", "Seconds of an epoch's steps on resident batches over those of the loop (Beauty)", at_least=0.95)
def loop(settings: Settings) -> Measured:
    """An epoch of resident batches, then one through the feed, in turn."""
    config = dataset_config(settings, "beauty")
    setup = prepare(config)
    epochs, steps = Epochs(setup), Steps(setup)
    epochs()
    paired = alternate({"steps": steps, "loop": lambda: epochs() and None}, settings.repeats)
    ratio = paired.ratio("steps", "loop")
    per_step = 1e3 * paired.median("steps") / len(steps.batches)
    note = f"{len(steps.batches)} steps of {per_step:.1f} ms"
    return Measured(ratio.median, paired.median("steps"), paired.median("loop"), (ratio.low, ratio.high), note)
