"""What each item encoder costs: parameters, FLOPs and memory by the compiler's account, and seconds taken in turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spectran_jax import item_encoders
from spectran_jax.benchmarks.sessions import Steps, needed_bytes
from spectran_jax.benchmarks.timing import alternate
from spectran_jax.config import Config
from spectran_jax.item_encoders import ItemSource
from spectran_jax.planning import hlo, schedule
from spectran_jax.synthetic import bare_spectrum, synthetic_inputs, synthetic_setup
from spectran_jax.training import catalogue
from spectran_jax.training.setup import Setup
from spectran_jax.training.summary import parameter_counts

PAPER_WIDTH, PAPER_DIMENSION, PAPER_ATTENTION = 4096, 128, 512
"""m of LLaMA-3-8B, the d at which the paper counts its parameters, and the k that gives its number."""
ADAPTER_BAR = 2_300_000
"""Parameters of SpecTran's adapter at that size: at most this."""

BATCHES = 4
"""Kept on the device; a pass over them is timed."""


class Counts(NamedTuple):
    """Parameters of a model."""

    total: int
    adapter: int
    """Of the item encoder, without what has one row an item."""


def count_parameters(params: Mapping[str, Any], item_params: Sequence[str], num_items: int) -> Counts:
    """Elements of arrays, or of their shapes, in all and of the adapter."""
    total, without_items = (parameter_counts(params, item_params, items) for items in (num_items, 0))
    return Counts(total["total"], without_items["item_encoder"])


def adapter_parameters(config: Config, *, items: int, width: int) -> int:
    """Parameters of the adapter over N items of text [N, m], from shapes alone: of u, nothing is there.

    For the encoders that read the spectrum; the rank is min(N, m).
    """
    rank = min(items, width)
    u = np.broadcast_to(np.float32(0), (items, rank))
    spectrum = bare_spectrum(u, np.linspace(1, 0.1, rank, dtype=np.float32), width)
    source = ItemSource(num_items=items, counts=np.ones(items, np.int32), spectrum=spectrum)
    encoder, frozen = item_encoders.build(config.encoder, source)

    def init() -> Any:
        variables = {"frozen": encoder.one_row(frozen)}
        _, made = encoder.apply(
            variables, np.zeros(1, np.int32), rngs={"params": jax.random.key(0)}, mutable=["params"]
        )
        return made["params"]

    return count_parameters({"item_encoder": jax.eval_shape(init)}, encoder.item_params, items).adapter


def paper_adapters(config: Config) -> list[dict[str, int]]:
    """Parameters of SpecTran's adapter at the paper's size, for the configured k and for 512, the k that gives the
    2.2 M of the paper; at N = m and beyond."""
    rows = []
    for k in sorted({config.encoder.attention_dimension, PAPER_ATTENTION}):
        changed = config.replace(item_encoder="spectran", dimension=PAPER_DIMENSION, attention_dimension=k)
        for items in (PAPER_WIDTH, 10 * PAPER_WIDTH):
            count = adapter_parameters(changed, items=items, width=PAPER_WIDTH)
            row = {"width": PAPER_WIDTH, "dimension": PAPER_DIMENSION, "k": k, "items": items, "parameters": count}
            rows.append(row)
    return rows


def flops(compiled: Any) -> float:
    """Of a compiled program: XLA's account, which has one run of each loop, and the products of the further runs.

    Those are not seen where data decides how long a loop is, nor where a product is a call of a library (cuBLAS).
    """
    cost = compiled.cost_analysis()
    once = float((cost[0] if isinstance(cost, list) else cost).get("flops", 0.0))
    # Nor does XLA's account know in how many passes a unit of fewer bits makes a product.
    text = re.sub(r"operand_precision=\{[^}]*\}", "", compiled.as_text())
    return once + _further_runs(schedule.schedule(hlo.parse(text), jax.device_count()))


def _further_runs(events: Sequence[schedule.Event]) -> float:
    """FLOPs of the products of all runs of loops but the first."""
    loops = [event for event in events if isinstance(event, schedule.Loop)]
    return sum(
        _further_runs(loop.events) + (0 if loop.trips is None else loop.trips - 1) * schedule.total(loop.events).flops
        for loop in loops
    )


def flops_per_item(setup: Setup, params: Any, few: int = 256) -> float:
    """FLOPs that encoding one item more takes: the difference of two programs, so that what is done once a step for
    all items (the matrix W of spectran) stays out."""

    def of(items: int) -> float:
        part = setup.model.of_items(items)
        encoder = setup.model.item_encoder
        shape = lambda x: jax.ShapeDtypeStruct((items, *x.shape[1:]), x.dtype)  # noqa: E731
        shapes = catalogue.map_item_rows(shape, encoder.item_params, params)
        arrays = {k: shape(v) if k in encoder.item_arrays else v for k, v in setup.frozen.item_encoder.items()}

        def encode(params: Any, arrays: Any) -> Any:
            return part.apply({"params": params, "frozen": {"item_encoder": arrays}}, method=part.encode)

        return flops(jax.jit(encode).lower(shapes, arrays).compile())

    return (of(2 * few) - of(few)) / few


class Session(Steps):
    """A model with its step compiled ahead, and targets to rank."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, BATCHES)
        self.update = self.compiled()
        self.targets = setup.eval_batches(setup.split.test)

    def evaluate(self) -> Any:
        """The item table and the ranks of all targets."""
        table = self.programs.table(self.state.params, self.frozen)
        return self.programs.rank(self.state.params, table, self.targets)

    def account(self) -> dict[str, float]:
        """Parameters, FLOPs and bytes; all but the seconds of a row."""
        params = self.programs.state.params
        counts = count_parameters(params, self.setup.model.item_encoder.item_params, self.setup.dataset.num_items)
        return {
            "parameters": counts.total,
            "adapter": counts.adapter,
            "step_flops": flops(self.update),
            "item_flops": flops_per_item(self.setup, params),
            "temporary_bytes": self.update.memory_analysis().temp_size_in_bytes,
            "peak_bytes": needed_bytes(self.update),
        }


def measure(
    config: Config, encoders: Sequence[str], *, items: int, width: int, users: int, repeats: int
) -> dict[str, dict[str, float]]:
    """A row of figures for each encoder: `Session.account`, and medians of `step_seconds` and `evaluation_seconds`.

    Encoders take turns, so that what disturbs the machine disturbs all of them.

    Args:
      config: everything but the item encoder.
      encoders: names of the registry.
      items: N.
      width: m, the dimensions of the text.
      users: how many are trained on and evaluated.
      repeats: figures of each encoder.

    Raises:
      InputError: for an encoder that does not fit the configuration.
    """
    inputs = synthetic_inputs(items, width, users)
    sessions = {name: Session(synthetic_setup(config.replace(item_encoder=name), inputs)) for name in encoders}
    rows = {name: session.account() for name, session in sessions.items()}
    steps = alternate(sessions, repeats)
    evaluations = alternate({name: session.evaluate for name, session in sessions.items()}, repeats)
    for name, row in rows.items():
        row["step_seconds"] = steps.median(name) / BATCHES
        row["evaluation_seconds"] = evaluations.median(name)
    return rows
