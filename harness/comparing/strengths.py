"""Bradley-Terry strengths of all checkpoints from a judge's verdicts, with and without style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from harness.alignment import AlignedRun
from harness.stats.bootstrap import FloatArray
from harness.stats.bradley_terry import bradley_terry
from harness.stats.judged import Judged, select
from harness.style import STYLE_NAMES, StyleCounts, count_style, style_differences
from harness.trust import answer_text
from harness.types import SuiteStrengths

Styles = Callable[[str, str, str], StyleCounts | None]
"""Style of an answer by suite, side and example; None where it is not there."""

FEWEST = 3
"""Sides below which strengths say no more than the one win rate."""


def strengths(run: AlignedRun, judges: Mapping[str, Judged]) -> Iterator[SuiteStrengths]:
    """Yield the strengths by each judge on each suite, where three sides or more are compared.

    Args:
        judges: verdicts by suite, of judges whose verdicts follow from no rule.
    """
    counts = _counts(run)
    for suite, judged in judges.items():
        for code, judge in enumerate(judged.judges):
            own = _narrowed(select(judged, judged.judge == code))
            if len(own.models) >= FEWEST:
                yield _strengths(run, suite, judge, own, counts)


def _strengths(
    run: AlignedRun, suite: str, judge: str, judged: Judged, counts: Styles
) -> SuiteStrengths:
    first = run.checkpoints[0]
    baseline = first if first in judged.models else None
    return SuiteStrengths(
        suite=suite,
        judge=judge,
        raw=bradley_terry(judged, baseline=baseline),
        styled=bradley_terry(
            judged,
            baseline=baseline,
            style=_style(run, suite, judged, counts),
            style_names=STYLE_NAMES,
        ),
    )


def _narrowed(judged: Judged) -> Judged:
    """Return the judgments with the names of those sides only that occur in them."""
    used = np.unique(np.concatenate([judged.candidate, judged.baseline]))
    return replace(
        judged,
        models=tuple(judged.models[code] for code in used),
        candidate=np.searchsorted(used, judged.candidate).astype(np.int32),
        baseline=np.searchsorted(used, judged.baseline).astype(np.int32),
    )


def _counts(run: AlignedRun) -> Styles:
    """Return the look-up of the style of answers; each is counted once."""
    text = answer_text(run)

    @cache
    def style(suite: str, side: str, example: str) -> StyleCounts | None:
        found = text(suite, side, example)
        return None if found is None else count_style(found)

    return style


def _style(run: AlignedRun, suite: str, judged: Judged, counts: Styles) -> FloatArray:
    """Return the style differences of the rows, (n, 4); NaN where an answer is not there."""
    examples = [run.examples[suite][item].id for item in judged.item]
    first, second = (
        [counts(suite, judged.models[code], e) for code, e in zip(side, examples, strict=True)]
        for side in (judged.candidate, judged.baseline)
    )
    differences = np.full((len(judged), len(STYLE_NAMES)), np.nan)
    known = [
        place for place, both in enumerate(zip(first, second, strict=True)) if None not in both
    ]
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    differences[known] = style_differences([a for a, _ in both], [b for _, b in both])
    return differences
