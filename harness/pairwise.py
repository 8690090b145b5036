"""The models of a leaderboard against each other: the difference of every two rates, tested.

Two models are compared by one judge's verdicts against one baseline, on the prompts that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.errors import InputError
from harness.judgments.verdicts import Judgments, select
from harness.leaderboard import Settings, Standing, percent, repeated, strong_note, with_note
from harness.stats.bootstrap import FloatArray
from harness.stats.contrasts import Contrast, PromptTable, contrasts, prompt_table
from harness.stats.hypothesis import ROUNDING, Significance, holm, sign_test
from harness.types import Record


class Difference(Record):
    """How far one model's rate is above another's; rates in [0, 1].

    Attributes:
        contrast: the difference on the prompts that both have, with its t test.
        holm: p of the t test among all of the judge and the baseline.
        sign: whether more prompts have a higher mean for ``first`` than a lower one.
    """

    judge: str
    baseline: str
    contrast: Contrast
    holm: float | None
    sign: Significance

    def columns(self) -> dict[str, Any]:
        """Return the row as it is written: rates in percent."""
        tested = self.contrast.tested
        found = tested.estimate
        return {
            "first": self.contrast.first,
            "second": self.contrast.second,
            "baseline": self.baseline,
            "judge": self.judge,
            "difference": percent(found.value),
            "low": percent(found.low),
            "high": percent(found.high),
            "standard_error": percent(tested.standard_error),
            "p_value": tested.p_value,
            "holm": self.holm,
            "sign_p_value": self.sign.p_value,
            "n_prompts": found.clusters,
            "n_missing": found.missing,
            "level": found.level,
            "method": found.method,
        }


def differences(
    judgments: Judgments, standings: Sequence[Standing], settings: Settings
) -> tuple[Difference, ...]:
    """Return a row for every two models of each judge and baseline, in the leaderboard's order.

    A baseline that stands there as a model of its own is left aside: every other model's rate is
    its comparison with it.

    Raises:
        InputError: no two models share judge and baseline.
    """
    models: dict[tuple[str, str], list[str]] = {}
    for standing in standings:
        if standing.model != standing.baseline:
            models.setdefault((standing.judge, standing.baseline), []).append(standing.model)
    shared = {key: names for key, names in models.items() if len(names) > 1}
    if not shared:
        raise InputError(
            "no two models were judged by the same judge against the same baseline, so there is "
            "no difference between models. Give the judgments of several models."
        )
    return tuple(
        row
        for key, names in shared.items()
        for row in _differences(judgments, key, names, settings)
    )


def _differences(
    judgments: Judgments, key: tuple[str, str], names: Sequence[str], settings: Settings
) -> Iterator[Difference]:
    """Yield the rows of one judge and baseline."""
    judge, baseline = key
    part = _part(judgments, judge, baseline)
    table = _ordered(prompt_table(repeated(part, settings.strong_weight).judged, baseline), names)
    found = contrasts(table, level=settings.level)
    adjusted = holm({str(i): c.tested.p_value for i, c in enumerate(found)})
    note = strong_note(part, settings.strong_weight)
    for contrast, entry in zip(found, adjusted, strict=True):
        yield Difference(
            judge=judge,
            baseline=baseline,
            contrast=contrast.model_copy(update={"tested": with_note(contrast.tested, note)}),
            holm=entry.adjusted,
            sign=sign_test(_by_prompt(table, contrast)),
        )


def _part(judgments: Judgments, judge: str, baseline: str) -> Judgments:
    judged = judgments.judged
    own = judged.judge == judged.judges.index(judge)
    return select(judgments, own & (judged.baseline == judged.models.index(baseline)))


def _ordered(table: PromptTable, names: Sequence[str]) -> PromptTable:
    """Return the table with its candidates in the order of ``names``."""
    places = [table.names.index(name) for name in names]
    return PromptTable(
        names=tuple(names),
        sums=table.sums[:, places],
        counts=table.counts[:, places],
        missing=table.missing[:, places],
    )


def _by_prompt(table: PromptTable, contrast: Contrast) -> FloatArray:
    """Return the difference of means on each prompt that both have, rounding errors removed."""
    places = [table.names.index(name) for name in (contrast.first, contrast.second)]
    sums, counts = table.sums[:, places], table.counts[:, places]
    shared = (counts > 0).all(axis=1)
    means = sums[shared] / counts[shared]
    found = means[:, 0] - means[:, 1]
    return np.asarray(np.where(np.abs(found) <= ROUNDING, 0.0, found))
