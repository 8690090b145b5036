"""Rows of a data file with their line numbers: JSON, JSONL, CSV or Parquet, plain or gzip."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError, InputError
from harness.files import BYTE_ORDER_MARK, json_lines, read_bytes

PARQUET = b"PAR1"
LONGEST_CELL = 2**30
"""Characters; the csv module's own limit of 131,072 is less than a long answer has."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A file's rows by column name; each with the line it starts on, of Parquet the row's number.

    There is at least one row.
    """

    path: Path
    rows: tuple[tuple[int, Row], ...]

    @property
    def first(self) -> Row:
        """The first row, which says what the columns are."""
        return self.rows[0][1]


def read_table(path: Path) -> Table:
    """Read a file of rows; its form is told by its content, not by its name.

    Raises:
        InputError: the file cannot be read, or is none of the known forms.
        DataError: a row is broken, or there is none.
    """
    content = read_bytes(path)
    if content.startswith(PARQUET):
        rows = _parquet_rows(path, content)
    else:
        start = content.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
        read = {b"[": _list_rows, b"{": json_lines}.get(start, _csv_rows)
        if read is _csv_rows and start and _named_json(path):
            raise DataError(path, 1, f"not JSON: it starts with {_start(content)}")
        rows = read(path)
        if not rows and read is _csv_rows and start:
            problem = f"no JSON, and as CSV only a line of column names: {_start(content)}"
            raise DataError(path, 1, f"the file holds no row ({problem})")
    if not rows:
        raise DataError(path, None, "the file holds no row")
    return Table(path, tuple(rows))


def _named_json(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".json", ".jsonl"))


def _start(content: bytes) -> str:
    """Return the beginning of a file, to be recognised by."""
    return repr(content.lstrip()[:40].decode("utf-8", errors="replace"))


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, None, f"not valid UTF-8 at byte {error.start}") from error


def _list_rows(path: Path) -> list[tuple[int, Row]]:
    text = _text(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(path, error.lineno, f"not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, None, f"not usable JSON: {error}") from error
    rows = []
    for line, value in _items(text):
        if not isinstance(value, dict):
            raise DataError(path, line, f"expected an object, found {type(value).__name__}")
        rows.append((line, value))
    return rows


def _items(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a valid JSON list with the line that each starts on."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    place = _next_item(text, text.index("[") + 1)
    while text[place] != "]":
        line, counted = line + text.count("\n", counted, place), place
        value, end = decoder.raw_decode(text, place)
        yield line, value
        place = _next_item(text, end)


def _next_item(text: str, place: int) -> int:
    while text[place] in " \t\r\n,":
        place += 1
    return place


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_rows(path: Path) -> list[tuple[int, Row]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    with _long_cells():
        try:
            return _csv_cells(path, reader)
        except csv.Error as error:
            raise DataError(path, reader.line_num, f"not valid CSV: {error}") from error


def _csv_cells(path: Path, reader: Any) -> list[tuple[int, Row]]:
    header: list[str] = next(reader, [])
    if len(set(header)) < len(header):
        raise DataError(path, 1, f"a column is named twice: {', '.join(header)}")
    rows, line = [], reader.line_num + 1
    for cells in reader:
        if cells and len(cells) != len(header):
            raise DataError(path, line, f"{len(cells)} cells for {len(header)} columns")
        if cells:
            rows.append((line, dict(zip(header, cells, strict=True))))
        line = reader.line_num + 1
    return rows


def _parquet_rows(path: Path, content: bytes) -> list[tuple[int, Row]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error
    return list(enumerate(rows, start=1))
