"""What a study asks of its runs together: whether any came to its end, which failed, whether they may share a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spectran_jax.errors import InputError, RunError
from spectran_jax.report.words import count
from spectran_jax.studies.jobs import Outcome


def some_came_to_an_end(outcomes: Mapping[str, Outcome]) -> None:
    """Raises where every run failed: an `InputError` where each was refused its input, else a `RunError`."""
    failed = [outcome for outcome in outcomes.values() if not outcome.ok]
    if not failed or len(failed) < len(outcomes):
        return
    what = "The only run failed" if len(failed) == 1 else f"All {len(failed)} runs failed"
    which = ", the last" if len({outcome.failure for outcome in failed}) > 1 else ""
    message = f"{what}{which} with: {failed[-1].failure}"
    refused = all(outcome.status == InputError.exit_status for outcome in failed)
    raise InputError(message) if refused else RunError(message)


def why_failed(outcomes: Iterable[Outcome]) -> str:
    """One sentence for the runs that failed with the same message; empty where none did."""
    failed = [(str(Path(o.name).parent), o.name, o.failure) for o in outcomes if not o.ok]
    return " ".join(f"{runs} failed: {failure}" for runs, failure in by_failure(failed, "run"))


def by_failure(failed: Iterable[tuple[str, str, str]], noun: str) -> list[tuple[str, str]]:
    """Failures, each once, behind the names of what failed so: of several in one place, the place and their number.

    Args:
      failed: the place, the whole name and the failure of each.
      noun: what they are.
    """
    named: dict[str, dict[str, list[str]]] = {}
    for place, name, failure in failed:
        named.setdefault(failure, {}).setdefault(place, []).append(name)
    return [
        (", ".join(n[0] if len(n) == 1 else f"{place} ({count(len(n), noun)})" for place, n in places.items()), failure)
        for failure, places in named.items()
    ]


def shared_protocol(outcomes: Iterable[Outcome], what: str) -> str:
    """The protocol that all runs follow; empty where none came to its end.

    Raises:
      InputError: where they follow several: their numbers can't stand in one table.
    """
    by_protocol: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.metrics is not None:
            by_protocol.setdefault(outcome.metrics["protocol"], []).append(outcome)
    if len(by_protocol) > 1:
        fewest = min(by_protocol.values(), key=len)
        raise InputError(
            f"{what}: its runs follow {len(by_protocol)} protocols and can't share a table: the data, the split or "
            f"what is ranked was another for {len(fewest)} of them, such as {fewest[0].folder}. Delete these folders "
            "and start again, or start a new --workdir."
        )
    return next(iter(by_protocol), "")


def with_missing_times(text: str, runs: Mapping[str, Iterable[Outcome]]) -> str:
    """A study's text, with a paragraph on which backbones would have read timestamps that a data set does not have;
    as it is where none would, or where the runs are of a version that did not note it.

    Args:
      text: of the study.
      runs: by data set.
    """
    from spectran_jax import backbones

    told = []
    for dataset, outcomes in runs.items():
        metrics = [outcome.metrics for outcome in outcomes if outcome.metrics is not None]
        names = {
            m["config"]["backbone"]["backbone"] for m in metrics if not m.get("dataset", {}).get("timestamps", True)
        }
        told += [
            f"{dataset} has no timestamps: {name} leaves its time bias out."
            for name in sorted(names)
            if backbones.lookup(name).reads_time
        ]
    return f"{text.rstrip()}\n\n{' '.join(told)}" if told else text


def made_with(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Code, versions and machine (`machine.made_with`) of the runs that came to their end, those of equals once."""
    made: list[dict[str, Any]] = []
    for outcome in outcomes:
        if outcome.metrics is not None and (each := outcome.metrics.get("made_with", {})) not in made:
            made.append(each)
    return made


def made_otherwise(outcomes: Iterable[Outcome]) -> str:
    """A sentence where code, version or machine were not the same for all runs; empty where they were."""
    made = made_with(outcomes)
    told = []
    for name in dict.fromkeys(name for each in made for name in each):
        values = sorted({str(each.get(name, "not noted")) for each in made})
        told += [f"{name}: {', '.join(values)}"] if len(values) > 1 else []
    return f"The runs were not all made alike ({'; '.join(told)})." if told else ""
