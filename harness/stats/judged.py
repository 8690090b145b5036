"""Pairwise judgments as parallel columns: what every win-rate statistic reads.

A million judgments fit in 60 MB; nothing here knows which file or judge they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.stats.bootstrap import FloatArray
from harness.types import Judgment, Outcome, Shown

Codes = NDArray[np.int32]

Rows = NDArray[np.bool_] | NDArray[np.intp]
"""Rows of columns: a mask, or places."""

CANDIDATE_FIRST = 1
BASELINE_FIRST = -1
ORDER_UNKNOWN = 0


@dataclass(frozen=True)
class Judged:
    """Judgments of pairs of answers, one row each; all columns have shape (n,).

    Attributes:
        models, judges, prompts: names, by code.
        candidate, baseline: codes in ``models`` of the two sides.
        judge: codes in ``judges``.
        prompt: codes in ``prompts``: the independent unit, shared by samples, turns and orders.
        preference: degree in [0, 1] to which the candidate's answer is better, 0.5 for a tie;
            NaN where there is no valid verdict.
        order: 1 where the candidate's answer was shown first, -1 where the baseline's was, 0
            where nobody knows.
        candidate_length, baseline_length: characters; NaN where not known.
        item: place of the prompt in its benchmark, the key of per-item covariates; -1 if unknown.
        row: place of the judgment in its file, from 0.
    """

    models: tuple[str, ...]
    judges: tuple[str, ...]
    prompts: tuple[str, ...]
    candidate: Codes
    baseline: Codes
    judge: Codes
    prompt: Codes
    preference: FloatArray
    order: NDArray[np.int8]
    candidate_length: FloatArray
    baseline_length: FloatArray
    item: Codes
    row: Codes

    def __len__(self) -> int:
        return len(self.preference)


Lengths = Callable[[Judgment], tuple[float, float] | None]
"""Characters of the candidate's and of the baseline's answer; None where they are not known."""

ORDERS = {Shown.CANDIDATE_FIRST: CANDIDATE_FIRST, Shown.BASELINE_FIRST: BASELINE_FIRST}


class _Row(NamedTuple):
    judgment: Judgment
    order: int
    preference: float | None


def _rows(judgments: Iterable[Judgment]) -> Iterator[_Row]:
    """Yield a row for each order; of a pair without a verdict, neither order has a preference."""
    for judgment in judgments:
        valid = judgment.outcome is not Outcome.INVALID
        for shown in judgment.orders:
            yield _Row(judgment, ORDERS[shown.shown], shown.preference if valid else None)
        if not judgment.orders:
            yield _Row(judgment, ORDER_UNKNOWN, judgment.preference)


def by_name(suite: str, example: str) -> str:
    """Return the name of an example among those of all suites."""
    return f"{suite}/{example}"


def by_example(judgment: Judgment) -> str:
    """Return the name of a judgment's independent unit where that is its example."""
    return by_name(judgment.suite, judgment.example_id)


def from_judgments(
    judgments: Iterable[Judgment],
    lengths: Lengths,
    unit: Callable[[Judgment], str] = by_example,
    item: Callable[[Judgment], int] | None = None,
) -> Judged:
    """Return the records of a run as columns: a row for each order that a pair was shown in.

    Args:
        unit: name of the independent unit of a judgment.
        item: place of a judgment's example in its suite; unknown if None.
    """
    rows = list(_rows(judgments))
    sizes = [lengths(row.judgment) or (np.nan, np.nan) for row in rows]
    models, sides = coded([n for r in rows for n in (r.judgment.candidate, r.judgment.baseline)])
    judges, judge = coded([row.judgment.judge for row in rows])
    prompts, prompt = coded([unit(row.judgment) for row in rows])
    return Judged(
        models=models,
        judges=judges,
        prompts=prompts,
        candidate=sides[0::2],
        baseline=sides[1::2],
        judge=judge,
        prompt=prompt,
        preference=np.array(
            [np.nan if row.preference is None else row.preference for row in rows], dtype=np.float64
        ),
        order=np.array([row.order for row in rows], dtype=np.int8),
        candidate_length=np.array([size[0] for size in sizes], dtype=np.float64),
        baseline_length=np.array([size[1] for size in sizes], dtype=np.float64),
        item=np.array([-1 if item is None else item(r.judgment) for r in rows], dtype=np.int32),
        row=np.arange(len(rows), dtype=np.int32),
    )


def select(judged: Judged, rows: Rows) -> Judged:
    """Return rows of all columns, by a mask or by place; names keep their codes."""
    columns = {field.name: getattr(judged, field.name) for field in fields(judged)}
    chosen: dict[str, Any] = {
        name: column[rows] for name, column in columns.items() if isinstance(column, np.ndarray)
    }
    return replace(judged, **chosen)


def coded(names: Sequence[str]) -> tuple[tuple[str, ...], Codes]:
    """Return the distinct names in the order they come in, and each one's code."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return tuple(codes), np.array([codes[name] for name in names], dtype=np.int32)
