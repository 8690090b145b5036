"""Style of an answer: its length and its Markdown, the covariates of style control.

Judges like long answers with headings, lists and bold type, whatever they say. A Bradley-Terry
model with the differences of these counts as covariates separates the two.

Source: Li, Angelopoulos and Chiang (2024), "Does style matter? Disentangling style and substance
in Chatbot Arena", lmsys.org/blog/2024-08-28-style-control.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

STYLE_NAMES = ("length", "headings", "lists", "bold")
"""Names of the columns of ``style_differences``."""

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_BOLD = re.compile(
    r"(?<!\\)\*\*(?=[^\s*])(?:(?!\n\s*\n).)+?(?<=\S)\*\*"
    r"|(?<![\w\\])__(?=[^\s_])(?:(?!\n\s*\n).)+?(?<=\S)__(?!\w)",
    re.DOTALL,
)


@dataclass(frozen=True)
class StyleCounts:
    """Style of one answer.

    Attributes:
        length: characters, of code too. headings: lines with 1 to 6 number signs.
        lists: list items, numbered or not, of any depth. bold: spans in bold type.
    """

    length: int
    headings: int
    lists: int
    bold: int


def count_style(text: str) -> StyleCounts:
    """Return the style counts of a Markdown text; marks inside code count as nothing."""
    lines = list(_outside_fences(text))
    prose = _CODE.sub("", "\n".join(lines))
    return StyleCounts(
        length=len(text),
        headings=sum(_HEADING.match(line) is not None for line in lines),
        lists=sum(_is_item(line) for line in lines),
        bold=len(_BOLD.findall(prose)),
    )


def style_differences(
    candidate: Sequence[StyleCounts], baseline: Sequence[StyleCounts]
) -> NDArray[np.float64]:
    """Return (n, 4) differences in the order of STYLE_NAMES, each (a - b) / (a + b).

    The normalised difference lies in [-1, 1]: twice as long means the same for short and for long
    answers. It is 0 where neither answer has any. Swapping the sides negates it.

    Raises:
        ValueError: sides of unequal length.
    """
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} candidate answers but {len(baseline)} of the baseline")
    a, b = (_matrix(side) for side in (candidate, baseline))
    return np.asarray((a - b) / np.maximum(a + b, 1.0))


def _matrix(side: Sequence[StyleCounts]) -> NDArray[np.float64]:
    counts = [astuple(one) for one in side]
    return np.array(counts, dtype=np.float64).reshape(len(side), len(STYLE_NAMES))


def _is_item(line: str) -> bool:
    return _ITEM.match(line) is not None and _RULE.match(line) is None


def _outside_fences(text: str) -> Iterator[str]:
    """Yield the lines outside fenced code; a fence that is never closed runs to the end.

    Source: CommonMark 0.31, section 4.5. A fence may stand indented inside a list item there; here
    it is found at any indentation that follows the item's marker.
    """
    fence: str | None = None
    for line in text.splitlines():
        if fence is None:
            found = _FENCE.match(line) or _FENCE.match(line.lstrip())
            fence = found.group(1) if found else None
            if found is None:
                yield line
        elif _closes(line, fence):
            fence = None


def _closes(line: str, fence: str) -> bool:
    mark = line.strip()
    return len(mark) >= len(fence) and set(mark) == {fence[0]}
