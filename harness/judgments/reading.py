"""Files of judgments -> their verdicts on pairs, the form of each told by its content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.adapters.recorded.forms import recognise, row_of
from harness.errors import InputError
from harness.judgments.alpaca_eval import ANNOTATIONS, ROWS
from harness.judgments.arena_hard import ARENA_HARD
from harness.judgments.forms import JudgmentForm, RowReader
from harness.judgments.mt_bench import MT_BENCH
from harness.judgments.own import OWN
from harness.judgments.summaries import SUMMARIES
from harness.judgments.verdicts import Judgments, Placed, collect
from harness.store import JUDGMENTS
from harness.tables import Table, read_table

FORMS = (OWN, ANNOTATIONS, ROWS, MT_BENCH, ARENA_HARD, SUMMARIES)
"""Known forms; the first that fits a file's first row is taken."""


class JudgmentFile(NamedTuple):
    """A file of judgments, read but not understood yet.

    Attributes:
        name: what the model on trial is to be called, in place of the file's own word.
    """

    table: Table
    name: str | None = None


def open_judgments(path: Path, name: str | None = None) -> JudgmentFile:
    """Read a file's rows: JSON, JSONL, CSV or Parquet, plain or gzip; or a run folder's judgments.

    Raises:
        InputError: the file cannot be read. DataError: it is broken, or holds no row.
    """
    return JudgmentFile(read_table(path / JUDGMENTS.file if path.is_dir() else path), name)


def read_judgments(files: Sequence[JudgmentFile]) -> Judgments:
    """Return the verdicts on pairs that files hold, in their order.

    Raises:
        InputError: a file is of no known form, or holds several models and is given one name.
        DataError: a row is broken (file and line are named), or a verdict occurs twice.
    """
    found: list[Placed] = []
    forms = []
    for file in files:
        form = recognise_form(file.table)
        forms.append(form.name)
        found += _renamed(file, list(_placed(file.table, form.reader(file.table))))
    return collect(found, forms)


def recognise_form(table: Table) -> JudgmentForm:
    """Return the form of a file's rows.

    Raises:
        InputError: none is known; columns and known forms are listed.
    """
    return recognise(table, FORMS, "judgments on pairs")


def _placed(table: Table, read: RowReader) -> Iterator[Placed]:
    for place, (line, row) in enumerate(table.rows):
        with row_of(table.path, line):
            found = list(read(row))
        yield from (Placed(table.path, line, place, verdict) for verdict in found)


def _renamed(file: JudgmentFile, found: list[Placed]) -> list[Placed]:
    if file.name is None:
        return found
    models = {placed.verdict.candidate for placed in found}
    if len(models) > 1:
        raise InputError(
            f"{file.table.path} judges {len(models)} models ({', '.join(sorted(models))}); they "
            f"cannot all be called '{file.name}'. Give the file without a name."
        )
    return [p._replace(verdict=p.verdict._replace(candidate=file.name)) for p in found]
