"""What a form of recorded outputs is, to the code that reads the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.tables import Row, Table

RowReader = Callable[[Row], Iterable[RecordedAnswer]]
"""A row -> its answers. ValueError or KeyError where the row is broken."""


@dataclass(frozen=True)
class RecordedForm:
    """A form of file that answers are recorded in.

    Attributes:
        name: as it stands in notes and errors.
        columns: what a row must hold, in words.
        fits: whether a row is of this form.
        reader: the file's rows -> what reads one of them.
    """

    name: str
    columns: str
    fits: Callable[[Row], bool]
    reader: Callable[[Table], RowReader]
