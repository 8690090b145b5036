"""From the records of a run to a :class:`Comparison`: everything that a report shows.

Reads records only. Each estimate draws from a generator of its own, seeded by what the estimate
is about, so that adding a suite, a metric or a checkpoint changes no other number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from harness.alignment import AlignedRun, Answer, Examples, Pair, align
from harness.stability import read_stability, training_gaps
from harness.stats.bootstrap import (
    Key,
    Weighted,
    cluster_mean,
    named_stream,
    paired_difference,
)
from harness.stats.estimates import mirrored
from harness.stats.judge_agreement import judge_agreement
from harness.stats.judge_quality import judge_quality
from harness.stats.judged import Judged
from harness.stats.proportion import wilson
from harness.stats.winrate import count_outcomes, length_controlled_win_rate, win_rate
from harness.trust import opinions
from harness.types import (
    SHARE,
    Comparison,
    Estimate,
    Example,
    Form,
    Generation,
    Judgment,
    MetricDifference,
    MetricInfo,
    MetricResult,
    Outcome,
    Role,
    RunManifest,
    SampleAnswers,
    Score,
    Status,
    SuiteJudge,
    SuitePanel,
    TrainingRow,
    WinRate,
)

ABSENT = "no score recorded"
NOT_GENERATED = "answer not generated"
UNEXPLAINED = "no reason given"


def compare(
    manifest: RunManifest,
    scores: Iterable[Score],
    judgments: Iterable[Judgment],
    generations: Iterable[Generation],
    examples: Examples,
    *,
    training: Sequence[TrainingRow] = (),
    seed: int = 0,
    resamples: int = 2000,
    samples_shown: int = 2,
) -> Comparison:
    """Return every estimate of a run with its interval, and what is missing in words.

    Args:
        examples: the examples of each suite that was run, by suite name.
        training: logged training steps, where the run has a training suite.
        seed: 0 or more; with ``resamples`` it fixes every interval.
        samples_shown: prompts of each subset whose answers are shown side by side.

    Raises:
        InputError: examples of a suite are not given, or are not those of the run.
        RunFolderError: a record names what the manifest does not know, comes from other weights,
            or occurs twice.
    """
    run = align(manifest, scores, judgments, generations, examples)
    resampling = _Resampling(seed, resamples)
    tables = list(_tables(run))
    judges = opinions(run)
    return Comparison(
        manifest=manifest,
        gaps=(*_gaps(run, tables), *training_gaps(manifest, training)),
        metrics=tuple(r for table in tables for r in _results(table, resampling)),
        differences=tuple(d for table in tables for d in _differences(table, resampling)),
        win_rates=tuple(_win_rates(run, resampling)),
        samples=tuple(_samples(run, samples_shown)),
        resamples=resamples,
        seed=seed,
        training=read_stability(manifest.training, training) if manifest.training else None,
        unknown=tuple(_unknown(run, tables)),
        judge_quality=tuple(
            SuiteJudge(suite=suite, quality=quality)
            for suite, judged in judges.items()
            for quality in judge_quality(judged)
        ),
        judge_agreement=tuple(_judge_agreement(judges, resampling)),
    )


@dataclass(frozen=True)
class _Resampling:
    """How intervals are drawn: one generator for each estimate, named by what it is about."""

    seed: int
    resamples: int

    def rng(self, *about: str) -> np.random.Generator:
        return named_stream(self.seed, *about)


# Metrics.


@dataclass(frozen=True)
class _Column:
    """A metric of one checkpoint: the values there are, and why others are not there."""

    values: Mapping[Key, Weighted]
    lacking: Mapping[Key, str]


@dataclass(frozen=True)
class _Table:
    """A metric of a suite for every checkpoint, in the manifest's order."""

    suite: str
    metric: MetricInfo
    primary: bool
    columns: Mapping[str, _Column]


def _tables(run: AlignedRun) -> Iterator[_Table]:
    for card in run.manifest.suites:
        asked = run.asked(card)
        for info in card.metrics:
            columns = _columns(run, card.name, info.key, asked)
            yield _Table(card.name, info, info.key in card.primary, columns)


def _columns(run: AlignedRun, suite: str, metric: str, asked: set[Answer]) -> dict[str, _Column]:
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


def _column(found: Mapping[Key, Score], expected: set[Key], unanswered: set[Answer]) -> _Column:
    """Return one column; an answer that is not there is missing even where its prompt has a value.

    A number about a whole prompt, such as Self-BLEU, may have been computed from fewer answers.
    """
    values = {k: Weighted(s.value, s.weight) for k, s in found.items() if s.value is not None}
    lacking: dict[Key, str] = {key: _reason(found.get(key)) for key in expected - values.keys()}
    for answer in unanswered:
        if (answer[0], None) not in lacking:
            lacking[answer] = NOT_GENERATED
    return _Column(values, lacking)


def _reason(score: Score | None) -> str:
    return ABSENT if score is None else score.reason or UNEXPLAINED


def _results(table: _Table, resampling: _Resampling) -> Iterator[MetricResult]:
    for checkpoint, column in table.columns.items():
        yield MetricResult(
            suite=table.suite,
            metric=table.metric,
            primary=table.primary,
            checkpoint=checkpoint,
            estimate=_with_width(
                _mean(column, resampling, table.suite, table.metric.key, checkpoint),
                table.metric,
            ),
        )


def _with_width(estimate: Estimate, metric: MetricInfo) -> Estimate:
    """Return Wilson's interval where a share is 0 or 1 on every prompt.

    A bootstrap cannot draw what it has not seen, and would claim to know such a share exactly.
    """
    if metric.unit != SHARE or estimate.value not in (0.0, 1.0):
        return estimate
    exact = wilson(estimate.value * estimate.clusters, estimate.clusters, level=estimate.level)
    return estimate.model_copy(
        update={"low": exact.low, "high": exact.high, "method": f"{exact.method} over prompts"}
    )


def _mean(column: _Column, resampling: _Resampling, *about: str) -> Estimate:
    ordered = sorted(column.values.items(), key=_place)
    return cluster_mean(
        [entry.value for _, entry in ordered],
        [key[0] for key, _ in ordered],
        weights=[entry.weight for _, entry in ordered],
        rng=resampling.rng("mean", *about),
        resamples=resampling.resamples,
        missing=len(column.lacking),
    )


def _place(item: tuple[Key, object]) -> tuple[str, int]:
    example, sample = item[0]
    return example, -1 if sample is None else sample


def _differences(table: _Table, resampling: _Resampling) -> Iterator[MetricDifference]:
    for baseline, candidate in combinations(table.columns, 2):
        about = (table.suite, table.metric.key, candidate, baseline)
        sides = table.columns[candidate], table.columns[baseline]
        yield MetricDifference(
            suite=table.suite,
            metric=table.metric,
            primary=table.primary,
            candidate=candidate,
            baseline=baseline,
            estimate=_difference(*sides, resampling, about),
        )


def _difference(
    candidate: _Column, baseline: _Column, resampling: _Resampling, about: tuple[str, ...]
) -> Estimate:
    """Return the paired difference; an observation that either side lacks is missing once.

    Prompts that only one side has are left to :func:`paired_difference`, which counts them.
    """
    one_sided = {key[0] for key in candidate.values} ^ {key[0] for key in baseline.values}
    lacking = candidate.lacking.keys() | baseline.lacking.keys()
    return paired_difference(
        dict(sorted(candidate.values.items(), key=_place)),
        dict(sorted(baseline.values.items(), key=_place)),
        rng=resampling.rng("difference", *about),
        resamples=resampling.resamples,
        missing=sum(key[0] not in one_sided for key in lacking),
    )


# Win rates.


def _win_rates(run: AlignedRun, resampling: _Resampling) -> Iterator[WinRate]:
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
    lengths: Sequence[int]
    clusters: Sequence[str]
    absent: int

    @classmethod
    def of(cls, run: AlignedRun, pair: Pair) -> _Verdicts:
        found = sorted(run.judgments[pair].values(), key=lambda verdict: verdict.example_id)
        clusters = [verdict.example_id for verdict in found]
        return cls(
            outcomes=[verdict.outcome for verdict in found],
            lengths=[verdict.length_difference for verdict in found],
            clusters=clusters,
            absent=len(set(run.judged_examples(pair)) - set(clusters)),
        )

    @property
    def mean_length_difference(self) -> float | None:
        """Mean over the verdicts that count, in characters."""
        columns = zip(self.outcomes, self.lengths, strict=True)
        counted = [length for outcome, length in columns if outcome != Outcome.INVALID]
        return sum(counted) / len(counted) if counted else None


def _win_rate(run: AlignedRun, pair: Pair, resampling: _Resampling) -> WinRate:
    verdicts = _Verdicts.of(run, pair)
    counts = count_outcomes(verdicts.outcomes)
    return WinRate(
        suite=pair.suite,
        judge=pair.judge,
        candidate=pair.candidate,
        baseline=pair.baseline,
        wins=counts.wins,
        ties=counts.ties,
        losses=counts.losses,
        invalid=counts.invalid + verdicts.absent,
        estimate=_raw(verdicts, pair, resampling),
        length_controlled=_length_controlled(verdicts, pair, resampling),
        mean_length_difference=verdicts.mean_length_difference,
    )


def _raw(verdicts: _Verdicts, pair: Pair, resampling: _Resampling) -> Estimate:
    return win_rate(
        verdicts.outcomes,
        verdicts.clusters,
        rng=resampling.rng("win rate", *pair),
        resamples=resampling.resamples,
        missing=verdicts.absent,
    )


def _length_controlled(verdicts: _Verdicts, pair: Pair, resampling: _Resampling) -> Estimate | None:
    return length_controlled_win_rate(
        verdicts.outcomes,
        verdicts.lengths,
        verdicts.clusters,
        rng=resampling.rng("length-controlled win rate", *pair),
        resamples=resampling.resamples,
        missing=verdicts.absent,
    )


def _judge_agreement(judges: Mapping[str, Judged], resampling: _Resampling) -> Iterator[SuitePanel]:
    for suite, judged in judges.items():
        rng = resampling.rng("judge agreement", suite)
        found = judge_agreement(judged, rng=rng, resamples=resampling.resamples)
        if found is not None:
            yield SuitePanel(suite=suite, agreement=found)


# What is missing.


def _gaps(run: AlignedRun, tables: Sequence[_Table]) -> Iterator[str]:
    if run.manifest.status != Status.COMPLETE:
        yield f"the run is '{run.manifest.status}', not complete"
    yield from _generation_gaps(run)
    if run.manifest.status == Status.COMPLETE:
        for table in tables:
            yield from _score_gaps(run, table)
    yield from _judgment_gaps(run)


def _generation_gaps(run: AlignedRun) -> Iterator[str]:
    for card in run.manifest.suites:
        asked = run.asked(card)
        for name in run.checkpoints:
            missing = len(asked - run.answers(card.name, name).keys())
            if missing:
                yield f"{card.name}, {name}: {missing} of {len(asked)} answers not generated"


def _score_gaps(run: AlignedRun, table: _Table) -> Iterator[str]:
    """Yield what a metric lacks, with the reasons; all of it if no checkpoint has any score."""
    if not any(column.values or column.lacking for column in table.columns.values()):
        yield f"{table.suite}, {table.metric.key}: no score for any checkpoint"
        return
    for name, column in table.columns.items():
        if column.lacking and not _out_of_reach(run, table, name):
            yield _lack(table, name)


def _lack(table: _Table, name: str) -> str:
    column = table.columns[name]
    total = len(column.values.keys() | column.lacking.keys())
    return (
        f"{table.suite}, {table.metric.key}, {name}: {len(column.lacking)} of {total} "
        f"values missing ({_counted(column.lacking.values())})"
    )


def _unknown(run: AlignedRun, tables: Sequence[_Table]) -> Iterator[str]:
    """Yield what the form of a checkpoint lets nobody know, with the reasons."""
    if run.manifest.status == Status.COMPLETE:
        for table in tables:
            yield from (_lack(table, n) for n in table.columns if _out_of_reach(run, table, n))


def _out_of_reach(run: AlignedRun, table: _Table, name: str) -> bool:
    """Whether a checkpoint has no value of a metric for what it is: an endpoint, or a file.

    A run is whole without it, except where the metric is primary: then the suite is about what
    cannot be had, and the values stay a gap.
    """
    column = table.columns[name]
    reasons = set(column.lacking.values()) - {NOT_GENERATED}
    stated = bool(reasons) and not reasons & {ABSENT, UNEXPLAINED}
    held = run.forms[name] is Form.WEIGHTS
    return stated and not (held or table.primary or column.values)


def _counted(reasons: Iterable[str]) -> str:
    """Return reasons with their counts, most frequent first."""
    ordered = sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} x {reason}" for reason, count in ordered)


def _judgment_gaps(run: AlignedRun) -> Iterator[str]:
    for pair in run.expected_pairs():
        expected = run.judged_examples(pair)
        reasons = list(_verdict_gaps(run.judgments.get(pair, {}), expected))
        if reasons:
            yield (
                f"{pair.suite}, judge {pair.judge}, {pair.candidate} against {pair.baseline}: "
                f"{len(reasons)} of {len(expected)} verdicts missing ({_counted(reasons)})"
            )


def _verdict_gaps(found: Mapping[str, Judgment], expected: Sequence[str]) -> Iterator[str]:
    for example in expected:
        verdict = found.get(example)
        if verdict is None:
            yield "not judged"
        elif verdict.outcome == Outcome.INVALID:
            yield f"invalid: {verdict.reason or 'no reason given'}"


# Answers side by side.


def _samples(run: AlignedRun, shown: int) -> Iterator[SampleAnswers]:
    for card in run.manifest.suites:
        for example in _first_of_each_subset(run.examples[card.name], shown):
            found = {name: run.answers(card.name, name) for name in run.checkpoints}
            yield SampleAnswers(
                suite=card.name,
                example_id=example.id,
                prompt=prompt_text(example),
                reference=example.reference,
                answers={
                    name: answers[example.id, 0].text
                    for name, answers in found.items()
                    if (example.id, 0) in answers
                },
            )


def _first_of_each_subset(examples: Sequence[Example], shown: int) -> Iterator[Example]:
    taken: Counter[str | None] = Counter()
    for example in examples:
        taken[example.subset] += 1
        if taken[example.subset] <= shown:
            yield example


def prompt_text(example: Example) -> str:
    """Return the prompt as plain text: the user's message, or all turns of a longer dialogue."""
    spoken = [m for m in example.messages if m.role != Role.SYSTEM]
    if len(spoken) == 1:
        return spoken[0].content
    return "\n".join(f"{m.role.capitalize()}: {m.content}" for m in example.messages)
