"""The end of a run as one looks at it: what report.html shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectran_jax.report import Recommended, ReportData, UserExample, write_report
from spectran_jax.training import loop
from spectran_jax.training.adapter_parts import adapter_of
from spectran_jax.training.setup import Setup
from spectran_jax.training.summary import Ranked, dataset_summary, parameter_rows

EXAMPLE_USERS = 6
EXAMPLE_HISTORY = 8


def write_run_report(
    setup: Setup,
    trained: loop.Trained,
    ranked: Ranked,
    metrics: Mapping[str, Any],
    timings: Mapping[str, float],
    command: str,
    path: Path | None,
) -> None:
    """Gathers what the report shows and writes report.html; all processes gather, one of them has a `path`."""
    config = setup.config
    encoder = config.encoder.item_encoder
    spectral: dict[str, Any] = {}
    if setup.spectrum is not None:
        spectral["text_singular_values"] = np.asarray(setup.spectrum.sigma)
    if encoder == "spectran":
        spectral |= adapter_of(setup, trained.params)._asdict()
    if path is None:
        return
    start = next((line.get("item_singular_values") for line in trained.lines if line["kind"] == "start"), None)
    data_ = ReportData(
        title=f"{encoder} on {config.backbone.backbone}, {setup.dataset.name}",
        command=command,
        config=config.to_dict(),
        dataset=dataset_summary(setup),
        history=trained.lines,
        metrics=metrics,
        parameters=parameter_rows(trained.params),
        examples=_examples(setup, ranked),
        timings=timings,
        item_singular_values=np.asarray(ranked.item_singular_values),
        initial_item_singular_values=None if start is None else np.asarray(start),
        **spectral,
    )
    write_report(data_, path)


def _examples(setup: Setup, ranked: Ranked) -> list[UserExample]:
    """A few users, evenly spaced, with their history and what is recommended to them."""
    dataset, targets, titles = setup.dataset, ranked.targets, setup.dataset.item_titles
    return [
        UserExample(
            user=str(dataset.user_ids[targets.user[row]]),
            history=[titles[item] for item in targets.history[row][-EXAMPLE_HISTORY:]],
            target=titles[targets.target[row]],
            rank=int(ranked.ranks[row]) + 1,
            recommendations=[
                Recommended(titles[item], float(score), bool(item == targets.target[row]))
                for item, score in zip(ranked.ids[row], ranked.scores[row], strict=True)
                if item >= 0
            ],
        )
        for row in np.unique(np.linspace(0, len(targets) - 1, EXAMPLE_USERS).astype(int))
    ]
