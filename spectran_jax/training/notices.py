"""What a person should know of a run's data and settings before it trains: one line each."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from spectran_jax import backbones, item_encoders
from spectran_jax.item_encoders.text import sample
from spectran_jax.report import words
from spectran_jax.text import TextEmbeddings
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
    dataset, split = setup.dataset, setup.split
    lines = [
        f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"{dataset.num_interactions:,} interactions."
    ]
    lines += [f"Left out: {words.left_out(reason, number)}." for reason, number in dataset.dropped.items()]
    if setup.embeddings is not None:
        made = f"{', '.join(dataset.text_columns)}, by {setup.embeddings.name}"
        source, width = setup.config.text.embeddings or made, setup.embeddings.matrix.shape[1]
        kept = "" if setup.spectrum is None else f", {len(setup.spectrum.sigma):,} spectral components"
        lines.append(f"Text of the items: {source}; {width:,} dimensions{kept}.")
        lines += _alike(setup.embeddings, dataset.item_ids)
    cold = int((split.item_counts == 0).sum())
    if cold:
        by_text = item_encoders.lookup(setup.config.encoder.item_encoder).knows_cold_items()
        known = "ranked by text alone" if by_text else "of which nothing is known"
        lines.append(f"In no training history: {words.count(cold, 'item')}, {known}.")
    last, warmup = total_steps(setup.config, setup.plan.steps_per_epoch), setup.config.optimizer.warmup_steps
    if last <= warmup:
        lines.append(
            f"Training ends at step {last:,}, within the {warmup:,} steps of warm-up, and will have learned next to "
            "nothing: give more --epochs, a smaller --batch_size or fewer --warmup_steps."
        )
    name = setup.config.backbone.backbone
    if backbones.lookup(name).reads_time and not setup.timed:
        lines.append(f"The interactions have no timestamps: {name} leaves its time bias out.")
    training, rows = setup.config.training, setup.plan.rows_per_step
    if setup.mesh.size > 1 and training.parallelism == "jit" and not setup.access.cut:
        idle = f", and --micro_batches={training.micro_batches} hides no exchange" if training.micro_batches > 1 else ""
        lines.append(
            f"{setup.mesh.size} devices do not cut the {setup.access.rows:,} rows of item tables evenly: each holds "
            f"them whole{idle}."
        )
    filler = 1 - setup.plan.num_rows / setup.plan.steps_per_epoch / rows
    if setup.plan.groups > 1 and filler > _FILLER:
        lines.append(
            f"Of the {rows:,} rows of a batch, a multiple of {setup.plan.groups} for the devices and micro-batches, "
            f"{filler:.0%} are empty: a larger --batch_size wastes less."
        )
    doubled = dataset.histories.doubled
    if doubled:
        lines.append(
            f"{doubled:,} interactions say again what the one before them said: the same user, item and time. "
            "--duplicates=drop takes each once."
        )
    some = split.train.take(np.arange(min(len(split.train), _REPEATS_USERS)))
    repeats = some.repeats - some.doubled if setup.objective.history_negatives else 0
    if repeats > _REPEATS * len(some.items):
        lines.append(
            f"{repeats:,} of {len(some.items):,} training interactions repeat an item of the same user: where a "
            "repeat is a good recommendation, take --nohistory_negatives."
        )
    tied = split.tied_targets
    if tied["count"]:
        lines.append(
            f"{tied['count']:,} of {tied['total']:,} test targets are decided by a tie in time; file order breaks it."
        )
    return lines


def _alike(embeddings: TextEmbeddings, item_ids: Sequence[str | int]) -> list[str]:
    """A line where many items share a text embedding, by a sample of up to 1,024: the whole may be a huge file."""
    items = sample(embeddings.has_text)
    if not len(items):
        return []
    rows = [row.tobytes() for row in embeddings.matrix[items]]
    [(shared, count)] = collections.Counter(rows).most_common(1)
    if count <= max(_ALIKE_LEAST, _ALIKE * len(rows)):
        return []
    about = "" if len(rows) == np.count_nonzero(embeddings.has_text) else "About "
    own = embeddings.name == "precomputed"
    remedy = "make those rows of --embeddings zeros" if own else "leave it empty"
    return [
        f"{about}{count / len(rows):.0%} of the items with text have the same text embedding as item "
        f"{item_ids[items[rows.index(shared)]]!r}. If it stands for missing text, {remedy}: it is learned from as any."
    ]
