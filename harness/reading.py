"""From a run folder to a comparison, and comparisons in words for a terminal."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path

from harness.compare import compare
from harness.files import write_atomic
from harness.gate import GateOutcome
from harness.report.contamination import report_warnings
from harness.report.stability import SeedCell, StabilityColumn, stability_columns, unit_text
from harness.report.text import NBSP
from harness.store import EXAMPLES, GENERATIONS, JUDGMENTS, SCORES, TRAINING, read_run
from harness.types import REFERENCE, Comparison, Estimate, Example, TrainingStability

log = logging.getLogger(__name__)

COMPARISON = "comparison.json"


def compare_run(path: Path) -> Comparison:
    """Return the comparison of a run folder, complete or not, and keep it as comparison.json.

    Raises:
        RunFolderError: there is no run at ``path``, or its records contradict its manifest.
        DataError: a record is not readable (file and line are named).
    """
    folder = read_run(path)
    examples: dict[str, list[Example]] = defaultdict(list)
    for row in folder.records(EXAMPLES):
        examples[row.suite].append(row.example)
    comparison = compare(
        folder.manifest,
        folder.records(SCORES),
        folder.records(JUDGMENTS),
        folder.records(GENERATIONS),
        examples,
        training=folder.records(TRAINING),
    )
    try:
        write_atomic(path / COMPARISON, comparison.model_dump_json(indent=1) + "\n")
    except OSError as error:
        log.warning("%s cannot be written: %s", path / COMPARISON, error)
    return comparison


def estimate_text(estimate: Estimate | None) -> str:
    """Return ``value [low, high]``, or why there is none."""
    if estimate is None or estimate.value is None:
        return "no data"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f} [no interval]"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def summary_text(comparison: Comparison) -> str:
    """Return primary metrics and win rates as plain text."""
    lines = [f"INCOMPLETE: {gap}" for gap in comparison.gaps]
    lines += [f"WARNING: {text}".replace(NBSP, " ") for text in report_warnings(comparison)]
    for result in comparison.metrics:
        if result.primary:
            name = f"{result.suite} {result.metric.key}"
            lines.append(f"{name:45} {result.checkpoint:16} {estimate_text(result.estimate)}")
    names = [c.spec.name for c in comparison.manifest.checkpoints]
    trusted = {
        judge.name: f"  (judge agrees with people {estimate_text(judge.agreement)})"
        for judge in comparison.manifest.judges
        if judge.agreement is not None
    }
    place = {name: i for i, name in enumerate([REFERENCE, *names])}
    for rate in comparison.win_rates:
        if place[rate.candidate] < place[rate.baseline]:
            continue  # the mirrored view of a rate that is printed
        name = f"{rate.suite} win rate ({rate.judge})"
        pair = f"{rate.candidate} vs {rate.baseline}"
        counts = f"{rate.wins}/{rate.ties}/{rate.losses} W/T/L"
        trust = trusted.get(rate.judge, "")
        lines.append(f"{name:45} {pair:24} {estimate_text(rate.estimate)}  {counts}{trust}")
    if comparison.training is not None:
        lines.append(stability_text(comparison.training))
    return "\n".join(lines)


def stability_text(training: TrainingStability) -> str:
    """Return training stability as plain text: each figure, one line a checkpoint."""
    columns = stability_columns(training, [c.checkpoint for c in training.checkpoints])
    lines = [training.title, *(f"  {c.found.checkpoint:16} {_runs_text(c)}" for c in columns)]
    for info in training.figures:
        lines.append(f"{info.title} {unit_text(info)}".rstrip())
        lines += [
            f"  {c.found.checkpoint:16} {_seeds_text(c.cells[info.key])}"
            for c in columns
            if c.cells
        ]
    for column in columns:
        lines += [f"{column.found.checkpoint}, {note}" for note in column.notes]
    return "\n".join(lines).replace(NBSP, " ")


def _runs_text(column: StabilityColumn) -> str:
    return column.why or f"{column.seeds} {column.steps}, {column.diverged} diverged"


def _seeds_text(cell: SeedCell) -> str:
    return f"{cell.value:>12}  {', '.join(filter(None, [cell.spread, cell.counts]))}"


def gate_text(outcome: GateOutcome) -> str:
    """Return the gate's decision, one line a rule."""
    lines = [f"{outcome.candidate} against {outcome.baseline}: {outcome.verdict.upper()}"]
    for row in outcome.rows:
        target = row.rule.metric or f"win rate by {row.rule.win_rate}"
        lines.append(
            f"  {row.verdict:12} {row.rule.suite}/{target}  {estimate_text(row.estimate)}  "
            f"margin {row.rule.margin:g}  {row.reason}"
        )
    return "\n".join(lines)
