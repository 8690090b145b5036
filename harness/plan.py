"""From what the user asked for to a checked plan: everything loaded, nothing computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from harness import provenance
from harness.adapters import prepare, resolve
from harness.adapters.recorded import recorded_suite
from harness.adapters.templates import check_templates
from harness.capability.stage import CONTEXT, PlannedTasks, check_groups, plan_tasks
from harness.checks import load_judges, load_metrics
from harness.contamination import find_contamination
from harness.dialogues import is_later_question
from harness.engines.replay import check_answered
from harness.engines.settings import EngineSettings
from harness.errors import InputError, unknown_name
from harness.files import portable, sha256_json
from harness.groups import EngineGroup, make_groups
from harness.judges import Judge
from harness.judges.llm import Budget, Limits, load_prices
from harness.judging import llm_judge
from harness.metrics import Metric
from harness.progress import over
from harness.prompts import Prompts, longest_request, render_all
from harness.requests import make_requests
from harness.suites import (
    OUTPUTS,
    Suite,
    TrainingSuite,
    cut,
    declared_name,
    known_groups,
    lm_eval_suites,
    load_suites,
    load_training_suite,
)
from harness.suites.declaration import LIKELIHOOD
from harness.training_logs import NO_LOG, Logs, find_logs
from harness.types import (
    REFERENCE,
    CheckpointSpec,
    Counts,
    EngineCard,
    Form,
    JudgeInfo,
    JudgeSpec,
    Loadable,
    Record,
    RunManifest,
    Status,
    SuiteCard,
    TrainingCard,
    TrainingRow,
    TrainingSource,
)
from harness.types.records import PromptStyle

log = logging.getLogger(__name__)

DIVERGENCE = "reference_kl"
"""Name of the metric family that is filled from the distributions of two checkpoints."""

READ = (LIKELIHOOD, DIVERGENCE)
"""Metric families that are filled by reading prompts with a float32 model."""


class RunConfig(Record):
    """What to run: the command line and a YAML file both become this.

    The first checkpoint is the base that implicit rewards and differences are taken against.

    Attributes:
        judges: language models as judges, beside the judges that the suites declare.
        data: the user's own copies of suites' data, by suite.
        max_tokens: a lower limit on every suite's answers, in tokens.
        budget: caps on what they may use in one go; part of no result.
        prices: a price table in place of the packaged one.
    """

    checkpoints: tuple[CheckpointSpec, ...] = Field(min_length=1)
    suites: tuple[str, ...] = Field(min_length=1)
    output: Path
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=16)
    max_tokens: int | None = Field(default=None, ge=1)
    data: dict[str, Path] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=dict)
    endpoint: dict[str, Any] = Field(default_factory=dict)
    judges: tuple[JudgeSpec, ...] = ()
    budget: Limits = Limits()
    prices: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A checked run: everything loaded, nothing computed."""

    config: RunConfig
    suites: tuple[Suite, ...]
    checkpoints: tuple[Loadable, ...]
    groups: tuple[EngineGroup, ...]
    metrics: Mapping[str, Metric]
    judges: Mapping[str, Judge]
    budget: Budget
    manifest: RunManifest
    training_rows: tuple[TrainingRow, ...]
    tasks: tuple[PlannedTasks, ...] = ()

    @property
    def base(self) -> Loadable:
        """The checkpoint that differences and implicit rewards are taken against."""
        return self.checkpoints[0]


def make_plan(config: RunConfig) -> Plan:
    """Load and check everything a run needs, before any engine starts.

    Raises:
        InputError: unknown or wrong suite, checkpoint, metric, judge, setting or training log.
    """
    _check_names(config.checkpoints)
    suites = tuple(load_suites(config.suites, config.limit, config.data, config.max_tokens))
    training = load_training_suite(config.suites)
    tasks = tuple(_tasks(path, config) for path in lm_eval_suites(config.suites))
    # What is wrong with a suite is said before weights are read.
    metrics, judges = load_metrics(suites), load_judges(suites)
    checkpoints = tuple(prepare(spec) for spec in over(config.checkpoints, "checkpoints", "one"))
    check_templates(checkpoints)
    if OUTPUTS in config.suites:
        outputs = cut(recorded_suite(checkpoints), config.limit, config.max_tokens)
        suites += (outputs,)
        metrics |= load_metrics([outputs])
        judges |= load_judges([outputs])
    _check_suite_names(suites, training, tasks)
    _check_plain(suites, checkpoints)
    _check_read(suites)
    budget = Budget(config.budget, load_prices(config.prices))
    suites = tuple(_judged_by(suite, config.judges) for suite in suites)
    judges |= _llm_judges(config, suites, judges, budget)
    check_answered(checkpoints, make_requests(suites, {}, config.seed))
    room = CONTEXT if tasks else 0
    groups = make_groups(
        checkpoints,
        config.engine,
        config.endpoint,
        config.max_model_len,
        lambda checkpoint: max(room, longest_request(checkpoint, suites)),
    )
    check_groups(tasks, groups)
    for warning in (*tokenizer_warnings(checkpoints), *_without_judges(config)):
        log.warning("%s", warning)
    logs = [_training_logs(c) for c in checkpoints] if training else []
    card = training.card(found.source for found in logs) if training else None
    manifest = _manifest(config, suites, groups, checkpoints, metrics, judges, card, tasks)
    rows = tuple(row for found in logs for row in found.rows)
    return Plan(config, suites, checkpoints, groups, metrics, judges, budget, manifest, rows, tasks)


def _without_judges(config: RunConfig) -> Iterator[str]:
    """Yield what groups say of the judges they want, where none is named."""
    groups = known_groups()
    for name in config.suites if not config.judges else ():
        if name in groups and (wanted := groups[name].judges):
            yield f"'{name}' without --judge: no win rates by language models. {wanted.strip()}"


def _tasks(path: Path, config: RunConfig) -> PlannedTasks:
    return plan_tasks(path, config.data.get(declared_name(path)), config.limit)


def rendered(plan: Plan) -> dict[str, Prompts]:
    """Return all prompts by checkpoint; endpoints and files render none here.

    Raises:
        CheckpointError: a prompt cannot be rendered.
        InputError: prompts leave no room for an answer.
    """
    prompts: dict[str, Prompts] = {}
    for group in plan.groups:
        if isinstance(group.settings, EngineSettings):
            length = group.settings.max_model_len
            prompts |= render_all(group.checkpoints, plan.suites, length)
    return prompts


def tokenizer_warnings(checkpoints: Sequence[Loadable]) -> Iterator[str]:
    """Yield a warning for each checkpoint that reads text otherwise than the first one."""
    base = checkpoints[0]
    for other in checkpoints[1:]:
        pair = (base.tokenizer_sha256, other.tokenizer_sha256)
        if None not in pair and len(set(pair)) == 2:
            yield (
                f"'{other.spec.name}' has another tokenizer than '{base.spec.name}': lengths in "
                "tokens do not compare, and there are no implicit rewards between them"
            )


def _check_suite_names(
    suites: Sequence[Suite], training: TrainingSuite | None, tasks: Sequence[PlannedTasks]
) -> None:
    names = [suite.spec.name for suite in suites] + [planned.name for planned in tasks]
    names += [training.spec.name] if training else []
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two suites have one name: {', '.join(doubled)}")


def _check_plain(suites: Sequence[Suite], checkpoints: Sequence[Loadable]) -> None:
    """Refuse prompts without a chat template where a server would put them into one."""
    plain = [suite.spec.name for suite in suites if suite.spec.style is PromptStyle.PLAIN]
    servers = [c.spec.name for c in checkpoints if c.form is Form.ENDPOINT]
    if plain and servers:
        raise InputError(
            f"suite '{plain[0]}' puts its prompts plain, and '{servers[0]}' is an endpoint, which "
            "puts every prompt into a chat template. Leave one of them out."
        )


def _check_read(suites: Sequence[Suite]) -> None:
    """Refuse metrics that read given prompts where these hold a model's own answers."""
    for suite in suites:
        read = [name for name in READ if name in suite.spec.metrics]
        if read and any(is_later_question(example.messages) for example in suite.examples):
            raise InputError(
                f"suite '{suite.spec.name}': metric '{read[0]}' reads prompts as they are given, "
                "and later questions of a dialogue hold the checkpoint's own answers. Leave it out."
            )


def _training_logs(checkpoint: Loadable) -> Logs:
    """Return a checkpoint's training logs, from beside its weights or where it says."""
    spec = checkpoint.spec
    if checkpoint.form is not Form.WEIGHTS and spec.training_logs is None:
        return Logs(TrainingSource(checkpoint=spec.name, reason=NO_LOG))
    place = Path(resolve(spec).source).expanduser()
    return find_logs(spec.name, place.parent if place.is_file() else place, spec.training_logs)


def _check_names(specs: Sequence[CheckpointSpec]) -> None:
    names = [spec.name for spec in specs]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"checkpoint name '{doubled[0]}' is given twice; names must differ.")
    if REFERENCE in names:
        raise InputError(f"'{REFERENCE}' stands for the suites' own answers; name it otherwise.")


def _judged_by(suite: Suite, specs: Sequence[JudgeSpec]) -> Suite:
    """Return the suite with the language models that judge it; its content stays what it is."""
    names = tuple(spec.name for spec in specs if _judges_suite(spec, suite))
    spec = suite.spec.model_copy(update={"judges": (*suite.spec.judges, *names)})
    return suite.model_copy(update={"spec": spec}) if names else suite


def _judges_suite(spec: JudgeSpec, suite: Suite) -> bool:
    if spec.suites:
        return suite.spec.name in spec.suites
    return suite.spec.samples == 1


def _llm_judges(
    config: RunConfig, suites: Sequence[Suite], others: Mapping[str, Judge], budget: Budget
) -> dict[str, Judge]:
    """Return the language models that judge, by name.

    Raises:
        InputError: a name is taken, a suite that a judge names is not run, or no suite is left
            for it.
    """
    run = [suite.spec.name for suite in suites]
    found: dict[str, Judge] = {}
    for spec in config.judges:
        if spec.name in others or spec.name in found:
            raise InputError(f"two judges are named '{spec.name}'; names must differ.")
        if absent := sorted(set(spec.suites) - set(run)):
            raise unknown_name(f"suite of judge '{spec.name}'", absent[0], run)
        if not any(spec.name in suite.spec.judges for suite in suites):
            raise InputError(
                f"judge '{spec.name}' has nothing to judge: every suite of this run samples "
                "several answers a prompt. Name those whose first answers it is to judge: "
                "suites=NAME+NAME."
            )
        found[spec.name] = llm_judge(spec, config.engine, config.endpoint, budget)
    return found


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
        temperatures=spec.temperatures,
        used=suite.used,
    )


def _portable(checkpoint: Loadable) -> Loadable:
    """Return a checkpoint with its folders as they may stand in a report."""
    if checkpoint.form == Form.ENDPOINT:
        return checkpoint
    changes: dict[str, Any] = {"folder": portable(checkpoint.folder)}
    if checkpoint.base is not None:
        place = portable(checkpoint.base.folder)
        changes["base"] = checkpoint.base.model_copy(update={"folder": place})
    if checkpoint.lora is not None:
        changes["lora"] = portable(checkpoint.lora)
    return checkpoint.model_copy(update=changes)


def _run_key(
    config: RunConfig,
    cards: Sequence[SuiteCard],
    checkpoints: Sequence[Loadable],
    judges: Sequence[JudgeInfo],
    engines: Sequence[EngineCard],
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
                    c.arithmetic,
                ]
                for c in checkpoints
            ],
            "suites": [
                [c.name, c.content_sha256, [m.model_dump(mode="json") for m in c.metrics]]
                for c in cards
            ],
            "judges": [[j.name, j.identity] for j in judges],
            "seed": config.seed,
            "engines": [card.model_dump(mode="json") for card in engines],
            "packages": provenance.packages(),
        }
    )


def _manifest(
    config: RunConfig,
    suites: Sequence[Suite],
    groups: Sequence[EngineGroup],
    checkpoints: Sequence[Loadable],
    metrics: Mapping[str, Metric],
    judges: Mapping[str, Judge],
    training: TrainingCard | None,
    tasks: Sequence[PlannedTasks],
) -> RunManifest:
    cards = (*(_card(suite, metrics) for suite in suites), *(planned.card() for planned in tasks))
    infos = tuple(judge.info for judge in judges.values())
    engines = tuple(group.card(config.seed) for group in groups)
    expected = sum(c.examples * c.samples for c in cards) * len(checkpoints)
    counts = {"generations": Counts(expected=expected, present=0)}
    if training is not None:
        logged = sum(log.rows for source in training.sources for log in source.logs)
        counts["training"] = Counts(expected=logged, present=0)
    return RunManifest(
        run_key=_run_key(config, cards, checkpoints, infos, engines, training),
        status=Status.RUNNING,
        created=provenance.now(),
        seed=config.seed,
        checkpoints=tuple(map(_portable, checkpoints)),
        suites=cards,
        judges=infos,
        engines=engines,
        packages=provenance.packages(),
        hardware=provenance.hardware(),
        git_commit=provenance.git_commit(),
        counts=counts,
        training=training,
        contamination=find_contamination(
            checkpoints,
            {suite.spec.name: suite.examples for suite in suites}
            | {planned.name: planned.examples for planned in tasks},
        ),
    )
