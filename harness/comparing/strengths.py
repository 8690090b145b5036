"""Bradley-Terry strengths of all checkpoints from a judge's verdicts, with and without style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from harness.alignment import AlignedRun
from harness.stats.bootstrap import FloatArray
from harness.stats.bradley_terry import bradley_terry
from harness.stats.judged import Judged, select
from harness.style import STYLE_NAMES, StyleCounts, count_style, style_differences
from harness.trust import answer_text
from harness.types import SuiteStrengths

FEWEST = 3
"""Sides below which strengths say no more than the one win rate."""


def strengths(run: AlignedRun, judges: Mapping[str, Judged]) -> Iterator[SuiteStrengths]:
    """Yield the strengths by each judge on each suite, where three sides or more are compared.

    Args:
        judges: verdicts by suite, of judges whose verdicts follow from no rule.
    """
    for suite, judged in judges.items():
        for code, judge in enumerate(judged.judges):
            own = _narrowed(select(judged, judged.judge == code))
            if len(own.models) >= FEWEST:
                yield _strengths(run, suite, judge, own)


def _strengths(run: AlignedRun, suite: str, judge: str, judged: Judged) -> SuiteStrengths:
    first = run.checkpoints[0]
    baseline = first if first in judged.models else None
    return SuiteStrengths(
        suite=suite,
        judge=judge,
        raw=bradley_terry(judged, baseline=baseline),
        styled=bradley_terry(
            judged,
            baseline=baseline,
            style=_style(run, suite, judged),
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


def _style(run: AlignedRun, suite: str, judged: Judged) -> FloatArray:
    """Return the style differences of the rows, (n, 4); NaN where an answer is not there."""
    text, counted = answer_text(run), dict[tuple[str, str], StyleCounts | None]()
    examples = run.examples[suite]

    def style(side: int, item: int) -> StyleCounts | None:
        key = judged.models[side], examples[item].id
        if key not in counted:
            found = text(suite, *key)
            counted[key] = None if found is None else count_style(found)
        return counted[key]

    sides = zip(judged.candidate, judged.baseline, judged.item, strict=True)
    rows = [(style(a, item), style(b, item)) for a, b, item in sides]
    known = [place for place, row in enumerate(rows) if None not in row]
    differences = np.full((len(rows), len(STYLE_NAMES)), np.nan)
    both = [(a, b) for a, b in rows if a is not None and b is not None]
    differences[known] = style_differences([a for a, _ in both], [b for _, b in both])
    return differences
