"""What a form of data file is, to the code that reads the file: recorded answers, or judgments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from harness.adapters.recorded.answers import RecordedAnswer
from harness.errors import DataError, InputError
from harness.suites import validation_text
from harness.tables import Row, Table

T = TypeVar("T")

RowReader = Callable[[Row], Iterable[RecordedAnswer]]
"""A row -> its answers. ValueError or KeyError where the row is broken."""


@dataclass(frozen=True)
class FileForm(Generic[T]):
    """A form of file, whose rows hold records of type T.

    Attributes:
        name: as it stands in notes and errors.
        columns: what a row must hold, in words.
        fits: whether a row is of this form.
        reader: the file's rows -> what reads one of them; ValueError or KeyError where a row is
            broken.
    """

    name: str
    columns: str
    fits: Callable[[Row], bool]
    reader: Callable[[Table], Callable[[Row], Iterable[T]]]


RecordedForm = FileForm[RecordedAnswer]
"""A form of file that answers are recorded in."""


def recognise(table: Table, forms: Sequence[FileForm[T]], what: str) -> FileForm[T]:
    """Return the first form that fits a file's first row.

    Args:
        what: the forms hold, in words.

    Raises:
        InputError: none fits; columns and known forms are listed.
    """
    for form in forms:
        if form.fits(table.first):
            return form
    known = "; ".join(f"{form.name} ({form.columns})" for form in forms)
    raise InputError(
        f"{table.path}: no known form of {what} has the columns "
        f"{', '.join(map(str, table.first)) or '(none)'}. Known: {known}."
    )


@contextmanager
def row_of(path: Path, line: int) -> Iterator[None]:
    """Turn what a reader raises for a broken row into a DataError that names file and line."""
    try:
        yield
    except KeyError as error:
        raise DataError(path, line, f"field {error} is missing") from error
    except ValidationError as error:
        raise DataError(path, line, validation_text(error)) from error
    except ValueError as error:
        raise DataError(path, line, str(error)) from error
