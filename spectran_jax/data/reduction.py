"""Interactions that outgrow one machine, reduced with Apache Beam to a file that `--dataset=files` reads.

Raw logs have many files, and most of what they hold never reaches a model: items that are not in the catalogue, users
and items with too few interactions, all but the newest items of a user. Beam leaves these out on as many workers as a
runner has (Dataflow, Flink, Spark, or this machine), and writes one Parquet file of user_id, item_id, position and,
where there are any, timestamps.

Each source file is read by one worker as `files.read_interactions` reads it, with the same messages for bad input. The
rounds of a k-core are pipelines of their own, each from the files that the last one wrote, until none finds anything
to leave out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from spectran_jax.data import files
from spectran_jax.errors import InputError
from spectran_jax.progress import quiet

try:
    with quiet():  # it warns of clients of Google Cloud that nobody asked for
        import apache_beam as beam
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.metrics import Metrics
        from apache_beam.options.pipeline_options import PipelineOptions
except ImportError:
    raise InputError("Apache Beam is not installed: pip install 'spectran-jax[beam]'.") from None

_FILE_BITS = 32
"""A row's place among all rows: the number of its file, then this many bits for its number in the file."""
_ROW = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),
        ("position", pa.int64()),
        ("place", pa.int64()),
    ]
)
Row = dict[str, Any]
"""With the columns of `_ROW`; ids as written, None for what the source lacks."""


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is left out. Each is off at its default, but for unknown items."""

    k_core: int = 0
    """Keep users and items with at least this many interactions, repeatedly."""
    newest: int = 0
    """Keep this many interactions of each user, the newest; after the k-core."""
    unknown_items: str = "error"
    """"drop" leaves out interactions with items that the catalogue lacks, "error" refuses them."""


def reduce_interactions(
    interactions: Sequence[str],
    items: Sequence[str],
    output: str,
    filters: Filters,
    *,
    options: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Reads the files of interactions that the patterns match, filters them, and writes `output`, a Parquet file.

    Histories, the order of time, ties and the k-core are those of `load` on one file with the rows of all, in the
    order of the files' names. The order of the users is that of the runner.

    Args:
      interactions: patterns of files (TSV, CSV, Parquet, .gz), local or of any file system that Beam knows.
      items: patterns of the files of the catalogue; empty takes every item for known.
      output: the file to write; what was there stays until the new one is whole.
      filters: what is left out.
      options: of the Beam pipeline, such as `--runner=DataflowRunner`.
      tell: is given a line at the start of each pipeline.

    Returns:
      Counts: files, interactions, and what was left out, by reason; only reasons that occurred.

    Raises:
      InputError: for bad input; names the file and, where there is one, the line.
    """
    _refuse_output(output)
    sources, catalogue = _matching(interactions, "interactions"), _matching(items, "items")
    work = f"{output}.tmp-{uuid.uuid4().hex}"
    FileSystems.mkdirs(work)
    run = _Run(work, options)
    try:
        tell(f"Reading {len(sources)} files of interactions ...")
        counts = _read(run, sources, catalogue, filters)
        part, rounds = 0, 0
        while filters.k_core > 1:
            rounds += 1
            tell(f"Round {rounds} of the {filters.k_core}-core ...")
            gone = run.pipeline(functools.partial(_core_round, run=run, part=part, k=filters.k_core))["gone"]
            part += 1
            if not gone:
                break
            counts["k_core"] = counts.get("k_core", 0) + gone
        tell("Ordering histories ...")
        seen = run.pipeline(lambda pipeline: _write_histories(pipeline, run, part, filters.newest, counts))
        if not seen["written"]:
            raise InputError(
                f"{', '.join(interactions)}: no interactions are left after the filters (k_core={filters.k_core}, "
                f"unknown_items={filters.unknown_items}); lower --k_core, or check that the item ids match."
            )
        with contextlib.suppress(OSError):
            FileSystems.delete([output])
        FileSystems.rename([run.histories], [output])
        found = {"files": len(sources), "users": seen["users"], "interactions": seen["written"]}
        left_out = {"unknown_items": counts["unknown"], "k_core": counts.get("k_core", 0), "older": seen["older"]}
        return found | {reason: count for reason, count in left_out.items() if count}
    finally:
        with contextlib.suppress(OSError):
            FileSystems.delete([work])


class _Run:
    """Where the pipelines of one reduction keep what they hand on, and how they are run."""

    def __init__(self, work: str, options: Sequence[str]) -> None:
        self.work, self._options = work, list(options)
        self.histories = f"{work}/histories.parquet"

    def part(self, number: int) -> str:
        """The name that the files of an intermediate result begin with."""
        return f"{self.work}/rows-{number}"

    def pipeline(self, build: Callable[[Any], None]) -> dict[str, int]:
        """Runs what `build` adds to a pipeline; its counters, 0 where nothing was counted."""
        pipeline = beam.Pipeline(options=PipelineOptions(self._options, save_main_session=False))
        build(pipeline)
        result = pipeline.run()
        result.wait_until_finish()
        counts = dict.fromkeys(("unknown", "gone", "written", "older", "users"), 0)
        for counter in result.metrics().query()["counters"]:
            if counter.key.metric.namespace == __name__:
                counts[counter.key.metric.name] += counter.result  # each step counts for itself
        return counts


def _count(name: str, by: int = 1) -> None:
    Metrics.counter(__name__, name).inc(by)


def _read(run: _Run, sources: list[str], catalogue: list[str], filters: Filters) -> dict[str, Any]:
    """Writes the rows of all files as part 0; counts, and what the files have in common."""

    def build(pipeline: Any) -> None:
        read = (
            pipeline
            | "interactions" >> beam.Create(list(enumerate(sources)))
            | beam.Reshuffle()
            | beam.FlatMap(_rows_of).with_outputs("about", main="rows")
        )
        _write_lines(read.about, f"{run.work}/about")
        rows = read.rows
        if catalogue:
            known = (
                pipeline
                | "items" >> beam.Create(catalogue)
                | "spread items" >> beam.Reshuffle()
                | beam.FlatMap(_items_of).with_outputs("about", main="items")
            )
            _write_lines(known.about, f"{run.work}/items-about")
            joined = {"rows": rows | _by("item_id"), "items": known.items} | beam.CoGroupByKey()
            checked = joined | beam.FlatMap(_known).with_outputs("about", main="rows")
            _write_lines(checked.about, f"{run.work}/unknown")
            rows = checked.rows
        _write_rows(rows, run.part(0))

    counts: dict[str, Any] = run.pipeline(build)
    told = [*_lines(f"{run.work}/about"), *_lines(f"{run.work}/items-about")]
    wrong = [(one["path"], one["error"]) for one in told if one["error"]]
    if wrong:
        raise InputError(min(wrong)[1])
    abouts = sorted((one for one in told if "timestamp" in one), key=lambda one: one["path"])
    for name in files.ORDER_COLUMNS:
        without = [one["path"] for one in abouts if not one[name]]
        if without and len(without) < len(abouts):
            raise InputError(f"{without[0]}: no column {name}, which other files of --interactions have.")
        counts[name] = not without
    for name in ("user_id", "item_id"):
        counts[name] = all(one[name] for one in abouts)
    unknown = sorted(_lines(f"{run.work}/unknown"), key=lambda one: (one["place"], one["item"]))
    for one in unknown:
        if one["listed"]:
            raise InputError(f"{', '.join(catalogue)}: item id {one['item']!r} has {one['listed']} rows; give it one.")
    if unknown and filters.unknown_items != "drop":
        names = ", ".join(repr(one["item"]) for one in unknown[:3])
        raise InputError(
            f"{sources[unknown[0]['place'] >> _FILE_BITS]}: {counts['unknown']} interactions name {len(unknown)} items "
            f"that {', '.join(catalogue)} does not have ({names}{', ...' if len(unknown) > 3 else ''}); add them, or "
            "leave these interactions out with --unknown_items=drop."
        )
    return counts


def _core_round(pipeline: Any, run: _Run, part: int, k: int) -> None:
    """Leaves out the rows of users, and then of items, with fewer than k."""
    rows = _read_rows(pipeline, run.part(part))
    for column in ("user_id", "item_id"):
        keyed = rows | f"by {column}" >> _by(column)
        many = (
            keyed | f"count {column}" >> beam.combiners.Count.PerKey() | f"many {column}" >> beam.Filter(_at_least, k)
        )
        joined = {"rows": keyed, "many": many} | f"join {column}" >> beam.CoGroupByKey()
        rows = joined | f"keep {column}" >> beam.FlatMap(_kept)
    _write_rows(rows, run.part(part + 1))


def _write_histories(pipeline: Any, run: _Run, part: int, newest: int, counts: dict[str, Any]) -> None:
    """Writes the rows user by user, each with its position, in one file."""
    integer = {name: counts[name] for name in ("user_id", "item_id")}
    schema = [(name, pa.int64() if whole else pa.string()) for name, whole in integer.items()]
    schema += [(name, pa.int64()) for name in files.ORDER_COLUMNS if name == "position" or counts[name]]
    rows = _read_rows(pipeline, run.part(part)) | _by("user_id") | beam.GroupByKey()
    histories = rows | beam.FlatMap(_history, newest, integer)
    histories | beam.io.WriteToParquet(  # one file: what is left fits one machine, which reads it
        run.histories.removesuffix(".parquet"),
        pa.schema(schema),
        file_name_suffix=".parquet",
        num_shards=1,
        shard_name_template="",
    )


def _rows_of(numbered: tuple[int, str]) -> Iterator[Any]:
    """The rows of a file, and on the output "about" what the file is like, or what is wrong with it."""
    number, path = numbered
    try:
        with _local(path) as local:
            table = files.read_interactions(local)
    except InputError as error:
        yield _about(path, error=str(error))
        return
    order = {name: None if column is None else column.tolist() for name, column in _order_of(table)}
    users, items = table.users.values.to_pylist(), table.items.values.to_pylist()
    yield _about(
        path,
        **{name: column is not None for name, column in order.items()},
        user_id=table.users.integers,
        item_id=table.items.integers,
    )
    for row, (user, item) in enumerate(zip(table.users.codes.tolist(), table.items.codes.tolist(), strict=True)):
        at = {name: None if column is None else column[row] for name, column in order.items()}
        yield {"user_id": users[user], "item_id": items[item], **at, "place": (number << _FILE_BITS) + row}


def _order_of(table: files.Interactions) -> Iterable[tuple[str, Any]]:
    return zip(files.ORDER_COLUMNS, (table.timestamps, table.positions), strict=True)


def _items_of(path: str) -> Iterator[Any]:
    """The ids of a file of items, as keys."""
    try:
        with _local(path) as local:
            ids = files.read_items(local).ids
    except InputError as error:
        yield _about(path, error=str(error))
        return
    for item in ids:
        yield str(item), None


def _known(joined: tuple[str, dict[str, Any]]) -> Iterator[Any]:
    """The rows of an item of the catalogue; of another, or of one that is there twice, a line on the output "about"."""
    item, found = joined
    listed = sum(1 for _ in found["items"])
    if listed == 1:
        yield from found["rows"]
        return
    count = first = 0
    for row in found["rows"]:
        first = min(first, row["place"]) if count else row["place"]
        count += 1
    _count("unknown", count)
    yield beam.pvalue.TaggedOutput("about", json.dumps({"item": item, "place": first, "listed": listed}))


def _at_least(counted: tuple[str, int], k: int) -> bool:
    return counted[1] >= k


def _kept(joined: tuple[str, dict[str, Any]]) -> Iterator[Row]:
    _, found = joined
    if any(True for _ in found["many"]):
        yield from found["rows"]
    else:
        _count("gone", sum(1 for _ in found["rows"]))


def _history(grouped: tuple[str, Iterable[Row]], newest: int, integer: dict[str, bool]) -> Iterator[Row]:
    """What is kept of a user's rows, oldest first, as they are written."""
    _, rows = grouped
    ordered = sorted(rows, key=lambda row: (row["timestamp"] or 0, row["position"] or 0, row["place"]))
    kept = ordered[-newest:] if newest else ordered
    _count("users")
    _count("written", len(kept))
    _count("older", len(ordered) - len(kept))
    for position, row in enumerate(kept):
        ids = {name: int(row[name]) if whole else row[name] for name, whole in integer.items()}
        time = {} if row["timestamp"] is None else {"timestamp": row["timestamp"]}
        yield {**ids, **time, "position": position}


def _by(column: str) -> Any:
    return beam.Map(lambda row: (row[column], row))


def _about(path: str, **found: Any) -> Any:
    line = json.dumps({"path": path, "error": None, **found})
    return beam.pvalue.TaggedOutput("about", line)


def _write_lines(lines: Any, name: str) -> None:
    lines | f"write {Path(name).name}" >> beam.io.WriteToText(name)


def _lines(name: str) -> Iterator[dict[str, Any]]:
    """What `_write_lines` wrote; nothing where it was not called."""
    for match in FileSystems.match([f"{name}-*"]):
        for file in match.metadata_list:
            with FileSystems.open(file.path) as stream:
                for line in stream.read().decode().splitlines():
                    yield json.loads(line)


def _write_rows(rows: Any, name: str) -> None:
    rows | beam.io.WriteToParquet(name, _ROW, file_name_suffix=".parquet")


def _read_rows(pipeline: Any, name: str) -> Any:
    return pipeline | beam.io.ReadFromParquet(f"{name}-*.parquet")


def _matching(patterns: Sequence[str], flag: str) -> list[str]:
    """The files that the patterns match, in the order of their names."""
    paths: set[str] = set()
    for pattern in patterns:
        found = [file.path for match in FileSystems.match([pattern]) for file in match.metadata_list]
        if not found:
            raise InputError(f"--{flag}={pattern}: no such file; patterns such as logs/part-*.tsv name several.")
        paths |= set(found)
    return sorted(paths)


def _refuse_output(output: str) -> None:
    if not output.endswith(".parquet"):
        raise InputError(f"--output={output}: what is written is Parquet; name it so, like reduced.parquet.")
    folder = FileSystems.split(output)[0]
    if folder and not FileSystems.exists(folder):
        raise InputError(f"--output={output}: there is no folder {folder}; make it first.")


@contextlib.contextmanager
def _local(path: str) -> Iterator[Path]:
    """A file of any file system as one of this machine; messages name the source."""
    if Path(path).is_file():
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        with FileSystems.open(path, compression_type="uncompressed") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        try:
            yield copy
        except InputError as error:
            raise InputError(str(error).replace(str(copy), path)) from error
