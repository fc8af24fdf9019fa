"""What a person should know of a run's data and settings before it trains: one line each."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

import numpy as np

from spectran_jax import backbones, item_encoders
from spectran_jax.item_encoders.text import sample
from spectran_jax.report import words
from spectran_jax.training.setup import Setup
from spectran_jax.training.timetable import total_steps

_ALIKE = 0.05
"""Share of a sample of the items with text above which those with one and the same embedding deserve a word."""
_ALIKE_LEAST = 10
"""How many of the sample they must be: a few items may well have the same title."""
_FILLER = 0.2
"""Share of a batch above which rows that only fill it up deserve a word."""
_REPEATS = 0.01
"""Share of training interactions above which negatives from a user's own history deserve a word."""
_REPEATS_USERS = 100_000
"""Users that it is counted over: a start should not sort a billion interactions for a hint."""


def notices(setup: Setup) -> list[str]:
    """What a person should know of the data before training starts."""
    return [line for notice in _NOTICES for line in notice(setup)]


def _data(setup: Setup) -> Iterator[str]:
    dataset = setup.dataset
    yield (
        f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"{dataset.num_interactions:,} interactions."
    )
    for reason, number in dataset.dropped.items():
        yield f"Left out: {words.left_out(reason, number)}."


def _text(setup: Setup) -> Iterator[str]:
    if setup.embeddings is None:
        return
    made = f"{', '.join(setup.dataset.text_columns)}, by {setup.embeddings.name}"
    source, width = setup.config.text.embeddings or made, setup.embeddings.matrix.shape[1]
    kept = "" if setup.spectrum is None else f", {len(setup.spectrum.sigma):,} spectral components"
    yield f"Text of the items: {source}; {width:,} dimensions{kept}."


def _alike(setup: Setup) -> Iterator[str]:
    """Where many items share a text embedding, by a sample of up to 1,024: the whole may be a huge file."""
    embeddings = setup.embeddings
    if embeddings is None or not len(items := sample(embeddings.has_text)):
        return
    rows = [row.tobytes() for row in embeddings.matrix[items]]
    [(shared, count)] = collections.Counter(rows).most_common(1)
    if count <= max(_ALIKE_LEAST, _ALIKE * len(rows)):
        return
    about = "" if len(rows) == np.count_nonzero(embeddings.has_text) else "About "
    own = embeddings.name == "precomputed"
    remedy = "make those rows of --embeddings zeros" if own else "leave it empty"
    yield (
        f"{about}{count / len(rows):.0%} of the items with text have the same text embedding as item "
        f"{setup.dataset.item_ids[items[rows.index(shared)]]!r}. If it stands for missing text, {remedy}: it is "
        "learned from as any."
    )


def _cold(setup: Setup) -> Iterator[str]:
    if cold := int((setup.split.item_counts == 0).sum()):
        by_text = item_encoders.lookup(setup.config.encoder.item_encoder).knows_cold_items()
        known = "ranked by text alone" if by_text else "of which nothing is known"
        yield f"In no training history: {words.count(cold, 'item')}, {known}."


def _warmup(setup: Setup) -> Iterator[str]:
    last, warmup = total_steps(setup.config, setup.plan.steps_per_epoch), setup.config.optimizer.warmup_steps
    if last <= warmup:
        yield (
            f"Training ends at step {last:,}, within the {warmup:,} steps of warm-up, and will have learned next to "
            "nothing: give more --epochs, a smaller --batch_size or fewer --warmup_steps."
        )


def _untimed(setup: Setup) -> Iterator[str]:
    name = setup.config.backbone.backbone
    if backbones.lookup(name).reads_time and not setup.timed:
        yield f"The interactions have no timestamps: {name} leaves its time bias out."


def _uncut(setup: Setup) -> Iterator[str]:
    training = setup.config.training
    if setup.mesh.size > 1 and training.parallelism == "jit" and not setup.access.cut:
        idle = f", and --micro_batches={training.micro_batches} hides no exchange" if training.micro_batches > 1 else ""
        yield (
            f"{setup.mesh.size} devices do not cut the {setup.access.rows:,} rows of item tables evenly: each holds "
            f"them whole{idle}."
        )


def _filler(setup: Setup) -> Iterator[str]:
    plan = setup.plan
    filler = 1 - plan.num_rows / plan.steps_per_epoch / plan.rows_per_step
    if plan.groups > 1 and filler > _FILLER:
        yield (
            f"Of the {plan.rows_per_step:,} rows of a batch, a multiple of {plan.groups} for the devices and "
            f"micro-batches, {filler:.0%} are empty: a larger --batch_size wastes less."
        )


def _doubled(setup: Setup) -> Iterator[str]:
    if doubled := setup.dataset.histories.doubled:
        yield (
            f"{doubled:,} interactions say again what the one before them said: the same user, item and time. "
            "--duplicates=drop takes each once."
        )


def _repeats(setup: Setup) -> Iterator[str]:
    train = setup.split.train
    some = train.take(np.arange(min(len(train), _REPEATS_USERS)))
    repeats = some.repeats - some.doubled if setup.objective.history_negatives else 0
    if repeats > _REPEATS * len(some.items):
        yield (
            f"{repeats:,} of {len(some.items):,} training interactions repeat an item of the same user: where a "
            "repeat is a good recommendation, take --nohistory_negatives."
        )


def _tied(setup: Setup) -> Iterator[str]:
    tied = setup.split.tied_targets
    if tied["count"]:
        yield (
            f"{tied['count']:,} of {tied['total']:,} test targets are decided by a tie in time; file order breaks it."
        )


_NOTICES: tuple[Callable[[Setup], Iterator[str]], ...] = (
    _data,
    _text,
    _alike,
    _cold,
    _warmup,
    _untimed,
    _uncut,
    _filler,
    _doubled,
    _repeats,
    _tied,
)
"""In the order in which they are told."""
