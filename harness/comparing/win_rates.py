"""Win rates of every judged pair: as judged, and at equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.alignment import AlignedRun, Pair
from harness.comparing.resampling import Resampling
from harness.stats.estimates import mirrored
from harness.stats.winrate import (
    count_outcomes,
    length_controlled_win_rate,
    mean_preference,
    win_rate,
    win_rate_tests,
)
from harness.types import Estimate, Outcome, WinRate


def win_rates(run: AlignedRun, resampling: Resampling) -> Iterator[WinRate]:
    """Yield the win rate of every judged pair, followed by the same pair seen from its baseline."""
    for pair in dict.fromkeys([*run.expected_pairs(), *sorted(run.judgments)]):
        if pair in run.judgments:
            found = _win_rate(run, pair, resampling)
            yield found
            yield mirrored(found)


@dataclass(frozen=True)
class _Verdicts:
    """Verdicts on one pair as parallel columns, in the order of the example ids."""

    outcomes: Sequence[Outcome]
    degrees: Sequence[float | None]
    lengths: Sequence[int]
    clusters: Sequence[str]
    absent: int

    @classmethod
    def of(cls, run: AlignedRun, pair: Pair) -> _Verdicts:
        found = sorted(run.judgments[pair].values(), key=lambda verdict: verdict.example_id)
        judged, units = [verdict.example_id for verdict in found], run.units[pair.suite]
        return cls(
            outcomes=[verdict.outcome for verdict in found],
            degrees=[verdict.preference for verdict in found],
            lengths=[verdict.length_difference for verdict in found],
            clusters=[units[example] for example in judged],
            absent=len(set(run.judged_examples(pair)) - set(judged)),
        )

    @property
    def mean_length_difference(self) -> float | None:
        """Mean over the verdicts that count, in characters."""
        columns = zip(self.outcomes, self.lengths, strict=True)
        counted = [length for outcome, length in columns if outcome != Outcome.INVALID]
        return sum(counted) / len(counted) if counted else None


def _win_rate(run: AlignedRun, pair: Pair, resampling: Resampling) -> WinRate:
    verdicts = _Verdicts.of(run, pair)
    counts = count_outcomes(verdicts.outcomes)
    raw = win_rate(verdicts.outcomes, verdicts.clusters, missing=verdicts.absent)
    return WinRate(
        suite=pair.suite,
        judge=pair.judge,
        candidate=pair.candidate,
        baseline=pair.baseline,
        wins=counts.wins,
        ties=counts.ties,
        losses=counts.losses,
        invalid=counts.invalid + verdicts.absent,
        estimate=raw.estimate,
        length_controlled=_length_controlled(verdicts, pair, resampling),
        mean_length_difference=verdicts.mean_length_difference,
        test=win_rate_tests(raw, verdicts.outcomes, verdicts.clusters),
        mean_preference=mean_preference(
            verdicts.outcomes, verdicts.degrees, verdicts.clusters, missing=verdicts.absent
        ),
    )


def _length_controlled(verdicts: _Verdicts, pair: Pair, resampling: Resampling) -> Estimate | None:
    return length_controlled_win_rate(
        verdicts.outcomes,
        verdicts.lengths,
        verdicts.clusters,
        rng=resampling.rng("length-controlled win rate", *pair),
        resamples=resampling.resamples,
        missing=verdicts.absent,
    )
