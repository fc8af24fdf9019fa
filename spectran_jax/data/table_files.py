"""Reads tables (TSV, CSV, JSONL, Parquet) in bulk with PyArrow, and finds the line to blame where that fails."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from spectran_jax.data import text_files
from spectran_jax.data.spelling import columns_found, listed
from spectran_jax.data.tables import Table
from spectran_jax.errors import InputError, first_line

_LONG_BLOCK = 2**28
"""Bytes that are read at once where a row is longer than Arrow's 1 MiB."""
_JSON_BLOCK = 2**24
"""Bytes of JSON that are read at once: a line must not be longer."""
_JSON_HEAD = 2**16
"""Bytes of JSON that tell the types of columns."""


def read_table(path: Path, *, required: Collection[str], wanted: Collection[str] | None = None) -> Table:
    """Reads a TSV, CSV, JSONL (also `.gz`) or Parquet file; delimited files give strings only.

    Args:
      path: the file; its suffix says what it is.
      required: columns that must be there.
      wanted: columns to read; None reads all.

    Raises:
      InputError: where the file is missing, empty, of unknown kind, lacks a required column, has a line with the
        wrong number of columns, or is not UTF-8.
    """
    text_files.require_file(path)
    suffix = text_files.content_suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path, required, wanted)
    if suffix in text_files.JSON_SUFFIXES:
        return _read_json_lines(path, required, wanted)
    if suffix not in text_files.DELIMITERS:
        if not suffix:
            right = "; name it .tsv, .csv, .jsonl or .parquet"
            if text_files.is_gzip(path):
                right = " before .gz; name it .tsv.gz, .csv.gz or .jsonl.gz"
            raise InputError(f"{path}: has no ending{right}.")
        known = ", ".join([*text_files.JSON_SUFFIXES, *text_files.DELIMITERS, ".parquet"])
        raise InputError(f"{path}: unknown kind of file {suffix!r}; use {known} (text also as .gz).")
    delimiter = text_files.DELIMITERS[suffix]
    names, _ = text_files.lines(path, delimiter)
    plain = {name: text_files.plain_name(name) for name in names}
    _require_columns(path, [text_files.plain_name(name) for name in names], required)
    chosen = [name for name in names if wanted is None or plain[name] in wanted]
    ids, quoted = pa.dictionary(pa.int32(), pa.string()), text_files.has_quotes(path, delimiter)
    how = dict(
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
        ),
        convert_options=pa_csv.ConvertOptions(
            include_columns=chosen,
            column_types={name: ids if plain[name].endswith("_id") else pa.string() for name in chosen},
            strings_can_be_null=False,
        ),
    )

    def read(**options: Any) -> pa.Table:
        with _stream(path) as stream:
            return pa_csv.read_csv(stream, **how, **options)

    try:
        try:
            table = read()
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            table = read(read_options=pa_csv.ReadOptions(block_size=_LONG_BLOCK))
    except (pa.ArrowInvalid, OSError) as error:
        _blame_line(path, delimiter, names, error)
    if not len(table):
        raise text_files.NoRows(f"{path}: has a header but no rows.")
    if quoted:
        _refuse_open_quotes(path, delimiter, len(table))
    columns = {plain[name]: column for name, column in zip(chosen, table.columns, strict=True)}
    return Table(path, columns, delimiter)


def _refuse_open_quotes(path: Path, delimiter: str, rows: int) -> None:
    """Refuses a quoted cell that only the end of the file closes: Arrow takes all lines up to there for it.

    Only where there are quotes, and not a line for each row, is the file gone through row by row, which takes longer.
    """
    lines, quotes, end = 0, False, b""
    with _stream(path) as stream:
        while block := stream.read(2**20):
            lines += block.count(b"\n")
            quotes = quotes or b'"' in block
            end = block[-1:]
    if quotes and rows + 1 != lines + (end != b"\n"):
        for _ in text_files.lines(path, delimiter)[1]:
            pass


def column_names(path: Path) -> list[str]:
    """The names of all columns of a table, without the `:type` suffix of RecBole's headers."""
    suffix = text_files.content_suffix(path)
    if suffix in text_files.JSON_SUFFIXES:
        return list(dict.fromkeys(name for _, record in text_files.json_objects(path) for name in record))
    delimiter = text_files.DELIMITERS.get(suffix)
    if delimiter is None:
        return list(pa_parquet.read_schema(path).names)
    return [text_files.plain_name(name) for name in text_files.lines(path, delimiter)[0]]


def _require_columns(path: Path, names: list[str], required: Collection[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        separated = text_files.separated_otherwise(names, path)
        found = columns_found([] if separated else missing, names, required)
        raise InputError(f"{path}: no column {' and no column '.join(missing)}; {found}{separated}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} occurs more than once; columns found: {listed(names)}.")


def _blame_line(path: Path, delimiter: str, names: list[str], error: Exception) -> NoReturn:
    """Raises the error for the first line that PyArrow can't have liked."""
    expected = len(names)
    _, rows = text_files.lines(path, delimiter)
    for number, row in rows:
        if len(row) != expected:
            many = "few" if len(row) < expected else "many"
            raise InputError(
                f"{path}, line {number}: too {many} columns, {len(row)} where the header has {expected}."
            ) from None
    raise InputError(f"{path}: can't be read ({first_line(error, 300)}).") from error


def _read_parquet(path: Path, required: Collection[str], wanted: Collection[str] | None) -> Table:
    try:
        file = pa_parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _require_columns(path, names, required)
        table = file.read(columns=[name for name in names if wanted is None or name in wanted])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: can't be read as Parquet ({first_line(error, 300)}).") from error
    if not len(table):
        raise text_files.NoRows(f"{path}: has columns but no rows.")
    _validate(path, table)
    columns = [c.cast(pa.string()) if pa.types.is_string_view(c.type) else c for c in table.columns]
    return Table(path, dict(zip(table.column_names, columns, strict=True)), None)


def _validate(path: Path, table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            told = first_line(error, 300)
            reason = "holds text that is not valid UTF-8" if "UTF8" in told else f"is damaged ({told})"
            raise InputError(f"{path}: column {name!r} {reason}.") from None


def _read_json_lines(path: Path, required: Collection[str], wanted: Collection[str] | None) -> Table:
    try:
        found = _types_at_the_head(path)
        if wanted is None or not {*required} <= {*found}:
            return _read_mixed_json_lines(path, required, wanted)
        for name in required:
            # Arrow takes long whole numbers for fractions, and strings like dates for times; strings these all are, or
            # it refuses them.
            if name.endswith("_id") and not pa.types.is_integer(found[name]):
                found[name] = pa.string()
        # It would take written times without a zone among others for UTC; `Table.times` refuses them, in every format.
        found = {name: pa.string() if pa.types.is_timestamp(kind) else kind for name, kind in found.items()}
        # Arrow makes a column of every key, as long as the file; so it is told which, and to pass over the others.
        schema = pa.schema([(name, found.get(name, pa.null())) for name in wanted])
        with _stream(path) as stream:
            table = pa_json.read_json(
                stream,
                pa_json.ReadOptions(block_size=_JSON_BLOCK),
                pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError):
        # A key with entries of several types, or that is first seen further down, if no line is to blame.
        return _read_mixed_json_lines(path, required, wanted)
    table = table.select([name for name in table.column_names if name in found])
    _validate(path, table)
    return Table(path, dict(zip(table.column_names, table.columns, strict=True)), None)


def _types_at_the_head(path: Path) -> dict[str, pa.DataType]:
    """The columns of the first lines of a JSON Lines file."""
    with _stream(path) as stream:
        head = stream.read(_JSON_HEAD)
    whole = head[: head.rfind(b"\n") + 1] or head
    schema = pa_json.read_json(pa.BufferReader(whole)).schema
    return dict(zip(schema.names, schema.types, strict=True))


def _read_mixed_json_lines(path: Path, required: Collection[str], wanted: Collection[str] | None) -> Table:
    """The same, slowly, line by line: a column whose entries are not of one type becomes one of strings."""
    names = column_names(path)
    if not names and next(text_files.json_objects(path), None) is None:
        raise text_files.NoRows(f"{path}: has no rows.")
    _require_columns(path, names, required)
    entries: dict[str, list[Any]] = {name: [] for name in names if wanted is None or name in wanted}
    for number, record in text_files.json_objects(path):
        for name, column in entries.items():
            if name.endswith("_id"):
                text_files.require_id(path, number, name, record.get(name))
            column.append(record.get(name))
    columns = {name: pa.chunked_array([_of_one_type(column)]) for name, column in entries.items()}
    return Table(path, columns, None)


def _of_one_type(column: list[Any]) -> pa.Array:
    try:
        return pa.array(column)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array(
            [None if entry is None else text_files.HALF_CHARACTER.sub("\ufffd", str(entry)) for entry in column]
        )


def _stream(path: Path) -> Any:
    """The content of a file, unpacked."""
    return pa.input_stream(path, compression="gzip" if text_files.is_gzip(path) else None)
