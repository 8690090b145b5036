"""How far judges agree with each other on the same showings of the same pairs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np

from harness.stats.agreement import cohen_kappa, raw_agreement
from harness.stats.bootstrap import FloatArray
from harness.stats.judge_quality import Showings
from harness.stats.judged import Codes, Judged
from harness.stats.krippendorff import krippendorff_alpha
from harness.types import JudgeAgreement, JudgePair


def judge_agreement(
    judged: Judged, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> JudgeAgreement | None:
    """Return how far the judges agree on the same showings; None with fewer than two judges.

    A showing is a pair of answers in one order. Kappa and the raw agreement of two judges are over
    the showings that both judged; those that one of them lacks are counted missing.
    """
    names, verdicts, prompt = _verdicts(judged)
    if len(names) < 2:
        return None
    settings: dict[str, Any] = {"rng": rng, "resamples": resamples, "level": level}

    def pairs() -> Iterator[JudgePair]:
        for a, b in combinations(range(len(names)), 2):
            sides = verdicts[:, a], verdicts[:, b], prompt
            yield JudgePair(
                first=names[a],
                second=names[b],
                agreement=raw_agreement(*sides, level=level),
                kappa=cohen_kappa(*sides, **settings),
            )

    alpha = krippendorff_alpha(verdicts, prompt, **settings)
    return JudgeAgreement(alpha=alpha, pairs=tuple(pairs()))


def _verdicts(judged: Judged) -> tuple[tuple[str, ...], FloatArray, Codes]:
    """Return judges, their verdicts -1, 0 or 1 by showing (units, judges), and each one's prompt.

    Several rows of one showing, such as turns, are told apart by their place in the file; a judge
    that has fewer of them than another is left out of that showing.
    """
    seen = Showings.of(judged)
    present, judge = np.unique(judged.judge, return_inverse=True)
    showings, showing = np.unique(seen.comparison * 3 + seen.order + 1, return_inverse=True)
    cell = judge * len(showings) + showing
    counts = np.bincount(cell, minlength=len(present) * len(showings))
    most = counts.reshape(len(present), -1).max(axis=0)
    place = np.lexsort((judged.row, cell))
    rank = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    unit = (np.cumsum(most) - most)[showing[place]] + rank
    whole = (counts[cell] == most[showing])[place]
    verdicts = np.full((int(most.sum()), len(present)), np.nan)
    verdicts[unit[whole], judge[place][whole]] = np.sign(seen.preference - 0.5)[place][whole]
    prompt = np.repeat(showings // 3 % len(judged.prompts), most).astype(np.int32)
    return tuple(judged.judges[j] for j in present), verdicts, prompt
