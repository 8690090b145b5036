"""A run's manifest, and what the comparison of its checkpoints found."""

from __future__ import annotations

from typing import Any, Literal

from harness.types.judging import SuiteJudge, SuitePanel
from harness.types.records import (
    Counts,
    Estimate,
    JudgeInfo,
    Loadable,
    MetricInfo,
    Record,
    Status,
    SuiteCard,
)
from harness.types.stability import (
    TrainingCard,
    TrainingStability,
)


class EngineCard(Record):
    """An engine of a run: which checkpoints it served, and what decides its answers.

    Attributes:
        identity: name, versions and settings.
        guarantees: when answers repeat, and when they need not, in words.
    """

    checkpoints: tuple[str, ...]
    identity: dict[str, Any]
    guarantees: tuple[str, ...] = ()


class RunManifest(Record):
    """What a run is, so that it can be repeated, and what state it is in.

    ``run_key`` hashes everything that decides the results: weight and template hashes, suite
    contents, sampling, seed, engine settings. A folder with another key belongs to another run.
    """

    schema_version: Literal[2] = 2
    run_key: str
    status: Status
    created: str
    seed: int
    checkpoints: tuple[Loadable, ...]
    suites: tuple[SuiteCard, ...]
    judges: tuple[JudgeInfo, ...]
    engines: tuple[EngineCard, ...]
    packages: dict[str, str]
    hardware: dict[str, Any]
    git_commit: str | None
    counts: dict[str, Counts]
    events: tuple[dict[str, Any], ...] = ()
    training: TrainingCard | None = None


class MetricResult(Record):
    """A metric of one checkpoint on one suite."""

    suite: str
    metric: MetricInfo
    primary: bool
    checkpoint: str
    estimate: Estimate


class MetricDifference(Record):
    """Candidate minus baseline on the prompts both have, paired by prompt."""

    suite: str
    metric: MetricInfo
    primary: bool
    candidate: str
    baseline: str
    estimate: Estimate


class WinRate(Record):
    """Pairwise verdicts of one judge: candidate against a checkpoint or the reference answers.

    Attributes:
        estimate: (wins + ties/2) / (wins + ties + losses).
        length_controlled: predicted win rate at equal length; None where it cannot be fitted.
        mean_length_difference: candidate minus baseline, characters.
        invalid: judgments without a verdict or absent; excluded from the estimates.
    """

    suite: str
    judge: str
    candidate: str
    baseline: str
    wins: int
    ties: int
    losses: int
    invalid: int
    estimate: Estimate
    length_controlled: Estimate | None
    mean_length_difference: float | None


class SampleAnswers(Record):
    """Answers of all checkpoints to one prompt, side by side."""

    suite: str
    example_id: str
    prompt: str
    reference: str | None
    answers: dict[str, str]


class Comparison(Record):
    """Everything a report shows, computed from a run folder alone.

    ``gaps`` names in words whatever is missing; a comparison with gaps is not complete.
    ``unknown`` names what nobody can know of a checkpoint in its form, such as an endpoint's
    entropy, where no primary metric is concerned. ``judge_quality`` and ``judge_agreement`` are of
    judges whose verdicts do not follow from a rule.
    """

    schema_version: Literal[2] = 2
    manifest: RunManifest
    gaps: tuple[str, ...]
    metrics: tuple[MetricResult, ...]
    differences: tuple[MetricDifference, ...]
    win_rates: tuple[WinRate, ...]
    samples: tuple[SampleAnswers, ...]
    resamples: int
    seed: int
    training: TrainingStability | None = None
    unknown: tuple[str, ...] = ()
    judge_quality: tuple[SuiteJudge, ...] = ()
    judge_agreement: tuple[SuitePanel, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every expected record is there."""
        return not self.gaps
