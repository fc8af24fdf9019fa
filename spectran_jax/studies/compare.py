"""Item encoders against each other, on backbones and data sets: one search budget, several seeds, tests over users."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from spectran_jax import backbones, item_encoders
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report import words
from spectran_jax.studies import comparison_plots, comparison_tables
from spectran_jax.studies.flags import Study, check_names, refuse_set_by_study
from spectran_jax.studies.jobs import run_jobs
from spectran_jax.studies.outcomes import with_missing_times
from spectran_jax.studies.ownership import claimed
from spectran_jax.studies.publish import Result
from spectran_jax.studies.results_md import publish_study
from spectran_jax.studies.rivals import TEST_METRIC, Cells, against_rivals
from spectran_jax.studies.search import (
    Method,
    Runner,
    one_protocol,
    search,
    to_json,
    told_of_readings,
    told_of_trials,
)
from spectran_jax.studies.space import space_of


def run(
    study: Study, encoders: Sequence[str] = (), backbone_names: Sequence[str] = (), *, budget: int, target: str = ""
) -> Result:
    """Runs and publishes a comparison; see `compare`.

    Raises:
      InputError: a single item encoder or backbone on the command line or in a table of `--datasets`; and as `compare`.
      RunError: as `compare`.
    """
    refuse_set_by_study(study, ("item_encoder", "backbone"), "A comparison takes several")
    result = compare(
        study.datasets,
        study.workdir,
        encoders=encoders,
        backbone_names=backbone_names,
        budget=budget,
        seeds=study.seeds,
        target=target,
        given=tuple(study.given),
        parallel=study.parallel,
        command=study.command,
    )
    publish_study(study, "compare", result, backbones=backbone_names or list(backbones.BACKBONES))
    return result


def compare(
    datasets: Mapping[str, Config],
    workdir: Path,
    *,
    encoders: Sequence[str] = (),
    backbone_names: Sequence[str] = (),
    budget: int,
    seeds: Sequence[int],
    target: str = "",
    given: Sequence[str] = (),
    parallel: int = 1,
    command: str = "",
    runner: Runner = run_jobs,
) -> Result:
    """Compares item encoders: each searched with the same budget, chosen on validation, run with every seed.

    Args:
      datasets: configurations to start from, by data set.
      workdir: of the experiment; runs are in `runs/DATASET/BACKBONE/ENCODER/`.
      encoders: of the registry; all of them if empty.
      backbone_names: of the registry; all of them if empty.
      budget: trials of each search (`space.space_of`); 0 takes the configurations as they are.
      seeds: of the runs that read the test set; trials take the first.
      target: the encoder whose gain over its rivals is told; `spectran` if empty and there, else the first.
      given: fields that are fixed, and not searched.
      parallel: runs at a time.
      command: for the page.
      runner: makes the runs.

    Returns:
      Test metrics, gains over the best rival, mean ranks, chosen values, cost and trials as tables; plots.
      `data["cells"]` holds every trial and run.

    Raises:
      InputError: an unknown name (the nearest is named) or one that stands twice; and as `search`.
      RunError: as `search`.
    """
    encoders = check_names("item_encoders", "item encoder", encoders, item_encoders.REGISTRY)
    backbone_names = check_names("backbones", "backbone", backbone_names, backbones.BACKBONES)
    target = target or ("spectran" if "spectran" in encoders else encoders[0])
    if target not in encoders:
        raise InputError(f"--target={target} is not among --item_encoders={','.join(encoders)}.")
    places = [(dataset, backbone) for dataset in datasets for backbone in backbone_names]
    methods = {}
    for dataset, backbone in places:
        for encoder in encoders:
            config = datasets[dataset].replace(backbone=backbone, item_encoder=encoder)
            methods["/".join((dataset, backbone, encoder))] = Method(config, space_of(encoder, given, config))
    with claimed(workdir, command):
        found = search(methods, workdir, trials=budget, seeds=seeds, parallel=parallel, runner=runner)
    cells: Cells = {(*place, encoder): found["/".join((*place, encoder))] for place in places for encoder in encoders}
    protocols = {
        dataset: one_protocol({"/".join(key): each for key, each in cells.items() if key[0] == dataset}, dataset)
        for dataset in datasets
    }
    versus = against_rivals(cells, places, encoders, target)
    tables = [
        comparison_tables.metrics_table(cells, places, versus, target),
        comparison_tables.gains_table(cells, places, versus, target),
        comparison_tables.groups_table(cells, places),
    ]
    if len(places) > 1:
        tables.append(comparison_tables.ranks_table(cells, places, encoders))
    if budget:
        tables.append(comparison_tables.chosen_table(cells))
    tables.append(comparison_tables.cost_table(cells))
    if budget:
        tables.append(comparison_tables.trials_table("Trials", cells, comparison_tables.KEYS, appendix=True))
    text = _text(budget, methods, seeds, target, told_of_readings(found.values()), sum(v.p is not None for v in versus))
    made = {name: [o for key, each in cells.items() if key[0] == name for o in each.outcomes] for name in datasets}
    others = "" if backbone_names == [Config().backbone.backbone] else f" with {', '.join(backbone_names)}"
    searched = "" if any(each.trials for each in found.values()) else ", nothing searched"
    return Result(
        f"Item encoders compared on {', '.join(datasets)}{others}{searched}",
        [table for table in tables if table.rows],
        comparison_plots.plots(cells, places, encoders),
        text=with_missing_times(text, made),
        command=command,
        data={
            "protocols": protocols,
            "target": target,
            "cells": [
                {"dataset": dataset, "backbone": backbone, "item_encoder": encoder, **to_json(each)}
                for (dataset, backbone, encoder), each in cells.items()
            ],
            "versus": [dataclasses.asdict(each) for each in versus],
        },
    )


def _text(
    budget: int, methods: Mapping[str, Method], seeds: Sequence[int], target: str, readings: str, comparisons: int
) -> str:
    spaces = {method.config.encoder.item_encoder: [r.name for r in method.space] for method in methods.values()}
    fixed = [encoder for encoder, space in spaces.items() if not space]
    if budget and len(fixed) < len(spaces):
        searching = [space for space in spaces.values() if space]
        common = [name for name in searching[0] if all(name in space for space in searching)]
        own = "; ".join(
            f"{encoder} {', '.join(rest)}"
            for encoder, space in spaces.items()
            if (rest := [name for name in space if name not in common])
        )
        decided = f"; the best {words.label(SELECTION_METRIC)} decided" if budget > 1 else ""
        searched = (
            f"{'Every method' if not fixed else 'Every other method'} was searched with {told_of_trials(budget)}, over "
            f"{', '.join(common) or 'no field that all share'}{f'; and {own}' if own else ''}. Trials read the "
            f"validation set alone, with seed {seeds[0]}{decided}."
        )
        if fixed:
            searched = f"The values of {', '.join(fixed)} were all given, so that nothing was searched. {searched}"
    else:
        searched = "Nothing was searched: every method has the configuration's values."
    spreads = " Figures are means over seeds and their standard deviation (n - 1)." if len(seeds) > 1 else ""
    tests = ""
    if comparisons:
        family = f"with Holm's correction for all {comparisons} comparisons of {target} in these tables"
        tests = (
            " p-values are of two-sided paired sign-flip tests over users, on each user's mean over seeds"
            f"{f', {family}' if comparisons > 1 else ''}. They say how far a difference would carry over to other "
            "users like these; how far it would carry over to other seeds, the standard deviations say."
        )
    return (
        f"{searched} The chosen values were run with {words.count(len(seeds), 'seed')}, which {readings}. Targets are "
        f"ranked among the whole catalogue.{spreads}\n\n"
        f"Gains are of {target}, relative, in {words.label(TEST_METRIC)}.{tests}"
    )
