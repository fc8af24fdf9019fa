"""Training as a benchmark drives it: whole epochs through the feed, or steps on batches that are there already."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from spectran_jax.benchmarks.rows import Settings
from spectran_jax.config import Config
from spectran_jax.metrics import metrics_from_ranks
from spectran_jax.synthetic import bare_spectrum, random_histories, training_setup
from spectran_jax.training import partitioning
from spectran_jax.training.feed import Feed, training_batches
from spectran_jax.training.phases import Phases
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import Setup
from spectran_jax.training.timetable import LOG_EVERY

MANY_EPOCHS = 10_000


def dataset_config(settings: Settings, name: str, **options: Any) -> Config:
    """The configuration of the rows on real data; `options` overrule it."""
    folder = settings.dataset(name)
    values: dict[str, Any] = {
        "dataset": "files",
        "interactions": str(folder / "interactions.tsv"),
        "items": str(folder / "items.jsonl"),
        "embeddings": str(folder / "embeddings.minilm.npy"),
        "data_dir": str(settings.workdir / "cache"),
        "max_length": 20,
        "batch_size": 256,
        "dimension": 64,
        "learning_rate": 3e-3,
        "dropout": 0.2,
        "semantic_scale": 0.4,
        "temperature": 0.07,  # the peers'
        "history_negatives": False,  # the peers' loss has none
    }
    return Config().replace(**(values | options))


def synthetic(
    items: int,
    *,
    rank: int,
    spectrum_dtype: str = "float32",
    users: int = 1024,
    lengths: tuple[int, int] = (3, 12),
    repeated: bool = False,
    **options: Any,
) -> Setup:
    """Random histories over a catalogue of any size, with random spectral coordinates; 6 positions each, on average.

    Lengths are drawn from `range(*lengths)`; a history has one position less. With `repeated` all items have the same
    coordinates, which take no memory until they are put on a device.
    """
    rng = np.random.default_rng(0)
    histories = random_histories(rng, items, users, lengths)
    some = min(items, 10_000)
    if spectrum_dtype == "int8":
        block = rng.integers(-127, 128, (some, rank), np.int8)
    else:
        block = rng.standard_normal((some, rank), np.float32)
    u = np.broadcast_to(block[0], (items, rank)) if repeated else np.tile(block, (-(-items // some), 1))[:items]
    scale = np.full(rank, 3 / 127, np.float32) if spectrum_dtype == "int8" else None
    spectrum = bare_spectrum(u, np.linspace(1, 0.05, rank, dtype=np.float32), rank, scale)
    config = Config().replace(max_length=20, batch_size=256, history_negatives=False, spectrum_dtype=spectrum_dtype)
    return training_setup(config.replace(**options), items, histories, spectrum)


def needed_bytes(compiled: Any) -> int:
    """Of a compiled program: arguments, temporaries and what it does not write in place."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


class Steps:
    """The training step on batches that lie on the device; each call makes one pass over them."""

    def __init__(self, setup: Setup, batches: int = 0) -> None:
        """Puts the first `batches` batches of the run on the device, an epoch of them if 0."""
        self.setup = setup
        self.programs = build_programs(setup, 1_000_000)
        self.frozen = setup.place()
        self.state = self.programs.init()
        iterator = training_batches(setup, MANY_EPOCHS)
        count = batches or setup.plan.steps_per_epoch
        self.batches = [partitioning.put_batch(setup.mesh, next(iterator)) for _ in range(count)]
        self.update: Any = self.programs.train_step

    def __call__(self) -> Any:
        """One pass; returns what to wait for."""
        for batch in self.batches:
            self.state, metrics = self.update(self.state, self.frozen, batch)
        return self.state.step, metrics

    def compiled(self) -> Any:
        """The step, compiled ahead."""
        step: Any = self.programs.train_step
        return step.lower(self.state, self.frozen, self.batches[0]).compile()

    def memory(self) -> int:
        """`needed_bytes` of the step."""
        return needed_bytes(self.compiled())


class Epochs:
    """Training through the feed as the loop does it, an epoch a call, without validation or checkpoints."""

    def __init__(self, setup: Setup, epochs: int = MANY_EPOCHS) -> None:
        self.setup = setup
        self.total = epochs * setup.plan.steps_per_epoch
        self.programs = build_programs(setup, self.total)
        self.frozen = setup.place()
        self.state = self.programs.init()
        self.step = 0
        self.feed = Feed(
            training_batches(setup, epochs), setup.mesh, Phases(), step=0, steps_at=lambda at: min(1, self.total - at)
        )

    def __call__(self) -> float:
        """Trains for an epoch; returns its seconds, input and transfer included."""
        start = time.perf_counter()
        pending = []
        with jax.transfer_guard("disallow"):
            for at in range(self.setup.plan.steps_per_epoch):
                dispatch = self.feed.take()
                self.state, metrics = self.programs.train_step(self.state, self.frozen, dispatch.batch)
                pending.append(metrics)
                self.feed.read_ahead()
                if (at + 1) % LOG_EVERY == 0:
                    jax.device_get(pending)
                    pending.clear()
            jax.device_get(pending)
            jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def examples_per_second(self) -> float:
        """Of one epoch, in supervised positions."""
        return self.setup.plan.positions / self()

    def test_metrics(self) -> tuple[dict[str, float], float]:
        """Metrics of the test targets by full ranking, and the seconds that took."""
        test = self.setup.eval_batches(self.setup.split.test)
        start = time.perf_counter()
        table = self.programs.table(self.state.params, self.frozen)
        values = metrics_from_ranks(self.programs.rank(self.state.params, table, test))
        return values, time.perf_counter() - start
