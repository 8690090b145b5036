"""Training logs, and the stability that is read from them."""

from __future__ import annotations

from pydantic import Field, field_validator

from harness.types.records import (
    MetricInfo,
    Probability,
    Record,
)


class StabilityParameters(Record):
    """How training logs are read; lengths are counted in logged steps.

    Attributes:
        spike_factor: a gradient norm above this many times the running median is a spike.
        window: steps before a step whose median it is held against; also the steps that make up
            a run's start.
        smoothing: steps of the centred running mean (odd), and of the mean at a run's end.
        explosion_loss: rise of the loss above its start, in multiples of its spread.
        explosion_gradient: gradient norm in multiples of its start.
    """

    spike_factor: float = Field(default=2.0, gt=1.0)
    window: int = Field(default=16, ge=3)
    smoothing: int = Field(default=15, ge=3)
    explosion_loss: float = Field(default=10.0, gt=0.0)
    explosion_gradient: float = Field(default=100.0, gt=1.0)

    @field_validator("smoothing")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that the running mean has a centre")
        return value


class TrainingLog(Record):
    """A log as it was found: one training run of a checkpoint.

    Attributes:
        seed: the run's seed; None where neither its folder nor its manifest names one.
        file: path below the checkpoint's folder.
        sha256: hash of the file. rows: logged rows, a diverged one included.
    """

    seed: int | None
    file: str
    sha256: str
    rows: int = Field(ge=1)


class TrainingSource(Record):
    """The training logs of one checkpoint; without any, ``reason`` says why.

    ``notes`` names logs that should be there and are not.
    """

    checkpoint: str
    logs: tuple[TrainingLog, ...] = ()
    reason: str | None = None
    notes: tuple[str, ...] = ()


class TrainingCard(Record):
    """A training suite as it was run, with the logs it was run on."""

    name: str
    version: int
    title: str
    content_sha256: str
    parameters: StabilityParameters
    sources: tuple[TrainingSource, ...]


class TrainingRow(Record):
    """One step of a training log, as far as stability is read from it.

    Attributes:
        gradient_norm: of the policy's weights, before clipping.
        learning_rate: of the policy's weights, at this step.
        tokens: response tokens of the step, both answers.
        kl_reference_policy: KL(reference || policy), mean over the response tokens, nats.
        chosen_log_ratio: mean over the step's pairs of log pi(y^w) - log pi_ref(y^w), nats.
        held_out_accuracy: share of ``held_out_pairs`` pairs with a positive implicit-reward
            margin; only on steps that were followed by a measurement.
        held_out_chosen_log_ratio: as ``chosen_log_ratio``, on the held-out pairs.
        diverged: why training stopped here; the row's other values may be absent.
    """

    checkpoint: str
    seed: int | None
    step: int = Field(ge=0)
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None = Field(default=None, ge=0.0)
    tokens: int | None = Field(default=None, ge=1)
    kl_reference_policy: float | None = None
    chosen_log_ratio: float | None = None
    held_out_accuracy: Probability | None = None
    held_out_pairs: int | None = None
    held_out_chosen_log_ratio: float | None = None
    diverged: str | None = None


class Finding(Record):
    """A number read off one training log; None where it cannot be, with a ``reason``.

    ``n`` counts the logged steps behind it.
    """

    value: float | None
    n: int = 0
    reason: str | None = None


class SeedFinding(Finding):
    """A finding about the log of one seed."""

    seed: int | None


class SeedSummary(Record):
    """One figure of training stability over the seeds of a checkpoint.

    A spread over two or three seeds describes those seeds; it is no interval.

    Attributes:
        figure: key of what is measured.
        seeds: the finding of each log, in the order of the seeds.
        median: over the seeds that have a value; None where none has.
        lowest, highest, sd: range and standard deviation (n - 1); None with fewer than 2 values.
        n: seeds with a value. missing: seeds without.
        reason: why the median, or else the spread, is None.
        method: how the numbers were obtained.
    """

    figure: str
    seeds: tuple[SeedFinding, ...]
    median: float | None
    lowest: float | None = None
    highest: float | None = None
    sd: float | None = None
    n: int
    missing: int
    reason: str | None = None
    method: str


class SeedCurve(Record):
    """A logged quantity over the steps: median, lowest and highest over seeds.

    All fields have one length. Long logs are grouped: an entry then stands for several steps,
    under the last of them. ``seeds`` counts the logs that reach the entry.
    """

    quantity: str
    steps: tuple[int, ...]
    median: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    seeds: tuple[int, ...]


class Divergence(Record):
    """A training run that broke: stopped on a non-finite value, or exploded as defined."""

    seed: int | None
    step: int
    reason: str


class CheckpointStability(Record):
    """Training stability of one checkpoint; without any log, ``reason`` says why.

    Attributes:
        last_steps: last logged step of each log, in the order of the seeds.
        held_out_pairs: pairs behind the held-out figures; None where not logged.
        notes: what is missing or short, in words.
    """

    checkpoint: str
    reason: str | None = None
    last_steps: tuple[int, ...] = ()
    held_out_pairs: int | None = None
    divergences: tuple[Divergence, ...] = ()
    summaries: tuple[SeedSummary, ...] = ()
    curves: tuple[SeedCurve, ...] = ()
    notes: tuple[str, ...] = ()


class TrainingStability(Record):
    """Training stability of all checkpoints, with the definition of each figure."""

    title: str
    parameters: StabilityParameters
    figures: tuple[MetricInfo, ...]
    divergence: str
    checkpoints: tuple[CheckpointStability, ...]
