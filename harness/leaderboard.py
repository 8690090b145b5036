"""Leaderboards: judgments on pairs -> one row a model, in AlpacaEval's columns, with intervals.

A row is about one candidate, one baseline and one judge. The prompts are what is independent:
turns, orders and samples of one prompt are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.judgments.covariates import Lookup, difficulties
from harness.judgments.verdicts import Judgments, select
from harness.stats.bootstrap import FloatArray, IntArray, named_stream
from harness.stats.clustered import MeanTest, clustered_share
from harness.types import Estimate, Record

if TYPE_CHECKING:
    from harness.stats.length_control import LengthControlled
    from harness.stats.length_model import Regulariser

STRONG_WEIGHT = 3
"""How often Arena-Hard counts a verdict that calls an answer much better."""

MODE = "community"
"""AlpacaEval's mode of an entry that its makers have not checked."""

NO_LENGTHS = "the files do not say how long the answers are"
NO_VERDICT = "there is no valid verdict"


class LengthControl(StrEnum):
    """Which form of the length-controlled win rate is computed."""

    ALPACA_EVAL = "alpaca-eval"
    PAPER = "paper"
    NONE = "none"


@dataclass(frozen=True)
class Settings:
    """How a leaderboard is computed.

    Attributes:
        difficulty: by item, the covariate of the length-controlled rate; None to do without.
        regulariser: extra rows that AlpacaEval's fit is held down by.
        strong_weight: how often a strong verdict counts in the mean, 1 or more.
        seed: fixes every interval; each row draws from a stream of its own.
    """

    length_control: LengthControl = LengthControl.PAPER
    difficulty: FloatArray | None = None
    regulariser: Regulariser | None = None
    lookup: Lookup = Lookup.INDEX
    strong_weight: int = STRONG_WEIGHT
    seed: int = 0
    resamples: int = 1000
    level: float = 0.95


class Standing(Record):
    """A model against one baseline by one judge; rates in [0, 1].

    Attributes:
        rate: mean degree to which the model's answer is better, ties at one half.
        standard_error: of ``rate``, robust to clusters by prompt; with one verdict a prompt it is
            AlpacaEval's sd / sqrt(n).
        wins, losses, draws: verdicts over, under and at one half.
        discrete_rate: wins and half the draws over all verdicts, strong ones counted once.
        mean_length: of all the model's answers, characters, those without verdict included.
        length_controlled: the win rate at equal length; None where ``lacking`` says why.
        controlled_error: AlpacaEval's own standard error of it, where its form is computed.
    """

    model: str
    baseline: str
    judge: str
    rate: Estimate
    standard_error: float | None
    wins: int
    losses: int
    draws: int
    discrete_rate: float | None
    mean_length: float | None
    length_controlled: Estimate | None
    controlled_error: float | None
    lacking: str | None

    def columns(self) -> dict[str, Any]:
        """Return the row as it is written: AlpacaEval's columns first, rates in percent."""
        controlled = self.length_controlled
        found = (None,) * 3 if controlled is None else _ends(controlled)
        return {
            "model": self.model,
            "win_rate": percent(self.rate.value),
            "standard_error": percent(self.standard_error),
            "n_wins": self.wins,
            "n_wins_base": self.losses,
            "n_draws": self.draws,
            "n_total": self.rate.n,
            "discrete_win_rate": percent(self.discrete_rate),
            "mode": MODE,
            "avg_length": None if self.mean_length is None else int(self.mean_length),
            "length_controlled_winrate": percent(found[0]),
            "lc_standard_error": percent(self.controlled_error),
            "win_rate_low": percent(self.rate.low),
            "win_rate_high": percent(self.rate.high),
            "lc_low": percent(found[1]),
            "lc_high": percent(found[2]),
            "level": self.rate.level,
            "n_prompts": self.rate.clusters,
            "n_missing": self.rate.missing,
            "baseline": self.baseline,
            "judge": self.judge,
            "method": self.rate.method,
            "lc_method": self.lacking if controlled is None else controlled.method,
        }


def _ends(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def percent(share: float | None) -> float | None:
    """Return a rate as leaderboards write it."""
    return None if share is None else 100 * share


def leaderboard(judgments: Judgments, settings: Settings) -> tuple[Standing, ...]:
    """Return one row for each model, baseline and judge; of one judge the best model first.

    Raises:
        InputError: a judgment's difficulty cannot be looked up.
    """
    found = [_standing(part, settings) for part in _parts(judgments)]
    return tuple(sorted(found, key=lambda s: (s.judge, s.baseline, -(s.rate.value or 0), s.model)))


def _parts(judgments: Judgments) -> Iterator[Judgments]:
    """Yield the judgments of each model, baseline and judge."""
    judged = judgments.judged
    keys = np.stack([judged.candidate, judged.baseline, judged.judge], axis=1)
    groups, place = np.unique(keys, axis=0, return_inverse=True)
    for group in range(len(groups)):
        yield select(judgments, place.reshape(-1) == group)


def _standing(part: Judgments, settings: Settings) -> Standing:
    judged = part.judged
    names = _names(part)
    valid = ~np.isnan(judged.preference)
    counted = select(part, valid)
    values = counted.judged.preference
    weights = np.where(counted.strong, settings.strong_weight, 1).astype(np.float64)
    controlled, lacking = _controlled(counted, settings, int((~valid).sum()), names)
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    total = len(values)
    rate = _rate(counted, weights, settings, len(part) - total)
    return Standing(
        model=names[0],
        baseline=names[1],
        judge=names[2],
        rate=rate.estimate,
        standard_error=rate.standard_error,
        wins=wins,
        losses=losses,
        draws=total - wins - losses,
        discrete_rate=(wins + (total - wins - losses) / 2) / total if total else None,
        mean_length=_mean_length(judged.candidate_length),
        length_controlled=None if controlled is None else controlled.estimate,
        controlled_error=None if controlled is None else controlled.standard_error,
        lacking=lacking,
    )


def _names(part: Judgments) -> tuple[str, str, str]:
    judged = part.judged
    return (
        judged.models[judged.candidate[0]],
        judged.models[judged.baseline[0]],
        judged.judges[judged.judge[0]],
    )


def _rate(counted: Judgments, weights: FloatArray, settings: Settings, missing: int) -> MeanTest:
    """Return the weighted mean preference with its error and interval."""
    found = clustered_share(
        counted.judged.preference,
        _clusters(counted),
        weights=weights,
        level=settings.level,
        missing=missing,
    )
    return with_note(found, strong_note(counted, settings.strong_weight))


def strong_note(part: Judgments, strong_weight: int) -> str:
    """Return what a method says of strong verdicts; nothing where none counts for more."""
    if strong_weight == 1 or not part.strong.any():
        return ""
    return f"; strong verdicts count {strong_weight} times"


def with_note(found: MeanTest, note: str) -> MeanTest:
    """Return a result whose method ends in a note."""
    noted = found.estimate.model_copy(update={"method": found.estimate.method + note})
    return found.model_copy(update={"estimate": noted})


def _clusters(counted: Judgments) -> IntArray:
    """Return codes that follow the prompts' names, so that the order of rows changes nothing."""
    names = np.array(counted.judged.prompts)
    ranks = np.empty(len(names), dtype=np.intp)
    ranks[np.argsort(names)] = np.arange(len(names))
    return np.asarray(ranks[counted.judged.prompt])


def _mean_length(lengths: FloatArray) -> float | None:
    known = lengths[~np.isnan(lengths)]
    return float(known.mean()) if len(known) == len(lengths) else None


# At equal length.


def _controlled(
    counted: Judgments, settings: Settings, missing: int, names: Sequence[str]
) -> tuple[LengthControlled | None, str | None]:
    """Return the length-controlled rate, or why there is none."""
    if settings.length_control is LengthControl.NONE:
        return None, "not asked for"
    if not len(counted):
        return None, NO_VERDICT
    known = ~np.isnan(counted.length_difference)
    if not known.any():
        return None, NO_LENGTHS
    part = repeated(select(counted, known), settings.strong_weight)
    found = _fitted(part, settings, missing + int((~known).sum()), names)
    if found is None:
        return None, NO_VERDICT
    notes = [f"without {name}" for name in unpublished(settings)]
    method = "; ".join([found.estimate.method, *notes])
    estimate = found.estimate.model_copy(update={"method": method})
    return found.model_copy(update={"estimate": estimate}), None


def unpublished(settings: Settings) -> tuple[str, ...]:
    """Return what AlpacaEval's published fit has and these settings of its form have not."""
    if settings.length_control is not LengthControl.ALPACA_EVAL:
        return ()
    parts = {"item difficulty": settings.difficulty, "regulariser": settings.regulariser}
    return tuple(name for name, part in parts.items() if part is None)


def repeated(part: Judgments, strong_weight: int) -> Judgments:
    """Return the judgments with each strong one as often as it counts; prompts stay whole."""
    rows = np.repeat(np.arange(len(part)), np.where(part.strong, strong_weight, 1))
    return part if len(rows) == len(part) else select(part, rows)


def _fitted(
    part: Judgments, settings: Settings, missing: int, names: Sequence[str]
) -> LengthControlled | None:
    from harness.stats.length_control import alpaca_eval_win_rate, paper_win_rate

    labels, longer = part.judged.preference, -part.length_difference
    rng = named_stream(settings.seed, "length-controlled win rate", *names)
    difficulty = settings.difficulty
    if difficulty is not None:
        difficulty = difficulties(part.judged, difficulty, settings.lookup, names[0])
    if settings.length_control is LengthControl.PAPER:
        fitted = paper_win_rate
    else:
        fitted = partial(alpaca_eval_win_rate, regulariser=settings.regulariser)
    return fitted(
        labels,
        longer,
        _clusters(part),
        rng=rng,
        difficulty=difficulty,
        resamples=settings.resamples,
        level=settings.level,
        missing=missing,
    )
