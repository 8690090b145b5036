"""Many candidates on the same prompts: each one's rate, and the difference of every two.

Closed forms over a table of prompts and candidates; nothing here draws at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import InputError, unknown_name
from harness.stats.bootstrap import FloatArray, IntArray
from harness.stats.clustered import METHOD, SHARE, MeanTest, share_test, t_test, untested
from harness.stats.judged import Codes, Judged
from harness.types import Estimate, Record

Flags = NDArray[np.bool_]


class Contrast(Record):
    """How far ``first`` is above ``second`` on the prompts that both have."""

    first: str
    second: str
    tested: MeanTest


@dataclass(frozen=True)
class PromptTable:
    """Outcomes of K candidates on P prompts, summed over what a prompt has of each.

    Attributes:
        names: the candidates.
        sums: (P, K) sum of the outcomes, 0 where there is none.
        counts: (P, K) number of outcomes, or their weight.
        missing: (P, K) number of outcomes that should exist and do not.
    """

    names: tuple[str, ...]
    sums: FloatArray
    counts: FloatArray
    missing: IntArray

    @classmethod
    def of_values(cls, names: tuple[str, ...], values: FloatArray) -> PromptTable:
        """Return the table of one value for each prompt and candidate, (P, K), NaN where absent."""
        present = np.isfinite(values)
        filled = np.where(present, values, 0.0)
        return cls(names, filled, present.astype(np.float64), (~present).astype(np.intp))


def prompt_table(judged: Judged, baseline: str) -> PromptTable:
    """Return every other model's preferences over ``baseline``, by prompt.

    Rows that show the baseline as the candidate are turned round; rows of two other models are
    left aside. Judges, orders, turns and samples of a prompt are all outcomes of it.

    Raises:
        InputError: ``baseline`` is no model of the judgments, or meets no other model.
    """
    if baseline not in judged.models:
        raise unknown_name("model", baseline, judged.models)
    code = judged.models.index(baseline)
    turned = judged.candidate == code
    kept = turned != (judged.baseline == code)
    other = np.where(turned, judged.baseline, judged.candidate)[kept]
    worth = np.where(turned, 1 - judged.preference, judged.preference)[kept]
    if not len(other):
        raise InputError(f"no judgment compares '{baseline}' with another model")
    models, column = np.unique(other, return_inverse=True)
    names = tuple(judged.models[m] for m in models)
    return _tabulated(names, column, judged.prompt[kept], worth, len(judged.prompts))


def _tabulated(
    names: tuple[str, ...], column: IntArray, prompt: Codes, worth: FloatArray, prompts: int
) -> PromptTable:
    valid = np.isfinite(worth)
    shape = prompts, len(names)
    cell, cells = prompt.astype(np.int64) * shape[1] + column, shape[0] * shape[1]
    sums, counts = (
        np.bincount(cell[valid], weights, minlength=cells).astype(np.float64).reshape(shape)
        for weights in (worth[valid], None)
    )
    missing = np.bincount(cell[~valid], minlength=cells).reshape(shape)
    return PromptTable(names, sums, counts, missing)


def rates(table: PromptTable, *, null: float = 0.5, level: float = 0.95) -> dict[str, MeanTest]:
    """Return each candidate's mean outcome on all its prompts, with its test against ``null``.

    Outcomes are preferences in [0, 1]: intervals are those of :func:`clustered_share`.
    """
    return dict(zip(table.names, _rates(table, null, level), strict=True))


def _rates(table: PromptTable, null: float, level: float) -> Iterator[MeanTest]:
    for place in range(len(table.names)):
        present = table.counts[:, place] > 0
        sums = np.stack([table.sums[present, place], table.counts[present, place]], axis=1)
        result = Estimate(
            value=None,
            level=level,
            n=int(sums[:, 1].sum()),
            clusters=len(sums),
            missing=int(table.missing[:, place].sum()),
            method=SHARE,
        )
        yield share_test(result, sums, null)


def contrasts(table: PromptTable, *, level: float = 0.95) -> tuple[Contrast, ...]:
    """Return the difference of mean outcomes of every two candidates, K (K - 1) / 2 of them.

    Both means are over the prompts that both candidates have, weighted by each one's own number of
    outcomes. What makes a prompt hard for both cancels: the error is that of the difference.
    ``n`` counts the outcomes of the side that has fewer on those prompts; ``missing`` adds up what
    either side lacks on them, the prompts that only one side has, and those that both lack.
    """
    found = (c for place in range(len(table.names) - 1) for c in _against(table, place, level))
    order = {pair: i for i, pair in enumerate(combinations(table.names, 2))}
    return tuple(sorted(found, key=lambda c: order[c.first, c.second]))


def _against(table: PromptTable, place: int, level: float) -> Iterator[Contrast]:
    """Yield the contrasts of one candidate with all later ones, computed in one pass."""
    later = slice(place + 1, None)
    own = table.counts[:, place, None] > 0
    present = table.counts[:, later] > 0
    shared = own & present
    first = _left_out(table.sums[:, place, None], table.counts[:, place, None], shared)
    second = _left_out(table.sums[:, later], table.counts[:, later], shared)
    left_out = first.means - second.means
    missing = _missing(table.missing[:, place, None], table.missing[:, later], own, present)
    for k, name in enumerate(table.names[later]):
        rows = shared[:, k]
        result = Estimate(
            value=None,
            level=level,
            n=int(min(first.counts[k], second.counts[k])),
            clusters=int(rows.sum()),
            missing=int(missing[k]),
            method=f"paired, {METHOD}",
        )
        yield Contrast(
            first=table.names[place],
            second=name,
            tested=_difference(result, first.mean[k], second.mean[k], left_out[rows, k]),
        )


def _difference(result: Estimate, first: float, second: float, left_out: FloatArray) -> MeanTest:
    if not len(left_out):
        return untested(result, 0.0, 0)
    scale = max(abs(first), abs(second))
    return t_test(result, float(first - second), left_out, scale=float(scale))


def _missing(first: IntArray, second: IntArray, own: Flags, present: Flags) -> IntArray:
    """Return the missing observations of a difference, (B,): a prompt without one counts once."""
    lacking, shared = first + second, own & present
    absent = (own ^ present) | (~own & ~present & (lacking > 0))
    return np.asarray(np.where(shared, lacking, absent).sum(axis=0))


class _LeftOut(NamedTuple):
    """Of the shared prompts: means without each one (P, B), means (B,), outcomes (B,)."""

    means: FloatArray
    mean: FloatArray
    counts: FloatArray


def _left_out(sums: FloatArray, counts: FloatArray, shared: Flags) -> _LeftOut:
    totals, weights = (np.where(shared, part, 0.0).sum(axis=0) for part in (sums, counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _LeftOut((totals - sums) / (weights - counts), totals / weights, weights)
