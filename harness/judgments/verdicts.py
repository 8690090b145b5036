"""Verdicts on pairs of answers: as a file has them, and as the columns that statistics read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError, unknown_name
from harness.stats.bootstrap import FloatArray
from harness.stats.judged import ORDER_UNKNOWN, Judged, Rows, coded
from harness.stats.judged import select as select_judged

UNKNOWN_ITEM = -1


class Verdict(NamedTuple):
    """One verdict of a file.

    Attributes:
        candidate, baseline: the two sides, in the file's words.
        prompt: the independent unit, which samples, turns and orders share.
        asked: what was asked, by its id or, where the file has none, by its text; of a dialogue's
            second question the id with ``/2`` behind it.
        preference: degree in [0, 1] to which the candidate is better; None without a verdict.
        order: as in :class:`harness.stats.judged.Judged`.
        lengths: characters of the candidate's and the baseline's answer.
        difference: candidate's length minus baseline's, where the lengths themselves are not known.
        strong: whether the judge called the better answer much better.
        item: place of the prompt in its benchmark; -1 where the file does not say.
        row: place of the judgment in its file as the file has it; None: as it lies.
    """

    candidate: str
    baseline: str
    judge: str
    prompt: str
    asked: str
    preference: float | None
    order: int = ORDER_UNKNOWN
    lengths: tuple[float, float] | None = None
    difference: float | None = None
    strong: bool = False
    item: int = UNKNOWN_ITEM
    row: int | None = None


class Placed(NamedTuple):
    """A verdict with the file, the line and the row from 0 that it stands on."""

    path: Path
    line: int
    row: int
    verdict: Verdict


@dataclass(frozen=True)
class Judgments:
    """Judgments of one or several files, one row each; all columns have shape (n,).

    Attributes:
        judged: what every statistic reads.
        length_difference: candidate minus baseline, characters; NaN where not known. It may be
            known where the lengths of ``judged`` are not.
        strong: whether the judge called the better answer much better.
        asked: ids or texts of the prompts, as the files have them.
        forms: names of the files' forms.
    """

    judged: Judged
    length_difference: FloatArray
    strong: NDArray[np.bool_]
    asked: NDArray[np.object_]
    forms: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.judged)


def collect(found: Sequence[Placed], forms: Sequence[str]) -> Judgments:
    """Return verdicts as columns, in their order.

    Raises:
        DataError: a judge's verdict on a pair of answers in one order stands there twice.
    """
    _refuse_doubles(found)
    verdicts = [placed.verdict for placed in found]
    models, sides = coded([v.candidate for v in verdicts] + [v.baseline for v in verdicts])
    candidate, baseline = np.split(sides, 2)
    judges, judge = coded([v.judge for v in verdicts])
    prompts, prompt = coded([v.prompt for v in verdicts])
    judged = Judged(
        models=models,
        judges=judges,
        prompts=prompts,
        candidate=candidate,
        baseline=baseline,
        judge=judge,
        prompt=prompt,
        preference=_floats(v.preference for v in verdicts),
        order=np.array([v.order for v in verdicts], dtype=np.int8),
        candidate_length=_floats(None if v.lengths is None else v.lengths[0] for v in verdicts),
        baseline_length=_floats(None if v.lengths is None else v.lengths[1] for v in verdicts),
        item=np.array([v.item for v in verdicts], dtype=np.int32),
        row=np.array([_row(placed) for placed in found], dtype=np.int32),
    )
    return Judgments(
        judged=judged,
        length_difference=_floats(map(_difference, verdicts)),
        strong=np.array([v.strong for v in verdicts], dtype=np.bool_),
        asked=np.array([v.asked for v in verdicts], dtype=np.object_),
        forms=tuple(dict.fromkeys(forms)),
    )


def _floats(values: Iterable[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _difference(verdict: Verdict) -> float | None:
    if verdict.lengths is None:
        return verdict.difference
    return verdict.lengths[0] - verdict.lengths[1]


def _row(placed: Placed) -> int:
    return placed.row if placed.verdict.row is None else placed.verdict.row


def _refuse_doubles(found: Iterable[Placed]) -> None:
    seen: set[tuple[str | int, ...]] = set()
    for placed in found:
        key = _identity(placed.verdict)
        if key in seen:
            raise DataError(placed.path, placed.line, _doubled(placed.verdict))
        seen.add(key)


def _identity(v: Verdict) -> tuple[str | int, ...]:
    """Return what no two verdicts share; a pair is the same seen from either side."""
    sides: tuple[str | int, ...] = (v.candidate, v.baseline, v.order)
    if v.candidate > v.baseline:
        sides = (v.baseline, v.candidate, -v.order)
    return (v.judge, v.prompt, v.asked, v.item, *sides)


def _doubled(v: Verdict) -> str:
    asked = v.asked if len(v.asked) <= 60 else f"{v.asked[:60]}..."
    return (
        f"a second verdict of '{v.judge}' on '{v.candidate}' against '{v.baseline}' for "
        f"{asked!r} in the same order. Leave one of them out."
    )


def select(judgments: Judgments, rows: Rows) -> Judgments:
    """Return rows of all columns, by a mask or by place; names keep their codes."""
    return replace(
        judgments,
        judged=select_judged(judgments.judged, rows),
        length_difference=judgments.length_difference[rows],
        strong=judgments.strong[rows],
        asked=judgments.asked[rows],
    )


def against(judgments: Judgments, baseline: str) -> Judgments:
    """Return the judgments of pairs with ``baseline``, seen from the other side.

    Raises:
        InputError: no judgment has it.
    """
    found = judgments.judged
    if baseline not in found.models:
        raise unknown_name("baseline", baseline, found.models)
    code = found.models.index(baseline)
    turned = found.candidate == code
    swapped = replace(
        found,
        candidate=np.where(turned, found.baseline, found.candidate),
        baseline=np.where(turned, found.candidate, found.baseline),
        preference=np.where(turned, 1 - found.preference, found.preference),
        order=np.where(turned, -found.order, found.order).astype(np.int8),
        candidate_length=np.where(turned, found.baseline_length, found.candidate_length),
        baseline_length=np.where(turned, found.candidate_length, found.baseline_length),
    )
    difference = judgments.length_difference
    whole = replace(
        judgments, judged=swapped, length_difference=np.where(turned, -difference, difference)
    )
    return select(whole, turned | (found.baseline == code))
