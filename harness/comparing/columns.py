"""The scores of a run as columns: a metric of every checkpoint, with what is lacking and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from harness.alignment import AlignedRun, Answer
from harness.stats.bootstrap import Key, Weighted
from harness.types import Form, MetricInfo, Score

ABSENT = "no score recorded"
NOT_GENERATED = "answer not generated"
UNEXPLAINED = "no reason given"


@dataclass(frozen=True)
class Column:
    """A metric of one checkpoint: the values there are, and why others are not there.

    Attributes:
        undefined: those that are not there because the metric has no value for such an answer.
    """

    values: Mapping[Key, Weighted]
    lacking: Mapping[Key, str]
    undefined: frozenset[Key] = frozenset()

    @property
    def missing(self) -> dict[Key, str]:
        """The gaps: what could be there and is not."""
        return {key: why for key, why in self.lacking.items() if key not in self.undefined}

    @property
    def without(self) -> dict[Key, str]:
        """What has no value by the metric's own definition."""
        return {key: why for key, why in self.lacking.items() if key in self.undefined}


@dataclass(frozen=True)
class Table:
    """A metric of a suite for every checkpoint, in the manifest's order."""

    suite: str
    metric: MetricInfo
    primary: bool
    columns: Mapping[str, Column]
    units: Mapping[str, str]

    @cached_property
    def observations(self) -> Mapping[str, Mapping[Key, Weighted]]:
        """Each checkpoint's values by independent unit and a number within it, in order."""
        return {name: self._observed(column) for name, column in self.columns.items()}

    def _observed(self, column: Column) -> dict[Key, Weighted]:
        counted: Counter[str] = Counter()
        found: dict[Key, Weighted] = {}
        for key in sorted(column.values, key=_place):
            unit = self.units[key[0]]
            found[unit, counted[unit]] = column.values[key]
            counted[unit] += 1
        return found


def tables(run: AlignedRun) -> Iterator[Table]:
    """Yield every metric of every suite, in the manifest's order."""
    for card in run.manifest.suites:
        asked = run.asked(card)
        for info in card.metrics:
            columns = _columns(run, card.name, info.key, asked)
            primary = info.key in card.primary
            yield Table(card.name, info, primary, columns, run.units[card.name])


def _place(key: Key) -> tuple[str, int]:
    example, sample = key
    return example, -1 if sample is None else sample


def _columns(run: AlignedRun, suite: str, metric: str, asked: set[Answer]) -> dict[str, Column]:
    """Return the metric's column of each checkpoint.

    A metric may apply to a part of the examples. Where it applies is read from the scores of all
    checkpoints together, so that a score one of them lacks is seen to be missing.
    """
    found = {name: run.scores.get((suite, metric, name), {}) for name in run.checkpoints}
    expected = {key for scores in found.values() for key in scores}
    answered = {key for name in run.checkpoints for key in run.answers(suite, name)}
    concerned = {a for a in asked if a in expected or (a[0], None) in expected or a not in answered}
    return {
        name: _column(found[name], expected, concerned - run.answers(suite, name).keys())
        for name in run.checkpoints
    }


def _column(found: Mapping[Key, Score], expected: set[Key], unanswered: set[Answer]) -> Column:
    """Return one column; an answer that is not there is missing even where its prompt has a value.

    A number about a whole prompt, such as Self-BLEU, may have been computed from fewer answers.
    """
    values = {k: Weighted(s.value, s.weight) for k, s in found.items() if s.value is not None}
    lacking: dict[Key, str] = {key: _reason(found.get(key)) for key in expected - values.keys()}
    for answer in unanswered:
        if (answer[0], None) not in lacking:
            lacking[answer] = NOT_GENERATED
    undefined = frozenset(key for key, score in found.items() if score.undefined)
    return Column(values, lacking, undefined & lacking.keys())


def _reason(score: Score | None) -> str:
    return ABSENT if score is None else score.reason or UNEXPLAINED


def out_of_reach(run: AlignedRun, table: Table, name: str) -> bool:
    """Whether a checkpoint has no value of a metric for what it is: an endpoint, or a file.

    A run is whole without it, except where the metric is primary: then the suite is about what
    cannot be had, and the values stay a gap.
    """
    column = table.columns[name]
    reasons = set(column.missing.values()) - {NOT_GENERATED}
    stated = bool(reasons) and not reasons & {ABSENT, UNEXPLAINED}
    held = run.forms[name] is Form.WEIGHTS
    return stated and not (held or table.primary or column.values)
