"""The flags that experiments on many runs share, beside those of the configuration."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from spectran_jax.config import Config, fields
from spectran_jax.errors import InputError, unknown_name
from spectran_jax.flags import define_config_flags, define_path, read_config
from spectran_jax.studies.datasets import BUILT_IN, dataset_configs, read_datasets
from spectran_jax.studies.ownership import refuse_another_study

_COMMON = ("workdir", "dataset", "datasets", "seeds", "jobs", "results", "section", "config")


@dataclasses.dataclass(frozen=True)
class Study:
    """What the common flags say."""

    datasets: dict[str, Config]
    """The configuration to start from, by data set."""
    seeds: tuple[int, ...]
    parallel: int
    workdir: Path
    results: Path | None
    """The RESULTS.md to refresh."""
    command: str
    """The command that was given, for the pages that it makes."""
    given: dict[str, Any]
    """Configuration fields that the command line names; an experiment must not overrule them silently."""
    tables: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    """Fields that the tables of `--datasets` name, by data set."""
    section: str = ""
    """What `--section` calls the section of RESULTS.md; empty for the data sets and backbones."""


def define_study_flags(*, seeds: Sequence[int] = (0, 1, 2, 3, 4), flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the common flags, whose default seeds these are, and the configuration's."""
    define_path(
        "workdir", "Folder of the experiment: its runs, tables/, figures/, index.html, result.json.", flag_values
    )
    define_path(
        "datasets",
        "TOML file of data sets, a table each: [beauty], then interactions, items, embeddings (relative to the file) "
        "and any other configuration field, such as max_length. What the command line says overrules them; of "
        "interactions and items, it says it of the data set files alone, of embeddings of a single data set too.",
        flag_values,
    )
    define_results_flags(flag_values)
    flags.DEFINE_list(
        "seeds",
        [str(seed) for seed in seeds],
        "Seeds of the runs that read the test set, comma-separated; a search takes the first.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "jobs",
        1,
        "Runs at a time, each a process with its share of the cores. On a CPU as many as there are cores gets most "
        "done, where memory allows; small models leave room for several on one GPU, too (they take its memory as they "
        "need it). A TPU belongs to one process: leave it at 1.",
        flag_values=flag_values,
    )
    define_config_flags(flag_values)
    suits = ", ".join(f"{name} {value}" for name, value in BUILT_IN["movielens_100k"].items() if name != "dataset")
    flag_values["dataset"].help = (
        "Data sets, comma-separated: movielens_100k, names of --datasets (all of them if empty), or files for the one "
        f"that --interactions and --items name. movielens_100k brings fields of its own: {suits}."
    )


def study_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Study:
    """Reads the common flags.

    Raises:
      InputError: no --workdir, seeds that are no whole numbers or stand twice, --jobs below 1, unknown data sets,
        --seed or --evaluate, --results that is no Markdown file, a --section that is no name, a folder of another
        experiment, or a configuration out of range.
    """
    value: dict[str, Any] = {name: flag_values[name].value for name in _COMMON}
    workdir = study_folder(value["workdir"])
    if flag_values["seed"].present:
        raise InputError("An experiment runs several seeds: give --seeds=0,1,2 instead of --seed.")
    if flag_values["evaluate"].present:
        raise InputError("An experiment sets --evaluate itself, run by run; leave the flag out.")
    if value["jobs"] < 1:
        raise InputError(f"--jobs must be at least 1, got {value['jobs']}.")
    given = given_fields(flag_values)
    base = read_config(value["config"]) if value["config"] else None
    named = given.pop("dataset", None)
    if named is not None:
        names = split_names(named)
    elif value["datasets"] is not None:
        names = list(read_datasets(value["datasets"]))
    else:
        names = [value["dataset"] if base is None else base.data.dataset]
    return Study(
        datasets=dataset_configs(names, value["datasets"], base=base, given=given),
        seeds=parse_seeds(value["seeds"]),
        parallel=value["jobs"],
        workdir=workdir,
        results=results_file(value["results"]),
        command=command_line(),
        given=given,
        tables={} if value["datasets"] is None else read_datasets(value["datasets"]),
        section=section_name(value["section"], value["results"]),
    )


def given_fields(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """Configuration fields that the command line names, with their values."""
    return {f.name: flag_values[f.name].value for _, f in fields() if flag_values[f.name].present}


def study_folder(workdir: Path | None) -> Path:
    """What `--workdir` names; raises `InputError` where it names nothing, or a folder of another experiment."""
    if not workdir:
        raise InputError("Name a folder for the experiment: --workdir=DIR.")
    refuse_another_study(workdir, command_line())
    return workdir


def refuse_set_by_study(study: Study, names: Collection[str], several: str = "") -> None:
    """Raises `InputError` where the command line, or a table of `--datasets`, names a field that the study sets itself,
    run by run; see `refuse_given`."""
    refuse_given(study.given, names, several)
    for dataset in study.datasets:
        if clash := sorted(set(names) & set(study.tables.get(dataset, ()))):
            raise InputError(
                f"--datasets, data set {dataset}: this study sets {clash[0]} itself, run by run; leave it out."
            )


def refuse_given(given: Collection[str], names: Collection[str], several: str = "") -> None:
    """Raises `InputError` for a field among those that the command line names; `several`, where a flag of its own, with
    an s behind its name, takes more than one: `A comparison takes several`."""
    if clash := sorted(set(names) & set(given)):
        raise InputError(
            f"{several}: give --{clash[0]}s=NAME,NAME instead of --{clash[0]}."
            if several
            else f"This study sets --{clash[0]} itself, run by run; leave the flag out."
        )


def define_results_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
) -> tuple[flags.FlagHolder[Path | None], flags.FlagHolder[str]]:
    """Defines `--results` and `--section`; `results_file` and `section_name` check them."""
    results = define_path(
        "results", "Markdown file, such as RESULTS.md, whose section of this experiment is written again.", flag_values
    )
    section = flags.DEFINE_string(
        "section",
        "",
        "What the section of --results is called behind the experiment's name, so that two on the same data sets can "
        "stand side by side; the data sets, and backbones other than the default, if empty.",
        flag_values=flag_values,
    )
    return results, section


def results_file(path: Path | None) -> Path | None:
    """What `--results` names; raises `InputError` where it can't be a Markdown file, or its folder does not exist."""
    if path is not None and (path.suffix.lower() != ".md" or path.is_dir()):
        raise InputError(f"--results={path}: name a Markdown file, such as RESULTS.md.")
    if path is not None and not path.parent.is_dir():
        raise InputError(f"--results={path}: the folder {path.parent} does not exist.")
    return path


def section_name(name: str, results: Path | None) -> str:
    """What `--section` says; raises `InputError` for what marks and folders don't hold, or without `--results`."""
    if name and not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"--section={name}: take letters, digits, - and _.")
    if name and results is None:
        raise InputError(f"--section={name} names a section of --results; give both, or leave it out.")
    return name


def split_names(text: str) -> list[str]:
    """Names from `a,b, c`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_seeds(words: Sequence[str]) -> tuple[int, ...]:
    """Seeds from words; raises `InputError` where there is none, one twice, or one that is no whole number."""
    seeds = tuple(int(word) for word in words if word.strip().isdecimal())
    if not seeds or len(set(seeds)) < len(words):
        raise InputError(f"--seeds={','.join(words)}: give whole numbers, comma-separated, each once.")
    return seeds


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command of this process, as a person types it; the home folder is `~`."""
    argv = sys.argv if argv is None else argv
    words = ["python", "-m", f"experiments.{Path(argv[0]).stem}", *argv[1:]]
    home = re.escape(os.path.expanduser("~").rstrip("/"))
    told = " ".join(shlex.quote(word) for word in words)
    return re.sub(rf"(?<=[\s=',:]){home}/", "~/", told) if home else told


def check_names(flag: str, kind: str, names: Sequence[str], registry: Mapping[str, Any]) -> list[str]:
    """The names of a list flag, all of the registry where there is none.

    Raises:
      InputError: an unknown name, or one that stands twice.
    """
    for name in names:
        if name not in registry:
            raise unknown_name(f"{kind} in --{flag}:", name, registry)
    if len(set(names)) < len(names):
        raise InputError(f"--{flag}={','.join(names)}: name each only once.")
    return list(names or registry)
