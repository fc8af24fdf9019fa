"""RESULTS.md: the section of an experiment between two marks, written by the experiment itself.

    <!-- begin compare-office -->
    ...
    <!-- end compare-office -->

What stands outside the marks is people's, and stays as it is. Figures lie beside the file, in a folder of its name:
those of this section of RESULTS.md in results/compare-office/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from spectran_jax.config import Config
from spectran_jax.errors import InputError, RunError
from spectran_jax.report.figures import standalone
from spectran_jax.studies import tables
from spectran_jax.studies.flags import Study
from spectran_jax.studies.publish import Result, publish, unique_names
from spectran_jax.training.workdir import locked
from spectran_jax.writing import write_text

PATIENCE = 60.0
"""Seconds to wait for another study that writes its section."""


def section(
    name: str,
    datasets: Mapping[str, Config],
    *,
    own: str = "",
    encoders: Sequence[str] = (),
    backbones: Sequence[str] = (),
) -> str:
    """The section of an experiment: `compare-office`, `sweep-office-spectran`, `ablation-office-hstu`.

    Backbones, those of the configurations where none is named, are left out where they are the default alone. `own`,
    the name that `--section` gives, stands behind the experiment's in place of all the rest.
    """
    if own:
        return f"{name}-{own}"
    backbones = backbones or sorted({config.backbone.backbone for config in datasets.values()})
    told = [] if list(backbones) == [Config().backbone.backbone] else backbones
    return "-".join([name, *datasets, *encoders, *told])


def publish_study(
    study: Study, name: str, result: Result, *, encoders: Sequence[str] = (), backbones: Sequence[str] = ()
) -> None:
    """Publishes a result in the study's folder and, where asked for, in its section of RESULTS.md (see `section`)."""
    publish(result, study.workdir)
    if study.results is not None:
        refresh(
            study.results,
            section(name, study.datasets, own=study.section, encoders=encoders, backbones=backbones),
            result,
        )


def refresh(path: Path, name: str, result: Result) -> None:
    """Replaces the section `name` of a Markdown file by what `result` holds; adds it at the end where there is none.

    The section's folder of figures holds the result's figures afterwards and no others.

    Args:
      path: the file; made where there is none.
      name: of the section: letters, digits, `-`, `_` and dots.
      result: what was found.

    Raises:
      InputError: the file can't be read, a mark of this name is missing or stands twice, the folder of figures can't be
        made or locked, or another study goes on writing to the file.
      RunError: where the disk refuses.
    """
    figures = path.parent / path.stem.lower()
    # Held by this folder, as studies may end together, each with its section. It is people's, who keep it in Git.
    with locked(figures, patience=PATIENCE, keep=False, called=f"--results={path}: {figures}"):
        _refresh(path, name, figures / name, result)


def _refresh(path: Path, name: str, folder: Path, result: Result) -> None:
    files = _figure_files(result)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = "# Results\n"
    except (OSError, ValueError) as error:
        raise InputError(f"--results={path} can't be read: {error}.") from None
    begin, end = (f"<!-- {side} {name} -->" for side in ("begin", "end"))
    body = f"{begin}\n{markdown(result, folder.relative_to(path.parent).as_posix())}{end}"
    counts = text.count(begin), text.count(end)
    if counts == (0, 0):
        text = f"{text.rstrip()}\n\n{body}\n"
    elif counts == (1, 1) and text.index(begin) < text.index(end):
        text = text[: text.index(begin)] + body + text[text.index(end) + len(end) :]
    else:
        raise InputError(
            f"--results={path}: the section {name} needs one line {begin} and one {end} after it, "
            f"found {counts[0]} and {counts[1]}; mend the file by hand."
        )
    if files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--results={path}: {error.filename} can't be made ({error.strerror}).") from None
    for file, figure in zip(files, result.figures, strict=True):
        write_text(folder / file, standalone(figure.svg))
    write_text(path, text)
    for old in set(folder.glob("*.svg")) - {folder / file for file in files}:
        old.unlink(missing_ok=True)


def markdown(result: Result, folder: str = "") -> str:
    """Title, command, text and tables but for appendices as Markdown, ending in a newline; figures, if `folder` says
    where their files are."""
    parts = [f"## {result.title}"]
    if result.command:
        parts.append(f"    {result.command}")
    parts += [p.strip() for p in re.split(r"\n\s*\n", result.text) if p.strip()]
    for table in (table for table in result.tables if not table.appendix):
        parts += [f"**{table.title}**", tables.to_markdown(table).rstrip()]
    if folder:
        for file, figure in zip(_figure_files(result), result.figures, strict=True):
            parts += [f"![{figure.title}]({folder}/{file})", figure.caption]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figure_files(result: Result) -> list[str]:
    return [f"{title}.svg" for title in unique_names([figure.title for figure in result.figures])]
