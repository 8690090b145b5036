"""What a form of judgment files is, to the code that reads the file; and cells they share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from harness.adapters.recorded.forms import FileForm
from harness.judgments.verdicts import Verdict
from harness.tables import Row

RowReader = Callable[[Row], Iterable[Verdict]]
"""A row -> its verdicts. ValueError or KeyError where the row is broken."""


JudgmentForm = FileForm[Verdict]
"""A form of file that verdicts on pairs are kept in."""


def has(*names: str) -> Callable[[Row], bool]:
    """Return the test whether a row has all these columns."""
    wanted = frozenset(names)
    return lambda row: wanted <= row.keys()


def number(value: Any, name: str) -> float | None:
    """Return a number, which a CSV file holds as text; None where the cell is empty or NaN."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"'{name}' must be a number, found {value!r}")
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"'{name}' must be a number, found {value!r}") from None
    return None if math.isnan(found) else found


def named(value: Any, name: str) -> str:
    """Return a cell that must hold a name."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' must be a name, found {value!r}")
    return value


def _shown(letter: str) -> str:
    before, after = (
        rf"[<\[]\|?The {edge} of Assistant {letter}'s Answer\|?[>\]]" for edge in ("Start", "End")
    )
    return rf"{before}\n(.*)\n{after}"


_BOTH = re.compile(rf"{_shown('A')}\s*{_shown('B')}", re.DOTALL)
_MARK = re.compile(r"The (?:Start|End) of Assistant [AB]'s Answer")


def shown_lengths(prompt: Any) -> tuple[int, int] | None:
    """Return the lengths, in characters, of the two answers that a judge was shown.

    They stand between marks in the prompts of MT-Bench's first turns and of Arena-Hard. None for
    any other prompt, and where an answer holds such a mark itself.
    """
    if not isinstance(prompt, str) or len(_MARK.findall(prompt)) != 4:
        return None
    found = _BOTH.search(prompt)
    return None if found is None else (len(found[1]), len(found[2]))
