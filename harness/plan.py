"""From what the user asked for to a checked plan: everything loaded, nothing computed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from harness import plugins, provenance
from harness.adapters import prepare, resolve
from harness.adapters.identity import model_config
from harness.engines.vllm import EngineSettings, default_settings
from harness.errors import InputError
from harness.files import portable, sha256_json
from harness.judges import Judge
from harness.metrics import ExampleChecker, Metric
from harness.progress import over
from harness.prompts import template_warning
from harness.suites import Suite, TrainingSuite, load_suites, load_training_suite, validation_text
from harness.training_logs import Logs, find_logs
from harness.types import (
    REFERENCE,
    CheckpointSpec,
    Counts,
    JudgeInfo,
    Loadable,
    Record,
    RunManifest,
    Status,
    SuiteCard,
    TrainingCard,
    TrainingRow,
)

log = logging.getLogger(__name__)


class RunConfig(Record):
    """What to run: the command line and a YAML file both become this.

    The first checkpoint is the base that implicit rewards and differences are taken against.
    """

    checkpoints: tuple[CheckpointSpec, ...] = Field(min_length=1)
    suites: tuple[str, ...] = Field(min_length=1)
    output: Path
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=16)
    engine: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A checked run: everything loaded, nothing computed."""

    config: RunConfig
    suites: tuple[Suite, ...]
    checkpoints: tuple[Loadable, ...]
    metrics: Mapping[str, Metric]
    judges: Mapping[str, Judge]
    settings: EngineSettings
    manifest: RunManifest
    training_rows: tuple[TrainingRow, ...]


def make_plan(config: RunConfig) -> Plan:
    """Load and check everything a run needs, before any engine starts.

    Raises:
        InputError: unknown or wrong suite, checkpoint, metric, judge, setting or training log.
    """
    suites = tuple(load_suites(config.suites, config.limit))
    training = load_training_suite(config.suites)
    _check_suite_names(suites, training)
    _check_names(config.checkpoints)
    metrics = _load_metrics(suites)
    judges = _load_judges(suites)
    checkpoints = tuple(prepare(spec) for spec in over(config.checkpoints, "checkpoints", "one"))
    _check_architectures(checkpoints)
    if warning := template_warning(checkpoints):
        log.warning("%s", warning)
    settings = _settings(config, checkpoints[0])
    logs = _training_logs(config.checkpoints) if training else []
    card = training.card(found.source for found in logs) if training else None
    manifest = _manifest(config, suites, checkpoints, metrics, judges, settings, card)
    rows = tuple(row for found in logs for row in found.rows)
    return Plan(config, suites, checkpoints, metrics, judges, settings, manifest, rows)


def _check_suite_names(suites: Sequence[Suite], training: TrainingSuite | None) -> None:
    if training and training.spec.name in [s.spec.name for s in suites]:
        raise InputError(f"two suites have one name: {training.spec.name}")


def _training_logs(specs: Iterable[CheckpointSpec]) -> list[Logs]:
    """Return each checkpoint's training logs, from beside its weights or where it says."""
    return [find_logs(s.name, Path(resolve(s).source), s.training_logs) for s in specs]


def _check_names(specs: Sequence[CheckpointSpec]) -> None:
    names = [spec.name for spec in specs]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"checkpoint name '{doubled[0]}' is given twice; names must differ.")
    if REFERENCE in names:
        raise InputError(f"'{REFERENCE}' stands for the suites' own answers; name it otherwise.")


def _load_metrics(suites: Iterable[Suite]) -> dict[str, Metric]:
    names = dict.fromkeys(name for suite in suites for name in suite.spec.metrics)
    metrics: dict[str, Metric] = {}
    for name in names:
        metrics[name] = plugins.load("metrics", name)()  # type: ignore[operator]
    for suite in suites:
        known = {info.key for name in suite.spec.metrics for info in metrics[name].info}
        if wrong := [key for key in suite.spec.primary if key not in known]:
            raise InputError(
                f"suite {suite.spec.name}: primary metric '{wrong[0]}' is produced by none of its "
                f"metrics. They produce: {', '.join(sorted(known))}."
            )
        for name in suite.spec.metrics:
            metric = metrics[name]
            if isinstance(metric, ExampleChecker):
                metric.check_examples(suite.examples)
    return metrics


def _load_judges(suites: Iterable[Suite]) -> dict[str, Judge]:
    names = dict.fromkeys(name for suite in suites for name in suite.spec.judges)
    judges: dict[str, Judge] = {}
    for name in names:
        judges[name] = plugins.load("judges", name)()  # type: ignore[operator]
    return judges


def _check_architectures(checkpoints: Sequence[Loadable]) -> None:
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.architecture != first.architecture or other.spec.dtype != first.spec.dtype:
            raise InputError(
                f"checkpoints '{first.spec.name}' and '{other.spec.name}' differ in architecture, "
                "tokenizer, end token or dtype; one run compares checkpoints that share an engine. "
                "Check the base of each LoRA, or compare them in runs of their own."
            )


def _settings(config: RunConfig, checkpoint: Loadable) -> EngineSettings:
    wanted = default_settings(_context(checkpoint), config.max_model_len)
    if unknown := sorted(set(config.engine) - set(EngineSettings.model_fields)):
        raise InputError(
            f"unknown engine setting '{unknown[0]}'. "
            f"Known: {', '.join(sorted(EngineSettings.model_fields))}."
        )
    try:
        return EngineSettings.model_validate(wanted.model_dump() | config.engine)
    except ValidationError as error:
        raise InputError(f"engine: {validation_text(error)}") from error


def _context(checkpoint: Loadable) -> int:
    config = model_config(Path(checkpoint.folder))
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise InputError(f"{checkpoint.folder}: its config names no max_position_embeddings")
    return limit


def _card(suite: Suite, metrics: Mapping[str, Metric]) -> SuiteCard:
    spec = suite.spec
    return SuiteCard(
        name=spec.name,
        version=spec.version,
        title=spec.title,
        content_sha256=suite.content_sha256,
        examples=len(suite.examples),
        sampling=spec.sampling,
        metrics=tuple(info for name in spec.metrics for info in metrics[name].info),
        judges=spec.judges,
        primary=spec.primary,
        has_reference=all(e.reference is not None for e in suite.examples),
        licence=spec.data.licence,
    )


def _run_key(
    config: RunConfig,
    cards: Sequence[SuiteCard],
    checkpoints: Sequence[Loadable],
    judges: Sequence[JudgeInfo],
    engine: Mapping[str, Any],
    training: TrainingCard | None,
) -> str:
    # A run without training logs keeps the key it had before there were any.
    extra = {} if training is None else {"training": training.model_dump(mode="json")}
    return sha256_json(
        {
            **extra,
            "checkpoints": [
                [
                    c.spec.name,
                    c.weights_sha256,
                    c.template_sha256,
                    c.architecture,
                    c.spec.dtype,
                ]
                for c in checkpoints
            ],
            "suites": [
                [c.name, c.content_sha256, [m.model_dump(mode="json") for m in c.metrics]]
                for c in cards
            ],
            "judges": [[j.name, j.identity] for j in judges],
            "seed": config.seed,
            "engine": engine,
            "packages": provenance.packages(),
        }
    )


def _manifest(
    config: RunConfig,
    suites: Sequence[Suite],
    checkpoints: Sequence[Loadable],
    metrics: Mapping[str, Metric],
    judges: Mapping[str, Judge],
    settings: EngineSettings,
    training: TrainingCard | None,
) -> RunManifest:
    cards = tuple(_card(suite, metrics) for suite in suites)
    infos = tuple(judge.info for judge in judges.values())
    engine = {"name": "vllm", **provenance.engine_versions(), **settings.model_dump(mode="json")}
    expected = sum(c.examples * c.sampling.samples for c in cards) * len(checkpoints)
    counts = {"generations": Counts(expected=expected, present=0)}
    if training is not None:
        logged = sum(log.rows for source in training.sources for log in source.logs)
        counts["training"] = Counts(expected=logged, present=0)
    return RunManifest(
        run_key=_run_key(config, cards, checkpoints, infos, engine, training),
        status=Status.RUNNING,
        created=provenance.now(),
        seed=config.seed,
        checkpoints=tuple(c.model_copy(update={"folder": portable(c.folder)}) for c in checkpoints),
        suites=cards,
        judges=infos,
        engine=engine,
        packages=provenance.packages(),
        hardware=provenance.hardware(),
        git_commit=provenance.git_commit(),
        counts=counts,
        training=training,
    )
