"""Named variants by data sets by seeds: their runs, and the table that sets each variant against a reference."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.report import words
from spectran_jax.studies import results_md
from spectran_jax.studies.datasets import SET_BY_STUDIES, of_the_protocol
from spectran_jax.studies.differences import INTERVALS, Difference, difference
from spectran_jax.studies.flags import Study, refuse_set_by_study
from spectran_jax.studies.jobs import Job, Outcome, run_jobs, train_command
from spectran_jax.studies.outcomes import (
    made_otherwise,
    made_with,
    shared_protocol,
    some_came_to_an_end,
    why_failed,
    with_missing_times,
)
from spectran_jax.studies.ownership import claimed
from spectran_jax.studies.publish import Result
from spectran_jax.studies.tables import Cell, Spread, Table, best_cells, spread
from spectran_jax.studies.variants import Variant

METRICS = ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "mrr")
"""What tables of variants show, of the test set."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The outcomes of a study, by data set, variant and seed."""

    runs: Mapping[str, Mapping[str, Mapping[int, Outcome]]]
    _over: dict[tuple[str, str, str], Difference | None] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def ok(self, dataset: str, variant: str) -> dict[int, Outcome]:
        """The runs that came to their end, by seed."""
        return {seed: outcome for seed, outcome in self.runs[dataset].get(variant, {}).items() if outcome.ok}

    def shown(self, dataset: str) -> list[str]:
        """The variants of a data set that have a run to show."""
        return [variant for variant in self.runs[dataset] if self.ok(dataset, variant)]

    def pairs(self) -> list[tuple[str, str]]:
        """Every data set with every variant of it that has a run to show."""
        return [(dataset, variant) for dataset in self.runs for variant in self.shown(dataset)]

    def metric(self, dataset: str, variant: str, name: str) -> Spread | None:
        """A metric of the test set over the seeds; None where no run has it."""
        return spread([o.metrics["test"][name] for o in self.ok(dataset, variant).values() if o.metrics])

    def over(self, dataset: str, variant: str, reference: str) -> Difference | None:
        """What a variant's NDCG@10 has over its reference's (`difference`), computed once: the bootstrap takes a while.
        None without one, and of the reference itself."""
        key = dataset, variant, reference
        if variant != reference and key not in self._over:
            self._over[key] = difference(self.ok(dataset, variant), self.ok(dataset, reference))
        return self._over.get(key)

    def against(self, reference: str) -> dict[str, str]:
        """The same reference for every variant."""
        return {variant: reference for variants in self.runs.values() for variant in variants}

    def to_json(self, references: Mapping[str, str]) -> list[dict[str, Any]]:
        """For result.json: each variant's seeds, means and standard deviations of the test metrics, what its NDCG@10
        has over its reference's (None without one), why runs failed, by seed, and what the others were made with, that
        of equals once; on each data set."""
        rows = []
        for dataset, variants in self.runs.items():
            for variant, outcomes in variants.items():
                ok = self.ok(dataset, variant)
                other = references.get(variant, variant)
                over = self.over(dataset, variant, other)
                found = {name: self.metric(dataset, variant, name) for name in METRICS}
                rows.append(
                    {
                        "dataset": dataset,
                        "variant": variant,
                        "seeds": list(ok),
                        "means": {name: None if value is None else value.mean for name, value in found.items()},
                        "stds": {name: None if value is None else value.std for name, value in found.items()},
                        "reference": None if other == variant else other,
                        "difference": None if over is None else over._asdict(),
                        "failures": {str(s): o.failure for s, o in outcomes.items() if not o.ok},
                        "made_with": made_with(ok.values()),
                    }
                )
        return rows

    def note(self) -> str:
        """For a table: one sentence a run that failed, and one where runs were not all made alike."""
        every = [o for variants in self.runs.values() for seeds in variants.values() for o in seeds.values()]
        return " ".join(filter(None, (why_failed(every), made_otherwise(every))))


def everywhere(study: Study, variants: Sequence[Variant]) -> dict[str, Sequence[Variant]]:
    """The same variants on every data set."""
    return {dataset: variants for dataset in study.datasets}


def run_grid(
    study: Study,
    variants: Mapping[str, Sequence[Variant]],
    description: str,
    command: Callable[[Job, Path], list[str]] = train_command,
) -> Grid:
    """Runs each variant with each seed, in `runs/DATASET/VARIANT/seed-N` below the study's folder.

    Args:
      study: data sets with their configurations, seeds, how many at a time, and where.
      variants: by data set; names differ within each.
      description: what the progress line calls the runs.
      command: see `run_jobs`.

    Raises:
      InputError: a field that every variant sets and the command line or --datasets names too, one that only the study
        sets, a variant out of range; where every run failed, and for bad input; or runs of two protocols.
      RunError: where every run failed otherwise.
    """
    changed = {name for some in variants.values() for variant in some for name in variant.values}
    for name in SET_BY_STUDIES:
        if name in changed:
            raise InputError(f"{name} is no field to change: a study sets it run by run; for seeds there is --seeds.")
    # A field that some variants leave alone has the command line's value in those.
    refuse_set_by_study(
        study, set.intersection(*(set(variant.values) for some in variants.values() for variant in some))
    )
    jobs = {
        (dataset, variant.name, seed): Job(
            f"{dataset}/{_folder(variant.name)}/seed-{seed}",
            study.datasets[dataset].replace(**variant.values, seed=seed, evaluate="both"),
        )
        for dataset, some in variants.items()
        for variant in some
        for seed in study.seeds
    }
    for job in jobs.values():
        check(job.config)
    _refuse_protocols(study, variants)
    with claimed(study.workdir, study.command):
        outcomes = run_jobs(
            list(jobs.values()), study.workdir, parallel=study.parallel, description=description, command=command
        )
        some_came_to_an_end(outcomes)
    grid = Grid(
        {
            dataset: {v.name: {s: outcomes[jobs[dataset, v.name, s].name] for s in study.seeds} for v in some}
            for dataset, some in variants.items()
        }
    )
    for dataset, some in grid.runs.items():
        shared_protocol([outcome for seeds in some.values() for outcome in seeds.values()], dataset)
    return grid


def _refuse_protocols(study: Study, variants: Mapping[str, Sequence[Variant]]) -> None:
    """Raises `InputError` where runs on one data set would measure different things."""
    for dataset, some in variants.items():
        configs = [study.datasets[dataset].replace(**variant.values) for variant in some]
        for name in of_the_protocol(configs[0]):
            if len({config.get(name) for config in configs}) > 1:
                raise InputError(
                    f"{name} decides what is measured, so that runs of different values have no common table: make a "
                    f"study of each, with --{name} and a --workdir of its own."
                )


def finish(study: Study, name: str, grid: Grid, result: Result, references: Mapping[str, str] | None = None) -> Result:
    """Publishes a result in the study's folder and, where asked for, in the RESULTS.md section of its data sets; the
    title is given their names, the text a sentence where a data set lacks timestamps, tables without a row are left
    out, and result.json is given the figures of `grid` (`Grid.to_json`)."""
    runs = {name: [o for seeds in some.values() for o in seeds.values()] for name, some in grid.runs.items()}
    result = dataclasses.replace(
        result,
        title=f"{result.title} on {', '.join(study.datasets)}",
        text=with_missing_times(result.text, runs),
        tables=[table for table in result.tables if table.rows],
        data={**result.data, "variants": grid.to_json(references or {})},
    )
    results_md.publish_study(study, name, result)
    return result


def comparison(
    grid: Grid,
    title: str,
    reference: str,
    references: Mapping[str, str] | None = None,
    metrics: Sequence[str] = METRICS,
    note: str = "",
) -> Table:
    """One row a variant: metrics as mean ± s.d. over seeds, and what its NDCG@10 has over the reference's.

    The difference is taken user by user, on each user's NDCG@10 averaged over the seeds that both have, with its 95 %
    interval over users where these are enough (`differences`). The best mean of each metric on each data set is bold.

    Args:
      grid: the runs.
      title: of the table.
      reference: the variant that the others are compared with, or what `references` are, in words.
      references: of each variant, the one that it is compared with, where that is not the same for all.
      metrics: columns.
      note: a sentence more below it.
    """
    rows: list[list[Cell]] = []
    bold: set[tuple[int, int]] = set()
    for dataset in grid.runs:
        start = len(rows)
        for variant in grid.shown(dataset):
            values: list[Cell] = [grid.metric(dataset, variant, name) for name in metrics]
            other = reference if references is None else references[variant]
            over = grid.over(dataset, variant, other)
            rows.append([dataset, variant, *values, None if over is None else str(over)])
        bold |= best_cells(rows, range(start, len(rows)), range(2, 2 + len(metrics)))
    told = (
        f"Metrics are of the test set. Difference: NDCG@10 less that of {reference}, paired by user, over the seeds "
        f"that both have, with its 95 % interval. {INTERVALS}"
    )
    columns = ["Data set", "Variant", *map(words.label, metrics), "Difference [95 %]"]
    return Table(title, columns, rows, note=" ".join(filter(None, (told, note, grid.note()))), bold=bold)


def _folder(name: str) -> str:
    """A variant's name as the name of a folder."""
    return re.sub(r"[^\w.=@+-]+", "-", name)
