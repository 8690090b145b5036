"""The release gate: is the candidate no worse than the baseline, by more than a margin?

Each rule is a test of non-inferiority on one paired interval. With delta the advantage of the
candidate, turned so that more is better, and [low, high] its interval:

    low > -margin    pass: any loss is smaller than the margin
    high < -margin   regression: the loss is larger than the margin
    otherwise        inconclusive: the prompts cannot tell

At level 0.95 a true loss as large as the margin passes in 2.5 to 5 % of runs, in the more of them
the fewer prompts tell the two apart, as a bootstrap cannot draw what it has not seen. Where no
prompt does, a share has an exact bound instead. The level holds for each rule: with many rules some
verdict is wrong more often. Missing data never pass: they make a rule inconclusive, and so does a
judge that is no better than chance.

Source: Piaggio et al. (2012), "Reporting of noninferiority and equivalence randomized trials:
extension of the CONSORT 2010 statement", JAMA 308, figure 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from harness.errors import InputError, unknown_name
from harness.files import packaged
from harness.stats.estimates import reflected
from harness.suites import known_suites, read_yaml, validation_text
from harness.types import (
    Comparison,
    Direction,
    Estimate,
    MetricInfo,
    Record,
    Status,
    SuiteCard,
)


class Verdict(StrEnum):
    """Outcome of a rule, and of the gate."""

    PASS = "pass"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"


class ExitCode(IntEnum):
    """Exit codes of the gate; 2 stays free for errors of usage."""

    PASS = 0
    REGRESSION = 1
    INCONCLUSIVE = 3


class GateRule(Record):
    """What must not get worse, and by how much it may.

    Attributes:
        metric: key of a metric of the suite.
        win_rate: name of a judge of the suite, in place of a metric.
        length_controlled: judge at equal length; only with ``win_rate``.
        margin: largest loss that is tolerated, absolute and in the metric's own unit; for a win
            rate, how far below one half it may lie.
    """

    suite: str
    metric: str | None = None
    win_rate: str | None = None
    length_controlled: bool = False
    margin: float = Field(ge=0.0)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.metric is None) == (self.win_rate is None):
            raise ValueError("a rule needs either 'metric' or 'win_rate'")
        if self.length_controlled and self.win_rate is None:
            raise ValueError("'length_controlled' goes with 'win_rate' only")
        return self


class GateFile(Record):
    """A file of gate rules."""

    rules: tuple[GateRule, ...] = Field(min_length=1)


class GateRow(Record):
    """One rule, decided.

    Attributes:
        title: the metric's or the judge's title.
        direction: which way the estimate is better.
        estimate: candidate minus baseline in the metric's unit; for a win rule, the candidate's
            win rate. None where nothing was estimated.
        reason: why the verdict is what it is, in words.
    """

    rule: GateRule
    title: str
    direction: Direction
    estimate: Estimate | None
    verdict: Verdict
    reason: str


class GateOutcome(Record):
    """The gate's decision on one candidate."""

    candidate: str
    baseline: str
    verdict: Verdict
    rows: tuple[GateRow, ...]

    @property
    def exit_code(self) -> ExitCode:
        """The process exit code that stands for the verdict."""
        return ExitCode[self.verdict.name]


def load_rules(path: Path | None = None) -> tuple[GateRule, ...]:
    """Return the rules of a YAML file; without ``path``, the packaged ones for the mini suites.

    Raises:
        InputError: the file is unreadable, or a rule has an unknown key, no target or two, or a
            margin below 0.
    """
    source = packaged("gate.yaml") if path is None else path
    try:
        return GateFile.model_validate(read_yaml(source)).rules
    except ValidationError as error:
        raise InputError(f"{source}: {validation_text(error)}") from error


def decide(
    comparison: Comparison, candidate: str, baseline: str, rules: Sequence[GateRule]
) -> GateOutcome:
    """Return the verdict of every rule and of all together.

    One regression makes the whole a regression; else one inconclusive rule leaves it open.

    Raises:
        InputError: unknown checkpoint, suite, metric or judge (the known ones are listed), a
            metric without a better direction, no rule, or a candidate that is its own baseline.
    """
    _check_sides(comparison, candidate, baseline)
    if not rules:
        raise InputError("the gate has no rules: a candidate cannot pass without one")
    rows = tuple(_row(comparison, candidate, baseline, rule) for rule in rules)
    return GateOutcome(
        candidate=candidate,
        baseline=baseline,
        verdict=_overall(row.verdict for row in rows),
        rows=rows,
    )


def _check_sides(comparison: Comparison, candidate: str, baseline: str) -> None:
    known = [loadable.spec.name for loadable in comparison.manifest.checkpoints]
    for name in (candidate, baseline):
        if name not in known:
            raise unknown_name("checkpoint", name, known)
    if candidate == baseline:
        raise InputError(f"candidate and baseline are both '{candidate}': name two checkpoints")


def _overall(verdicts: Iterable[Verdict]) -> Verdict:
    found = set(verdicts)
    for verdict in (Verdict.REGRESSION, Verdict.INCONCLUSIVE):
        if verdict in found:
            return verdict
    return Verdict.PASS


def _row(comparison: Comparison, candidate: str, baseline: str, rule: GateRule) -> GateRow:
    title, direction = _target(comparison, rule)
    estimate = _estimate(comparison, candidate, baseline, rule)
    verdict, reason = _verdict(comparison, rule, direction, estimate)
    return GateRow(
        rule=rule,
        title=title,
        direction=direction,
        estimate=estimate,
        verdict=verdict,
        reason=reason,
    )


def _card(comparison: Comparison, rule: GateRule) -> SuiteCard | None:
    """Return the rule's suite; None for a suite that exists but is not part of the run."""
    cards = {card.name: card for card in comparison.manifest.suites}
    if rule.suite not in cards.keys() | known_suites().keys():
        raise unknown_name("suite", rule.suite, cards.keys() | known_suites().keys())
    return cards.get(rule.suite)


def _target(comparison: Comparison, rule: GateRule) -> tuple[str, Direction]:
    """Return title and direction of what the rule is about; refuse what cannot be gated."""
    card = _card(comparison, rule)
    if rule.metric is not None:
        return _metric_target(card, rule.metric)
    if card is not None and rule.win_rate not in card.judges:
        raise unknown_name(f"judge of suite '{card.name}'", str(rule.win_rate), card.judges)
    at = " at equal length" if rule.length_controlled else ""
    return f"Win rate by {rule.win_rate}{at}", Direction.HIGHER


def _metric_target(card: SuiteCard | None, key: str) -> tuple[str, Direction]:
    if card is None:
        return key, Direction.NEITHER
    infos = {info.key: info for info in card.metrics}
    if key not in infos:
        raise unknown_name(f"metric of suite '{card.name}'", key, infos)
    return infos[key].title, _gated_direction(infos[key])


def _gated_direction(info: MetricInfo) -> Direction:
    if info.direction == Direction.NEITHER:
        raise InputError(
            f"metric '{info.key}' has no better direction, so that it cannot be gated. Gate a "
            "metric that is better when higher or lower."
        )
    return info.direction


def _estimate(
    comparison: Comparison, candidate: str, baseline: str, rule: GateRule
) -> Estimate | None:
    if rule.win_rate is not None:
        return _win_estimate(comparison, candidate, baseline, rule)
    for found in comparison.differences:
        if (found.suite, found.metric.key) == (rule.suite, rule.metric):
            if (found.candidate, found.baseline) == (candidate, baseline):
                return found.estimate
            if (found.candidate, found.baseline) == (baseline, candidate):
                return reflected(found.estimate, 0.0)
    return None


def _win_estimate(
    comparison: Comparison, candidate: str, baseline: str, rule: GateRule
) -> Estimate | None:
    wanted = (rule.suite, rule.win_rate, candidate, baseline)
    for found in comparison.win_rates:
        if (found.suite, found.judge, found.candidate, found.baseline) == wanted:
            return found.length_controlled if rule.length_controlled else found.estimate
    return None


def _verdict(
    comparison: Comparison, rule: GateRule, direction: Direction, estimate: Estimate | None
) -> tuple[Verdict, str]:
    interval = _chance(comparison, rule) or _interval(comparison, rule, estimate)
    if isinstance(interval, str):
        return Verdict.INCONCLUSIVE, interval
    low, high = _advantage(interval, rule, direction)
    return _against_margin(low, high, rule.margin)


def _chance(comparison: Comparison, rule: GateRule) -> str | None:
    """Return why a judge's verdicts decide nothing, where they are no better than chance."""
    for judge in comparison.manifest.judges:
        if judge.name == rule.win_rate and judge.no_better_than_chance:
            return f"judge '{judge.name}' is no better than chance at agreeing with people"
    return None


def _interval(
    comparison: Comparison, rule: GateRule, estimate: Estimate | None
) -> tuple[float, float] | str:
    """Return the interval to decide on, or in words what is missing for a decision."""
    if comparison.manifest.status != Status.COMPLETE:
        return f"the run is '{comparison.manifest.status}', not complete"
    if rule.suite not in {card.name for card in comparison.manifest.suites}:
        return f"suite '{rule.suite}' is not part of this run"
    if estimate is None or estimate.value is None:
        return "the run has no value that the two checkpoints share"
    if estimate.missing:
        return f"{estimate.missing} of the values behind it are missing"
    if estimate.low is None or estimate.high is None:
        return "one prompt gives no interval"
    if estimate.low == estimate.high:
        return "the interval has no width: no prompt tells the two apart"
    return estimate.low, estimate.high


def _advantage(
    interval: tuple[float, float], rule: GateRule, direction: Direction
) -> tuple[float, float]:
    """Return the interval of the candidate's advantage: 0 is equal, above 0 is better."""
    low, high = interval
    if rule.win_rate is not None:
        return low - 0.5, high - 0.5
    return (0.0 - high, 0.0 - low) if direction == Direction.LOWER else (low, high)


def _against_margin(low: float, high: float, margin: float) -> tuple[Verdict, str]:
    bound = 0.0 - margin
    between = f"the advantage lies between {low:+.3g} and {high:+.3g}"
    if low > bound:
        return Verdict.PASS, f"{between}, above {bound:+.3g}"
    if high < bound:
        return Verdict.REGRESSION, f"{between}, below {bound:+.3g}"
    return Verdict.INCONCLUSIVE, f"{between}, which {bound:+.3g} is part of"
