"""Training stability laid out: a column a checkpoint, a row a figure, and notes in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.report.palette import Style
from harness.report.text import MINUS, NBSP, NO_DATA, clean, counted, joined, number, short_names
from harness.stability import CHOSEN, FINAL_KL, GRADIENT, KL, LOSS, seed_text
from harness.stats.stability import POINTS
from harness.types import (
    SHARE,
    CheckpointStability,
    Comparison,
    MetricInfo,
    SeedCurve,
    SeedSummary,
    TrainingStability,
)

STEM = "training-stability"

PANELS = (
    (LOSS, "Loss"),
    (GRADIENT, "Gradient norm (log scale)"),
    (KL, "KL(ref||policy), nats a token"),
    (CHOSEN, "Chosen log-ratio, nats an answer"),
)
"""Logged quantities in the order of the figure's columns, with their headings."""


@dataclass(frozen=True)
class SeedCell:
    """One figure of one checkpoint: median, then range, then deviation and number of seeds."""

    checkpoint: str
    summary: SeedSummary
    unit: str

    @property
    def value(self) -> str:
        """Median over the seeds."""
        return figure_text(self.summary.median, self.unit)

    @property
    def spread(self) -> str:
        """Range over the seeds; empty where there is none."""
        low, high = self.summary.lowest, self.summary.highest
        if low is None or high is None:
            return ""
        if low == high:
            return "all equal".replace(" ", NBSP)
        return f"{plain(low, self.unit)} to {plain(high, self.unit)}".replace(" ", NBSP)

    @property
    def counts(self) -> str:
        """Standard deviation and seeds, or why there is none."""
        found = self.summary
        if found.median is None:
            return clean(found.reason or "not computed")
        of = f" of {found.n + found.missing}" if found.missing else ""
        if found.sd is None:
            return f"{found.n}{of} {'seeds' if of else 'seed'}, no spread"
        deviation = plain(found.sd, self.unit, digits=2)
        return f"sd {deviation}, n = {found.n}{of}".replace(" ", NBSP)

    @property
    def gap(self) -> bool:
        """Whether a seed has no value."""
        return self.summary.missing > 0

    @property
    def data(self) -> dict[str, str]:
        """HTML data attributes, every number with every digit; absent ones are empty."""
        found = self.summary
        numbers = {
            "median": found.median,
            "lowest": found.lowest,
            "highest": found.highest,
            "sd": found.sd,
        }
        texts = {key: "" if value is None else repr(value) for key, value in numbers.items()}
        about = {"figure": found.figure, "checkpoint": self.checkpoint}
        return about | texts | {"seeds": str(found.n), "missing": str(found.missing)}


@dataclass(frozen=True)
class StabilityColumn:
    """A checkpoint in the table: its place in the run, and a cell for each figure by key."""

    place: int
    found: CheckpointStability
    cells: Mapping[str, SeedCell]

    @property
    def why(self) -> str:
        """Why there is nothing to show; empty where there is."""
        return f"no training log: {clean(self.found.reason)}" if self.found.reason else ""

    @property
    def seeds(self) -> str:
        """Number of training runs."""
        return counted(len(self.found.last_steps), "seed")

    @property
    def steps(self) -> str:
        """How far the logs reach."""
        low, high = min(self.found.last_steps), max(self.found.last_steps)
        return f"to step {high}" if low == high else f"to steps {low} to {high}"

    @property
    def diverged(self) -> str:
        """Diverged runs of all runs."""
        return f"{len(self.found.divergences)} of {len(self.found.last_steps)}"

    @property
    def notes(self) -> list[str]:
        """What broke, and what is missing or short, in words."""
        broken = [
            f"{seed_text(d.seed)}: diverged at step {d.step}: {d.reason}"
            for d in self.found.divergences
        ]
        return [clean(note) for note in (*broken, *self.found.notes)]


@dataclass(frozen=True)
class Trace:
    """A checkpoint in the figure: its label, style, curves, and where its runs broke."""

    label: str
    seeds: str
    style: Style
    curves: Mapping[str, SeedCurve]
    broken: tuple[int, ...]


@dataclass(frozen=True)
class StabilityBlock:
    """Everything a report says about training stability."""

    training: TrainingStability
    columns: tuple[StabilityColumn, ...]
    traces: tuple[Trace, ...]
    lead: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Heading of the section."""
        return clean(self.training.title)

    @property
    def alt(self) -> str:
        """What the figure shows, for those who cannot see it."""
        kl = [f"{c.found.checkpoint} {c.cells[FINAL_KL].value}" for c in self.columns if c.cells]
        return (
            "Training curves, a row for each checkpoint: loss, gradient norm, KL to the reference "
            f"and chosen log-ratio over the steps. KL at the end, nats a token: {'; '.join(kl)}."
        )

    @property
    def caption(self) -> str:
        """What is drawn."""
        return (
            "Each row is a checkpoint. Line: median over its seeds; band: lowest to highest seed, "
            "where there is more than one; thin grey lines: the medians of the other checkpoints. "
            "The rows of a column share one scale, except for the loss, whose scale is the "
            f"objective's own. Logs of more than {POINTS} steps are drawn in groups, whose band "
            "spans their steps as well. A cross marks where a run diverged."
        )


def plain(value: float, unit: str, *, digits: int = 3) -> str:
    """Return a number with some significant digits; a share in percent, to one place, unsigned."""
    if unit == SHARE:
        return number(100 * value, 1)
    size = abs(value)
    if size >= 1000:
        return number(value, 0) if size < 1e6 else f"{value:.2e}".replace("-", MINUS)
    small = 0 < size < 1e-3
    text = f"{value:.1e}" if small else f"{value + 0.0:#.{digits}g}".removesuffix(".")
    return text.replace("-", MINUS)


def figure_text(value: float | None, unit: str) -> str:
    """Return a figure's value as a reader sees it."""
    if value is None:
        return NO_DATA
    return f"{plain(value, unit)}{NBSP}%" if unit == SHARE else plain(value, unit)


def unit_text(info: MetricInfo) -> str:
    """Return the unit in brackets; nothing for shares, whose sign stands in the cells."""
    return "" if info.unit == SHARE else f"({info.unit})"


def stability_block(comparison: Comparison, style: Mapping[str, Style]) -> StabilityBlock | None:
    """Return the section's content; None where the run has no training suite."""
    training = comparison.training
    if training is None:
        return None
    names = [c.spec.name for c in comparison.manifest.checkpoints]
    columns = stability_columns(training, names)
    labels = short_names(names, 16)
    traces = tuple(_trace(column, labels, style) for column in columns if column.found.curves)
    return StabilityBlock(training, columns, traces, _lead(columns), tuple(_notes(columns)))


def stability_columns(
    training: TrainingStability, names: Sequence[str]
) -> tuple[StabilityColumn, ...]:
    """Return a column for each checkpoint; ``names`` are those of the run, in its order."""
    return tuple(
        StabilityColumn(names.index(found.checkpoint), found, _cells(training, found))
        for found in training.checkpoints
    )


def _cells(training: TrainingStability, found: CheckpointStability) -> dict[str, SeedCell]:
    units = {info.key: info.unit for info in training.figures}
    return {s.figure: SeedCell(found.checkpoint, s, units[s.figure]) for s in found.summaries}


def _trace(column: StabilityColumn, labels: Mapping[str, str], style: Mapping[str, Style]) -> Trace:
    found = column.found
    return Trace(
        label=labels[found.checkpoint],
        seeds=column.seeds,
        style=style[found.checkpoint],
        curves={curve.quantity: curve for curve in found.curves},
        broken=tuple(divergence.step for divergence in found.divergences),
    )


def _lead(columns: Sequence[StabilityColumn]) -> str:
    """Return how many seeds there are and what so many can say."""
    sizes = sorted({len(column.found.last_steps) for column in columns if not column.why})
    if not sizes:
        return "No checkpoint of this run has a training log, so nothing is said about training."
    span = str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    how_many = f"{span} {'seed' if sizes[-1] == 1 else 'seeds'} a checkpoint"
    if sizes[-1] == 1:
        return (
            f"Read from training logs, {how_many}. One run says nothing about another with a new "
            "seed: there is no spread, and no difference below is a finding about a method."
        )
    return (
        f"Read from training logs, {how_many}: median over seeds, below it range and standard "
        "deviation. So few seeds describe these runs; the spread is no interval and no test."
    )


def _notes(columns: Sequence[StabilityColumn]) -> Iterator[str]:
    """Yield what broke, is missing or is short, and how far the held-out pairs go."""
    from harness.report.verdict import half_width

    for column in columns:
        yield from (f"{column.found.checkpoint}, {note}." for note in column.notes)
    alone = [c.found.checkpoint for c in columns if len(c.found.last_steps) == 1]
    if alone and any(len(c.found.last_steps) > 1 for c in columns):
        yield f"{joined(alone)}: one seed, so no spread."
    sizes = {column.found.held_out_pairs for column in columns if column.found.held_out_pairs}
    if sizes:
        yield (
            f"Held-out figures rest on {counted(min(sizes), 'pair')}: one run's accuracy near one "
            f"half is itself known to about \u00b1{half_width(min(sizes))}{NBSP}percentage points, "
            "which the spread over seeds that share these pairs does not show."
        )
