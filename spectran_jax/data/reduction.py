"""Interactions that outgrow one machine, reduced with Apache Beam to a file that `--dataset=files` reads.

Raw logs have many files, and most of what they hold never reaches a model: items that are not in the catalogue, users
and items with too few interactions, all but the newest items of a user. Beam leaves these out on as many workers as a
runner has, and writes one Parquet file of user_id, item_id, position and, where there are any, timestamps.

Each source file is read by one worker, whole, as `files.read_interactions` reads it, with the same messages for bad
input. The rounds of a k-core are pipelines of their own, each from the files that the last one wrote, until a round
drops nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from spectran_jax.data import files
from spectran_jax.data.content import nothing_left, unknown_items_error
from spectran_jax.data.spelling import alike, columns_found
from spectran_jax.data.table_files import column_names
from spectran_jax.errors import InputError, Interrupted, RunError, first_line
from spectran_jax.progress import quiet
from spectran_jax.signals import StopRequest

try:
    with quiet():  # it warns of clients of Google Cloud that nobody asked for
        import apache_beam as beam
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    if error.name != "apache_beam":
        raise
    raise InputError("Apache Beam is not installed: in the repository, pip install '.[beam]'.") from None

from spectran_jax.data import beam_files, beam_steps

LOCAL_RUNNER = "--runner=FnApiRunner"
"""Beam's own on this machine: the default one would fetch a program from the network first."""


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is left out. Each is off at its default, but for unknown items."""

    k_core: int = 0
    """Keep users and items with at least this many interactions, repeatedly."""
    newest: int = 0
    """Keep this many interactions of each user, the newest; after the k-core."""
    unknown_items: str = "error"
    """"drop" leaves out interactions with items that the catalogue lacks, "error" refuses them."""
    duplicates: str = "keep"
    """"drop" takes interactions of the same user, item, time and position once, before the k-core; afterwards their
    positions tell them apart."""


def reduce_interactions(
    interactions: Sequence[str],
    items: Sequence[str],
    output: str,
    filters: Filters,
    *,
    options: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Reads the files of interactions that the patterns match, filters them, and writes `output`, a Parquet file.

    Histories, the order of time, ties and the k-core are those of `load` on one file with the rows of all, in the
    order of the files' names. The order of rows and users is the runner's. Files without rows are passed over.

    Args:
      interactions: patterns of files (TSV, CSV, JSONL, Parquet, .gz), local or of any file system that Beam knows.
      items: patterns of the files of the catalogue; empty takes every item for known.
      output: the file to write, on a file system that all workers share; what was there stays until the new one is
        whole.
      filters: what is left out.
      options: of the Beam pipeline, such as `--runner=DataflowRunner`; by default it runs in this process, within its
        memory.
      progress: is given a line at the start of each pipeline.

    Returns:
      Counts: files, users and interactions, those whose place only the order of files and rows decides (the output has
      positions for all, so that training no longer sees these ties), those that say again what another says (which
      training no longer sees either), and those left out, by reason; of the last three only what occurred.

    Raises:
      InputError: for bad input; names the file and, where there is one, the line.
      RunError: where a pipeline fails, or `output` can't be written.
      Interrupted: at SIGTERM or Ctrl-C, in the main thread.
    """
    with _plainly():
        beam_options = PipelineOptions([LOCAL_RUNNER, *options])  # the last that names a runner counts
        FileSystems.set_options(beam_options)
        sources, catalogue = beam_files.matching(interactions, "interactions"), beam_files.matching(items, "items")
        output = beam_files.checked_output(output, [*sources, *catalogue])
    beam_files.remove_abandoned(output)
    with StopRequest(goes_on=""), contextlib.closing(_Work(output, beam_options)) as work:
        progress(f"Reading {len(sources)} files of interactions ...")
        common, unknown = _read(work, sources, catalogue, filters, items)
        again = dict(beam_steps.read_facts(work.path("again"))).get("duplicates", 0)
        left_out = {"unknown_items": unknown.interactions, "duplicates": again, "k_core_interactions": 0}
        part = rounds = 0
        while filters.k_core > 1:
            rounds += 1
            progress(f"Round {rounds} of the {filters.k_core}-core ...")
            dropped = _core_round(work, part, filters.k_core)
            work.remove(f"rows-{part}")
            part += 1
            if not dropped:
                break
            left_out["k_core_interactions"] += dropped
        progress("Ordering histories ...")
        counts = _write_histories(work, part, filters.newest, common)
        if not counts.get("interactions"):
            known = _alike(work, catalogue, unknown.names)
            source = ", ".join(interactions)
            raise nothing_left(source, filters.k_core, filters.unknown_items, unknown.names, known, unknown.items)
        work.publish()
    left_out |= {
        "older_interactions": counts["older"],
        "placed_by_file_order": counts.get("tied", 0),
        "said_again": counts.get("again", 0),
    }
    found = {"files": len(sources), "users": counts["users"], "interactions": counts["interactions"]}
    return found | {reason: count for reason, count in left_out.items() if count}


@dataclasses.dataclass(frozen=True)
class _Common:
    """What all files of interactions have in common."""

    columns: tuple[str, ...]
    """Of `files.ORDER_COLUMNS`."""
    types: dict[str, str]
    """Of the ids, by column: of `beam_steps.ID_TYPES`."""


class _Unknown(NamedTuple):
    """Interactions with items that the catalogue lacks."""

    interactions: int
    items: int
    names: list[str]
    """Of the first of these items, as written."""


class _Work:
    """The folder of one reduction, beside its output, and the pipelines that write to it."""

    def __init__(self, output: str, options: Any) -> None:
        self.output, self._options = output, options
        self.folder = f"{output}.tmp-{uuid.uuid4().hex}"
        self._kept = False
        with _plainly():
            FileSystems.mkdirs(self.folder)

    def path(self, name: str) -> str:
        """What the files of one intermediate result begin with."""
        return f"{self.folder}/{name}"

    def run(self, build: Callable[[Any], None]) -> None:
        """Runs what `build` adds to a pipeline; one that is given up is cancelled."""
        with _plainly(), _without_tracebacks():
            pipeline = beam.Pipeline(options=self._options)
            build(pipeline)
            result = pipeline.run()
            try:
                result.wait_until_finish()
            except BaseException:
                with contextlib.suppress(Exception):
                    result.cancel()
                raise

    def publish(self) -> None:
        """Gives histories.parquet the name of the output, in one step where the file system has such."""
        made = self.path("histories.parquet")
        try:
            FileSystems.rename([made], [self.output])
        except Exception as error:
            self._kept = True
            raise RunError(
                f"{self.output}: can't be written ({first_line(error, 500)}); the result is {made}."
            ) from None

    def remove(self, name: str) -> None:
        """Removes the files of an intermediate result."""
        with contextlib.suppress(OSError):
            FileSystems.delete([f"{self.path(name)}-*"])

    def close(self) -> None:
        """Removes all of it, but for a result that could not be published."""
        if not self._kept:
            folders = FileSystems.get_filesystem(self.folder).has_dirs()
            with contextlib.suppress(OSError):
                FileSystems.delete([self.folder if folders else f"{self.folder}/"])


def _read(
    work: _Work, sources: list[str], catalogue: list[str], filters: Filters, patterns: Sequence[str]
) -> tuple[_Common, _Unknown]:
    """Writes the rows of all files as rows-0; what the files have in common, and the interactions left out."""

    def build(pipeline: Any) -> None:
        rows, summaries = beam_steps.read_rows(pipeline, sources)
        beam_steps.write_facts(summaries, work.path("interactions"))
        if catalogue:
            items, summaries = beam_steps.read_items(pipeline, catalogue)
            beam_steps.write_facts(summaries, work.path("items"))
            rows, facts = beam_steps.known_rows(rows, items)
            beam_steps.write_facts(facts, work.path("unknown"))
        if filters.duplicates == "drop":
            rows, facts = beam_steps.distinct_rows(rows)
            beam_steps.write_facts(facts, work.path("again"))
        _write_rows(rows, work.path("rows-0"))

    work.run(build)
    summaries = beam_steps.read_facts(work.path("interactions"))
    if len(summaries) != len(sources):
        raise RunError(
            f"{work.output}: the workers tell of {len(summaries)} of {len(sources)} files; --output must lie on a file "
            "system that they share with this machine."
        )
    told = [*summaries, *(beam_steps.read_facts(work.path("items")) if catalogue else [])]
    wrong = [(one["path"], one["error"]) for one in told if one["error"]]
    if wrong:
        raise InputError(min(wrong)[1])
    common = _common(sorted((one for one in summaries if "columns" in one), key=lambda one: one["path"]))
    facts = dict(beam_steps.read_facts(work.path("unknown"))) if catalogue else {}
    for item, times in facts.get("repeated", ()):
        raise InputError(f"{', '.join(patterns)}: item id {item!r} has {times} rows; give it one.")
    names = [item for _, item in facts.get("unknown", ())]
    unknown = _Unknown(facts.get("unknown_interactions", 0), facts.get("unknown_ids", 0), names)
    if unknown.interactions and filters.unknown_items != "drop":
        source = sources[facts["unknown"][0][0] >> beam_steps.ROW_BITS]
        raise unknown_items_error(source, ", ".join(patterns), *unknown, _alike(work, catalogue, names))
    return common, unknown


def _alike(work: _Work, catalogue: list[str], names: list[str]) -> list[str]:
    """The items of the catalogue that may be some of these in another spelling, for a message."""

    def build(pipeline: Any) -> None:
        items, _ = beam_steps.read_items(pipeline, catalogue)
        beam_steps.write_facts(items | beam.Filter(alike(names)), work.path("alike"))

    if names:
        work.run(build)
    return beam_steps.read_facts(work.path("alike")) if names else []


def _common(summaries: list[dict[str, Any]]) -> _Common:
    columns = tuple(name for name in files.ORDER_COLUMNS if any(name in one["columns"] for one in summaries))
    for one in summaries:
        for name in columns:
            if name not in one["columns"]:
                with _plainly(), beam_steps.local_copy(one["path"]) as path:
                    found = columns_found([name], column_names(path), (*beam_steps.IDS, *files.ORDER_COLUMNS))
                raise InputError(f"{one['path']}: no column {name}, which other files of --interactions have; {found}")
    types = {
        name: next(kind for kind in beam_steps.ID_TYPES if all(kind in one["types"][name] for one in summaries))
        for name in beam_steps.IDS
    }
    return _Common(columns, types)


def _core_round(work: _Work, part: int, k: int) -> int:
    """Writes the next part, without users and items that have fewer than k; the interactions that it drops."""

    def build(pipeline: Any) -> None:
        rows, counts = beam_steps.core_round(_read_rows(pipeline, work.path(f"rows-{part}")), k)
        _write_rows(rows, work.path(f"rows-{part + 1}"))
        beam_steps.write_facts(counts, work.path(f"round-{part}"))

    work.run(build)
    return dict(beam_steps.read_facts(work.path(f"round-{part}"))).get("dropped", 0)


def _write_histories(work: _Work, part: int, newest: int, common: _Common) -> dict[str, int]:
    """Writes histories.parquet; the counts of `beam_steps.histories`."""
    fields = [(name, pa.type_for_alias(kind)) for name, kind in common.types.items()]
    integers = {name: kind != "string" for name, kind in common.types.items()}
    fields += [(name, pa.int64()) for name in files.ORDER_COLUMNS if name == "position" or name in common.columns]

    def build(pipeline: Any) -> None:
        read = _read_rows(pipeline, work.path(f"rows-{part}"))
        rows, counts = beam_steps.histories(read, newest, integers)
        beam_steps.write_facts(counts, work.path("counts"))
        # One file: what is left fits one machine, which reads it.
        one = {"num_shards": 1, "shard_name_template": "", "file_name_suffix": ".parquet"}
        rows | beam.io.WriteToParquet(work.path("histories"), pa.schema(fields), **one)

    work.run(build)
    return dict(beam_steps.read_facts(work.path("counts")))


def _write_rows(rows: Any, name: str) -> None:
    rows | beam.io.WriteToParquet(name, beam_steps.ROW_SCHEMA, file_name_suffix=".parquet")


def _read_rows(pipeline: Any, name: str) -> Any:
    return pipeline | beam.io.ReadFromParquet(f"{name}-*.parquet")


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Workers in this process log the traceback of what the pipeline raises; not so meanwhile."""
    loggers = [logging.getLogger(f"apache_beam.runners.{name}") for name in ("common", "worker")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """What options, file systems and runners raise, as one message."""
    try:
        yield
    except Interrupted as error:  # Beam adds the step that it was in
        raise Interrupted(str(error).partition(" [while running")[0]) from None
    except (InputError, RunError):
        raise
    except (ValueError, OSError) as error:
        # Its complaints of options are lists, a line each.
        raise InputError(f"Apache Beam refuses this: {' '.join(str(error).split())[:500]}") from error
    except Exception as error:
        raise RunError(f"A pipeline of Apache Beam failed: {first_line(error, 500)}") from error
