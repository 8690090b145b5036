"""From logged training steps to :class:`TrainingStability`: each figure of each checkpoint's seeds.

Reads records only; the arithmetic is in :mod:`harness.stats.stability`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from harness.errors import RunFolderError
from harness.stats.stability import (
    SLOPE_UNIT,
    Floats,
    Ints,
    end_mean,
    end_slope,
    explosion,
    loss_deviation,
    loss_limit,
    loss_noise,
    over_seeds,
    rank_correlation,
    seed_curve,
    spike_share,
)
from harness.types import (
    SHARE,
    CheckpointStability,
    Direction,
    Divergence,
    Finding,
    MetricInfo,
    RunManifest,
    SeedCurve,
    SeedFinding,
    SeedSummary,
    StabilityParameters,
    Status,
    TrainingCard,
    TrainingRow,
    TrainingSource,
    TrainingStability,
)

LOSS, GRADIENT = "loss", "gradient_norm"
RATE, TOKENS = "learning_rate", "tokens"
KL, CHOSEN = "kl_reference_policy", "chosen_log_ratio"
CURVES = (LOSS, GRADIENT, KL, CHOSEN)
"""Logged quantities whose curves are kept."""

FINAL_KL = "final_kl"
HELD_OUT_ACCURACY, HELD_OUT_CHOSEN = "held_out_accuracy", "held_out_chosen_log_ratio"

Run = tuple[str, int | None]
"""Checkpoint and seed of a training run."""


@dataclass(frozen=True)
class TrainingRun:
    """The logged steps of one training run; the row at which it diverged stands apart."""

    seed: int | None
    rows: tuple[TrainingRow, ...]
    broken: TrainingRow | None

    @classmethod
    def of(cls, seed: int | None, rows: Iterable[TrainingRow]) -> TrainingRun:
        """Return the run of one log's rows, given in any order."""
        ordered = sorted(rows, key=lambda row: row.step)
        whole = tuple(row for row in ordered if row.diverged is None)
        return cls(seed, whole, ordered[-1] if len(whole) < len(ordered) else None)

    def column(self, name: str) -> tuple[Ints, Floats]:
        """Return the steps that have a value of ``name``, and these values, shapes (T,)."""
        pairs = [(row.step, v) for row in self.rows if (v := getattr(row, name)) is not None]
        steps = np.array([step for step, _ in pairs], dtype=np.int64)
        return steps, np.array([value for _, value in pairs], dtype=np.float64)

    def columns(self, x: str, y: str) -> tuple[Floats, Floats]:
        """Return the values of two quantities at the steps that have both, shapes (T,)."""
        pairs = [(getattr(row, x), getattr(row, y)) for row in self.rows]
        both = [pair for pair in pairs if None not in pair]
        table = np.array(both, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    @cached_property
    def last_step(self) -> int:
        """The last logged step, a diverged one included."""
        return (self.broken or self.rows[-1]).step

    def divergence(self, given: StabilityParameters) -> Divergence | None:
        """Return how the run broke, the first time; None where it did not."""
        losses, norms = self.column(LOSS)[1], self.column(GRADIENT)[1]
        exploded = explosion(
            losses,
            norms,
            window=given.window,
            loss_factor=given.explosion_loss,
            gradient_factor=given.explosion_gradient,
        )
        if exploded is not None:
            place, how = exploded
            step = self.rows[place].step
            return Divergence(seed=self.seed, step=step, reason=f"exploded: {how}")
        if self.broken is not None:
            reason = self.broken.diverged or "diverged"
            return Divergence(seed=self.seed, step=self.broken.step, reason=reason)
        return None

    def unjudged(self, given: StabilityParameters) -> str | None:
        """Return why its loss cannot tell whether it exploded; None where it can, or it broke."""
        if self.divergence(given) is not None:
            return None
        losses = self.column(LOSS)[1]
        return loss_limit(losses, window=given.window, factor=given.explosion_loss).reason


Compute = Callable[[TrainingRun, StabilityParameters], Finding]


@dataclass(frozen=True)
class Figure:
    """What is read off every log: how it is shown, what it means, how it is computed."""

    key: str
    title: str
    unit: str
    direction: Direction
    definition: str
    compute: Compute

    def info(self, given: StabilityParameters) -> MetricInfo:
        """Return the figure's description, with the parameters it was computed with."""
        return MetricInfo(
            key=self.key,
            title=self.title,
            unit=self.unit,
            direction=self.direction,
            definition=self.definition.format(**given.model_dump()),
        )


def _whole(name: str, read: Callable[[Floats, StabilityParameters], Finding]) -> Compute:
    """Return a figure of all logged values of ``name``."""

    def compute(run: TrainingRun, given: StabilityParameters) -> Finding:
        values = run.column(name)[1]
        return read(values, given) if len(values) else _absent(run, name)

    return compute


def _absent(run: TrainingRun, name: str) -> Finding:
    if run.broken is not None and not run.rows:
        return Finding(value=None, reason=f"diverged at step {run.broken.step}, the first")
    return Finding(value=None, reason=f"the log has no {name}")


def _at_end(read: Compute) -> Compute:
    """Return a figure of a run's end, which a run that stopped on a broken value does not have."""

    def compute(run: TrainingRun, given: StabilityParameters) -> Finding:
        if run.broken is not None:
            return Finding(value=None, reason=f"diverged at step {run.broken.step}")
        return read(run, given)

    return compute


def _end(name: str) -> Compute:
    return _at_end(_whole(name, lambda v, given: end_mean(v, width=given.smoothing)))


def _slope(run: TrainingRun, given: StabilityParameters) -> Finding:
    steps, values = run.column(KL)
    return end_slope(steps, values, width=given.smoothing) if len(values) else _absent(run, KL)


def _last(name: str) -> Compute:
    def compute(run: TrainingRun, given: StabilityParameters) -> Finding:
        values = run.column(name)[1]
        return Finding(value=float(values[-1]), n=1) if len(values) else _absent(run, name)

    return _at_end(compute)


def _peak(values: Floats, given: StabilityParameters) -> Finding:
    return Finding(value=float(values.max()), n=len(values))


def _against_length(run: TrainingRun, given: StabilityParameters) -> Finding:
    norms, tokens = run.columns(GRADIENT, TOKENS)
    if not len(tokens):
        return _absent(run, TOKENS)
    return rank_correlation(norms, tokens, needed=2 * given.smoothing)


UP, DOWN, NEITHER = Direction.HIGHER, Direction.LOWER, Direction.NEITHER
FIGURES = (
    Figure(
        "peak_learning_rate",
        "Peak learning rate",
        "of the policy",
        NEITHER,
        "Highest learning rate of the logged steps; a run that broke in its warm-up had not come "
        "to its peak. Not an outcome but a condition: where a search chose each method's rate, the "
        "figures below compare methods at different rates.",
        _whole(RATE, _peak),
    ),
    Figure(
        "gradient_spikes",
        "Gradient spikes",
        SHARE,
        DOWN,
        "Share of steps whose gradient norm (the policy's, before clipping, without TBPO-Q's head) "
        "exceeds {spike_factor:g} times the median of the {window} logged steps before. The first "
        "{window} steps are not judged. Where a trainer batches pairs of similar lengths, the norm "
        "moves with the length of a batch, in opposite directions for losses that sum over tokens "
        "(dpo, bpo, tdpo, tis-dpo) and those that average (sft, tbpo): spikes partly measure the "
        "order of the data.",
        _whole(
            GRADIENT,
            lambda v, given: spike_share(v, factor=given.spike_factor, window=given.window),
        ),
    ),
    Figure(
        "gradient_length_correlation",
        "Gradient norm against length",
        "rank correlation",
        NEITHER,
        "How far the norm follows the length of its batch: Spearman correlation, over a run's "
        "logged steps, of the gradient norm with the step's response tokens. Norms unrelated to "
        "length give zero, within about 1/sqrt(steps). Needs twice {smoothing} steps.",
        _against_length,
    ),
    Figure(
        "loss_noise",
        "Loss noise",
        "of its fall",
        DOWN,
        "Standard deviation of the loss around its centred running mean over {smoothing} logged "
        "steps, divided by how far that mean fell from its start to its lowest point. A factor on "
        "the loss or a constant added to it changes nothing, so losses of different scale can be "
        "compared; an objective that moved little in its budget counts as noisy. No value where "
        "the fall is within sqrt(2/{smoothing}) deviations, which noise alone explains.",
        _whole(LOSS, lambda v, given: loss_noise(v, width=given.smoothing)),
    ),
    Figure(
        "loss_deviation",
        "Loss deviation",
        "loss",
        NEITHER,
        "The same standard deviation in the objective's own units, not comparable between "
        "objectives: residuals of the steps whose window is whole, root mean square, corrected by "
        "1/sqrt(1 - 1/{smoothing}) for what the running mean takes up.",
        _whole(LOSS, lambda v, given: loss_deviation(v, width=given.smoothing)),
    ),
    Figure(
        "final_loss",
        "Final loss",
        "loss",
        NEITHER,
        "Mean loss of the last {smoothing} logged steps, in the objective's own units.",
        _end(LOSS),
    ),
    Figure(
        "final_gradient_norm",
        "Final gradient norm",
        "before clipping",
        NEITHER,
        "Mean of the last {smoothing} logged steps; the same norm as that of the spikes.",
        _end(GRADIENT),
    ),
    Figure(
        FINAL_KL,
        "KL at the end",
        "nats a token",
        NEITHER,
        "Drift from the reference: KL(reference || policy), exact over the vocabulary, mean over "
        "the answer tokens of the training data, both answers of a pair, not over samples of the "
        "policy; mean of the last {smoothing} logged steps.",
        _end(KL),
    ),
    Figure(
        "kl_slope",
        "KL slope",
        f"nats a token in {SLOPE_UNIT} steps",
        NEITHER,
        "Whether the policy still drifts: least-squares slope of that KL over the second half of "
        f"the logged steps, in {SLOPE_UNIT} steps. Near zero: settled.",
        _at_end(_slope),
    ),
    Figure(
        "chosen_log_ratio",
        "Chosen log-ratio",
        "nats an answer",
        NEITHER,
        "Likelihood displacement: log-probability of the chosen answers under the policy minus "
        "under the reference, on the batches trained on; mean of the last {smoothing} logged "
        "steps. Negative: training has made the preferred answers less likely.",
        _end(CHOSEN),
    ),
    Figure(
        HELD_OUT_CHOSEN,
        "Chosen log-ratio, held out",
        "nats an answer",
        NEITHER,
        "The same on pairs that were not trained on, at the last measurement.",
        _last(HELD_OUT_CHOSEN),
    ),
    Figure(
        HELD_OUT_ACCURACY,
        "Held-out accuracy",
        SHARE,
        UP,
        "Share of held-out pairs whose chosen answer has the higher implicit reward, at the last "
        "measurement, in the arithmetic of training (bfloat16 where it was trained so). A learning "
        "rate that was searched for was chosen on it.",
        _last(HELD_OUT_ACCURACY),
    ),
)

DIVERGENCE = (
    "A run counts as diverged if its log says that it stopped on a non-finite loss or gradient, or "
    "if it exploded: a loss above the median of its first {window} logged steps by more than "
    "{explosion_loss:g} times its spread (the larger of its range there and its interquartile "
    "range over the log), so that neither scale nor additive constants of a loss matter, or a "
    "gradient norm above {explosion_gradient:g} times "
    "its median there. Within these steps, in a log without later ones, and where that spread is "
    "zero, the gradient norm alone decides. A run that stopped so has no figures of its end; one "
    "that exploded and went on has them."
)


def read_stability(card: TrainingCard, rows: Iterable[TrainingRow]) -> TrainingStability:
    """Return every figure of every checkpoint's training logs.

    Raises:
        RunFolderError: a row belongs to no log that ``card`` names.
    """
    runs = _runs(card, rows)
    longest = max((run.last_step for found in runs.values() for run in found), default=0)
    return TrainingStability(
        title=card.title,
        parameters=card.parameters,
        figures=tuple(figure.info(card.parameters) for figure in FIGURES),
        divergence=DIVERGENCE.format(**card.parameters.model_dump()),
        checkpoints=tuple(
            _checkpoint(source, runs[source.checkpoint], card.parameters, longest)
            for source in card.sources
        ),
    )


def _runs(card: TrainingCard, rows: Iterable[TrainingRow]) -> dict[str, list[TrainingRun]]:
    """Return the runs of each checkpoint in the card's order; logs without a row are left out."""
    grouped: dict[Run, list[TrainingRow]] = defaultdict(list)
    for row in rows:
        grouped[row.checkpoint, row.seed].append(row)
    known = [(source.checkpoint, log.seed) for source in card.sources for log in source.logs]
    if foreign := [run for run in grouped if run not in known]:
        name, seed = foreign[0]
        raise RunFolderError(
            f"training steps of '{name}', {seed_text(seed)}, belong to no log of the run's "
            "manifest; run it again into another folder."
        )
    found: dict[str, list[TrainingRun]] = {source.checkpoint: [] for source in card.sources}
    for name, seed in known:
        if (name, seed) in grouped:
            found[name].append(TrainingRun.of(seed, grouped[name, seed]))
    return found


def seed_text(seed: int | None) -> str:
    """Return ``seed 3``, or that the log names none."""
    return "seed not recorded" if seed is None else f"seed {seed}"


def _checkpoint(
    source: TrainingSource, runs: Sequence[TrainingRun], given: StabilityParameters, longest: int
) -> CheckpointStability:
    if not runs:
        reason = source.reason or "its logged steps are not in the run folder"
        return CheckpointStability(checkpoint=source.checkpoint, reason=reason, notes=source.notes)
    broken = [d for run in runs if (d := run.divergence(given)) is not None]
    return CheckpointStability(
        checkpoint=source.checkpoint,
        last_steps=tuple(run.last_step for run in runs),
        held_out_pairs=_held_out_pairs(runs),
        divergences=tuple(broken),
        summaries=tuple(_summary(figure, runs, given) for figure in FIGURES),
        curves=tuple(_curves(runs)),
        notes=(*source.notes, *_short(runs, longest), *_unjudged(runs, given)),
    )


def _summary(
    figure: Figure, runs: Sequence[TrainingRun], given: StabilityParameters
) -> SeedSummary:
    findings = [
        SeedFinding(seed=run.seed, **figure.compute(run, given).model_dump()) for run in runs
    ]
    return over_seeds(figure.key, findings)


def _curves(runs: Sequence[TrainingRun]) -> Iterator[SeedCurve]:
    for name in CURVES:
        columns = [run.column(name) for run in runs]
        if any(len(steps) for steps, _ in columns):
            yield seed_curve(name, columns)


def _held_out_pairs(runs: Sequence[TrainingRun]) -> int | None:
    sizes = [row.held_out_pairs for run in runs for row in run.rows if row.held_out_pairs]
    return min(sizes, default=None)


def _short(runs: Sequence[TrainingRun], longest: int) -> Iterator[str]:
    """Yield which logs end before the longest log of the run, other than by diverging."""
    for run in runs:
        if run.last_step < longest and run.broken is None:
            yield (
                f"{seed_text(run.seed)}: its log ends at step {run.last_step}, "
                f"the longest of this comparison at step {longest}"
            )


def _unjudged(runs: Sequence[TrainingRun], given: StabilityParameters) -> Iterator[str]:
    """Yield which runs' losses give no verdict on whether they exploded."""
    for run in runs:
        if (reason := run.unjudged(given)) is not None:
            yield f"{seed_text(run.seed)}: its loss cannot tell whether it exploded: {reason}"


def training_gaps(manifest: RunManifest, rows: Iterable[TrainingRow]) -> Iterator[str]:
    """Yield what the run folder lacks of the logs that its manifest names.

    Raises:
        RunFolderError: the run was completed, and has lost logged steps since.
    """
    present = Counter((row.checkpoint, row.seed) for row in rows)
    for name, seed, expected in _expected(manifest):
        found = present[name, seed]
        lack = f"{name}, {seed_text(seed)}: {expected - found} of {expected} logged steps"
        if found < expected and manifest.status == Status.COMPLETE:
            raise RunFolderError(f"{lack} are gone since the run was completed; run it again.")
        if found < expected:
            yield f"training logs, {lack} not copied"


def _expected(manifest: RunManifest) -> Iterator[tuple[str, int | None, int]]:
    for source in manifest.training.sources if manifest.training else ():
        for log in source.logs:
            yield source.checkpoint, log.seed, log.rows
