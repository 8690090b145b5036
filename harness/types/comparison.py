"""A run's manifest, and what the comparison of its checkpoints found."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.types.contamination import Contamination
from harness.types.judging import SuiteJudge, SuitePanel, SuiteStrengths
from harness.types.records import (
    Counts,
    Estimate,
    JudgeInfo,
    Loadable,
    MetricInfo,
    Record,
    Status,
    SuiteCard,
    blank,
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


PROMPTS_CUT = "prompts cut"
"""Event of a run: prompts of ``suite`` that lost their beginnings to ``max_model_len``."""


class RunManifest(Record):
    """What a run is, so that it can be repeated, and what state it is in.

    ``run_key`` hashes everything that decides the results: weight and template hashes, suite
    contents, sampling, seed, engine settings. A folder with another key belongs to another run.
    ``contamination`` says what the checkpoints' training data hold of the suites; it decides no
    result, and is empty where no checkpoint's training data are known.
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
    # Left out of a dump where nothing is known: other manifests keep their form.
    contamination: tuple[Contamination, ...] = Field(default=(), exclude_if=blank)


class DifferenceTest(Record):
    """Two-sided tests of no difference, with prompts as the independent units.

    Attributes:
        standard_error: cluster-robust, in the unit of the estimate; None with fewer than two
            prompts.
        p_value: of the test that ``method`` names; None without data.
        sign_p_value: of the exact sign test over prompts. Where every prompt has one outcome of
            two kinds on each side, that is McNemar's exact test.
    """

    standard_error: float | None
    p_value: float | None
    sign_p_value: float | None
    method: str


class Corrected(Record):
    """A p value within its family.

    Attributes:
        about: key of the metric, or name of the judge.
        adjusted: below a level where the difference is significant at that level although the
            whole family was tested (Holm 1979).
        family: number of p values that were adjusted together.
    """

    suite: str
    about: str
    candidate: str
    baseline: str
    p_value: float | None
    adjusted: float | None
    family: int


class MetricResult(Record):
    """A metric of one checkpoint on one suite."""

    suite: str
    metric: MetricInfo
    primary: bool
    checkpoint: str
    estimate: Estimate


class MetricDifference(Record):
    """Candidate minus baseline on the prompts both have, paired by prompt.

    Attributes:
        test: of no difference; None where the metric is not primary.
    """

    suite: str
    metric: MetricInfo
    primary: bool
    candidate: str
    baseline: str
    estimate: Estimate
    test: DifferenceTest | None = None


class WinRate(Record):
    """Pairwise verdicts of one judge: candidate against a checkpoint or the reference answers.

    Attributes:
        estimate: (wins + ties/2) / (wins + ties + losses).
        length_controlled: predicted win rate at equal length; None where it cannot be fitted.
        mean_length_difference: candidate minus baseline, characters.
        invalid: judgments without a verdict or absent; excluded from the estimates.
        test: of a win rate of one half.
        mean_preference: mean degree to which the judge prefers the candidate, AlpacaEval's win
            rate; None where the judge gives no degrees between win, tie and loss.
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
    test: DifferenceTest | None = None
    mean_preference: Estimate | None = None


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
    entropy, where no primary metric is concerned. ``judge_quality``, ``judge_agreement`` and
    ``strengths`` are of judges whose verdicts do not follow from a rule.
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
    strengths: tuple[SuiteStrengths, ...] = ()
    corrected_differences: tuple[Corrected, ...] = ()
    corrected_win_rates: tuple[Corrected, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every expected record is there."""
        return not self.gaps
