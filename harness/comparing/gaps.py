"""What a run lacks, and what nobody can know of a checkpoint in its form, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from harness.alignment import AlignedRun
from harness.comparing.columns import Table, out_of_reach
from harness.stats.bootstrap import Key
from harness.types import Judgment, Outcome, Status


def gaps(run: AlignedRun, tables: Sequence[Table]) -> Iterator[str]:
    """Yield whatever is missing, with the reasons."""
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


def _score_gaps(run: AlignedRun, table: Table) -> Iterator[str]:
    """Yield what a metric lacks, with the reasons; all of it if no checkpoint has any score."""
    if not any(column.values or column.lacking for column in table.columns.values()):
        yield f"{table.suite}, {table.metric.key}: no score for any checkpoint"
        return
    for name, column in table.columns.items():
        if column.missing and not out_of_reach(run, table, name):
            yield _lack(table, name, column.missing)


def _lack(table: Table, name: str, lacking: Mapping[Key, str]) -> str:
    column = table.columns[name]
    total = len(column.values.keys() | column.lacking.keys())
    return (
        f"{table.suite}, {table.metric.key}, {name}: {len(lacking)} of {total} "
        f"values missing ({_counted(lacking.values())})"
    )


def unknown(run: AlignedRun, tables: Sequence[Table]) -> Iterator[str]:
    """Yield what nobody can know of a checkpoint in its form, or of such answers, with reasons."""
    if run.manifest.status == Status.COMPLETE:
        for table in tables:
            for name, column in table.columns.items():
                if out_of_reach(run, table, name):
                    yield _lack(table, name, column.lacking)
                elif column.without:
                    yield _lack(table, name, column.without)


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
