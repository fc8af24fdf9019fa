"""The tables of a comparison, from what was found in each cell; that of the trials is a search's, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectran_jax import statistics
from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report import words
from spectran_jax.studies.differences import INTERVALS
from spectran_jax.studies.outcomes import by_failure, made_otherwise, why_failed
from spectran_jax.studies.popularity import CLASSES, group_metric, groups_of
from spectran_jax.studies.rivals import TEST_METRIC, Cells, Place, Versus, best_rival
from spectran_jax.studies.search import Found
from spectran_jax.studies.space import describe
from spectran_jax.studies.tables import Cell, Table, best_cells, spread

METRICS = ("ndcg@10", "hr@10", "ndcg@20", "mrr")
KEYS = ("Data set", "Backbone", "Method")


def metrics_table(cells: Cells, places: Sequence[Place], versus: Sequence[Versus], target: str) -> Table:
    """Mean and standard deviation of the test metrics over seeds, and the target's gain over each."""
    by_key = {(*each.place, each.rival): each for each in versus}
    rows: list[Sequence[Cell]] = []
    bold: set[tuple[int, int]] = set()
    for key, each in cells.items():
        against = by_key.get(key)
        gain = None if against is None else percent(against.gain)
        p = None if against is None else against.p
        seeds = f"{len(each.done)} of {len(each.runs)}" if each.runs else "none"
        rows.append([*key, *(each.spread(metric) for metric in METRICS), gain, p, seeds])
    for place in places:
        here = [i for i, key in enumerate(cells) if key[:2] == place]
        bold |= best_cells(rows, here, range(len(KEYS), len(KEYS) + len(METRICS)))
    failed = [outcome for each in cells.values() for outcome in each.failures]
    notes = [f"{words.count(len(failed), 'run')} failed. {why_failed(failed)}"] if failed else []
    notes += [_without_p(versus, target), _other_seeds(cells, versus, target)]
    columns = [*KEYS, *map(words.label, METRICS), f"Gain of {target}", "p (Holm)", "Seeds"]
    return Table("Test metrics", columns, rows, note=" ".join(filter(None, notes)), bold=bold)


def gains_table(cells: Cells, places: Sequence[Place], versus: Sequence[Versus], target: str) -> Table:
    """The target against the rival that validation chose, in each place."""
    rows: list[Sequence[Cell]] = []
    for place in places:
        best = best_rival(cells, place, versus)
        if best is None:
            continue
        interval = None if best.interval is None else f"{percent(best.interval[0])} to {percent(best.interval[1])}"
        ours, theirs = (cells[*place, name].spread(TEST_METRIC) for name in (target, best.rival))
        rows.append([*place, best.rival, ours, theirs, percent(best.gain), interval, best.p, best.seeds])
    name = words.label(TEST_METRIC)
    columns = [
        "Data set",
        "Backbone",
        "Best rival",
        f"{target} {name}",
        f"Rival {name}",
        "Gain",
        "95 % interval",
        "p (Holm)",
        "Seeds",
    ]
    note = f"The rival was chosen by validation, among those with seeds enough or as many as any. {INTERVALS}"
    chosen = [best for place in places if (best := best_rival(cells, place, versus)) is not None]
    gains = [best.gain for best in chosen if best.gain is not None]
    if len(gains) > 1:
        note += f" Mean gain over {len(gains)} pairs of data set and backbone: {percent(float(np.mean(gains)))}."
    note = f"{note} {_other_seeds(cells, versus, target)}".rstrip()
    return Table(f"{target} over the best rival", columns, rows, note=note)


def _without_p(versus: Sequence[Versus], target: str) -> str:
    """Why comparisons have no p-value; empty where all have."""
    missing = [each for each in versus if each.p is None]
    if len(missing) == len(versus):
        return statistics.too_few_seeds(max(each.seeds for each in versus)) if versus else ""
    return " ".join(
        f"No p-value for {'/'.join((*each.place, each.rival))}: {words.count(each.seeds, 'seed')} that {target} has, "
        f"too, {'is' if each.seeds == 1 else 'are'} too few."
        for each in missing
    )


def _other_seeds(cells: Cells, versus: Sequence[Versus], target: str) -> str:
    """A sentence where runs that failed leave two methods other seeds: their means don't give their gain."""
    if all(set(cells[*each.place, target].done) == set(cells[*each.place, each.rival].done) for each in versus):
        return ""
    return "Gains are over the seeds that both methods have, means over all of a method's."


def groups_table(cells: Cells, places: Sequence[Place]) -> Table:
    """By how often training saw the target: the mean test NDCG@10, and the HR@10 of the targets that it never saw."""
    wanted = [*((group, TEST_METRIC) for group in CLASSES), ("cold", "hr@10")]
    rows: list[Sequence[Cell]] = []
    bold: set[tuple[int, int]] = set()
    users = []
    for place in places:
        start = len(rows)
        found = {key: [o.ranks() for o in each.done.values()] for key, each in cells.items() if key[:2] == place}
        done = {key: runs for key, runs in found.items() if runs}
        rows += [[*key, *(group_metric(runs, *which) for which in wanted)] for key, runs in done.items()]
        if done:
            groups = groups_of(next(iter(done.values()))[0])
            counts = ", ".join(f"{int(groups[name].sum()):,} {name}" for name in CLASSES)
            users.append(f"{'/'.join(place)}: {counts}.")
        bold |= best_cells(rows, range(start, len(rows)), range(len(KEYS), len(KEYS) + len(wanted)))
    columns = [*KEYS, *(f"{group.capitalize()} {words.label(metric)}" for group, metric in wanted)]
    note = "Targets in each group: " + " ".join(users) + " No training sequence holds the cold ones."
    return Table("By popularity of the target", columns, rows, note=note, bold=bold)


def ranks_table(cells: Cells, places: Sequence[Place], encoders: Sequence[str]) -> Table:
    """The mean rank of each method over the places."""

    def mean(found: Found) -> float:
        return float(np.mean(found.values(TEST_METRIC))) if found.done else np.nan

    scores = np.array([[mean(cells[*place, name]) for name in encoders] for place in places])
    means = statistics.mean_ranks(scores)
    whole = int((~np.isnan(scores).any(axis=1)).sum())
    order = sorted(range(len(encoders)), key=lambda i: (np.isnan(means[i]), means[i]))
    rows = [[encoders[i], None if np.isnan(means[i]) else float(means[i])] for i in order]
    note = (
        f"By mean test {words.label(TEST_METRIC)}; 1 is best. Over {whole} of {len(places)} pairs of data set and "
        "backbone: those where all methods have results."
    )
    return Table("Mean ranks", ["Method", "Mean rank"], rows, note=note)


def chosen_table(cells: Cells) -> Table:
    """What validation chose for each method in each place."""
    rows: list[Sequence[Cell]] = []
    for key, each in cells.items():
        scores = [trial.score for trial in each.trials if trial.score is not None]
        values = "all trials failed" if each.chosen is None else describe(each.chosen)
        failed = f"{len(each.trials) - len(scores)} of {len(each.trials)}"
        rows.append([*key, values, max(scores, default=None), failed])
    selection = f"Validation {words.label(SELECTION_METRIC)}"
    columns = [*KEYS, "Values", selection, "Trials failed"]
    return Table("Chosen values", columns, rows)


def trials_table(title: str, found: Mapping[Any, Found], keys: Sequence[str], *, appendix: bool = False) -> Table:
    """Every trial: where, its values, validation metric and seconds, or why it failed. The chosen ones are bold.

    Args:
      title: of the table.
      found: what was found, by the tuple of cells that say where.
      keys: titles of those cells.
      appendix: see `Table`.
    """
    rows: list[Sequence[Cell]] = []
    bold = set()
    failed: list[tuple[str, str, str]] = []
    for place, each in found.items():
        for trial in each.trials:
            metrics = trial.outcome.metrics
            if metrics is None:
                where = ", ".join(place)
                failed.append((where, f"{where}, trial {trial.name}", trial.outcome.failure))
            if trial.score is not None and trial.values == each.chosen:
                bold.add((len(rows), len(keys) + 2))
            seconds = None if metrics is None else float(metrics["train"]["seconds"])
            rows.append([*place, trial.name, describe(trial.values), trial.score, seconds])
    told = [f"{trials}: {failure}" for trials, failure in by_failure(failed, "trial")]
    note = " ".join([f"{len(failed)} of {words.count(len(rows), 'trial')} failed.", *told]) if failed else ""
    selection = words.label(SELECTION_METRIC)
    return Table(
        title,
        [*keys, "Trial", "Values", f"Validation {selection}", "Seconds"],
        rows,
        note=note,
        bold=bold,
        appendix=appendix,
    )


def cost_table(cells: Cells) -> Table:
    """Parameters, steps and seconds of the runs of the chosen values."""
    rows: list[Sequence[Cell]] = []
    for key, each in cells.items():
        metrics = [outcome.metrics for outcome in each.done.values() if outcome.metrics is not None]
        if not metrics:
            continue
        parameters = metrics[0].get("parameters", {}).get("total")
        steps = spread([m["train"]["steps"] for m in metrics])
        seconds = spread([m["train"]["seconds"] for m in metrics])
        search_seconds = sum(
            t.outcome.metrics["train"]["seconds"] for t in each.trials if t.outcome.metrics is not None
        )
        rows.append([*key, parameters, steps, seconds, float(search_seconds)])
    columns = [*KEYS, "Parameters", "Steps", "Seconds of training", "Seconds of its search"]
    otherwise = made_otherwise(outcome for each in cells.values() for outcome in each.outcomes)
    note = f"Runs side by side share the machine, so seconds compare methods only roughly. {otherwise}"
    return Table("Cost", columns, rows, note=note.strip())


def percent(share: float | None) -> str | None:
    """A signed share in per cent: +3.2 %."""
    return None if share is None else f"{100 * share:+.1f} %"
