"""The declaration of a suite of lm-eval's tasks: which, how many shots, what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from harness.errors import InputError
from harness.files import sha256_json
from harness.suites import read_yaml, validation_text
from harness.types import Direction, MetricInfo, Record
from harness.types.records import SHARE

AVERAGE = "leaderboard_average"
"""Metric key of the unweighted average over a suite's tasks."""

FEWSHOT_SEED = 1234
"""lm-eval's own default: with it, its few-shot examples are those of its command line."""


class TaskChoice(Record):
    """One of lm-eval's tasks, or one of its groups, and what of it is reported.

    Attributes:
        task: lm-eval's name. Of a group all tasks are run, and each document counts alike.
        shots: solved examples before each document.
        metric: one that the task computes for each document, averaged over them.
        filter: the filter whose replies are scored (``strict-match``); ``none`` where a task has
            no filters.
        key: metric key in scores and reports, if not ``TASK_METRIC``.
        title: shown in reports, if not the key.
    """

    task: str = Field(pattern=r"^[A-Za-z0-9][\w.\-]*$")
    shots: int = Field(ge=0)
    metric: str = Field(min_length=1)
    filter: str = Field(default="none", min_length=1)
    key: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    title: str | None = None

    @property
    def name(self) -> str:
        """The metric key."""
        return self.key or f"{self.task}_{self.metric}".lower()

    @property
    def info(self) -> MetricInfo:
        """What the metric key means."""
        shots = f"{self.shots}-shot" if self.shots else "zero-shot"
        filtered = "" if self.filter == "none" else f", filter {self.filter}"
        return MetricInfo(
            key=self.name,
            title=self.title or self.name,
            unit=SHARE,
            direction=Direction.HIGHER,
            definition=f"lm-eval's task {self.task}, {shots}, metric {self.metric}{filtered}, "
            "averaged over documents.",
        )


class CapabilitySpec(Record):
    """Declaration of a suite that lm-eval runs.

    Attributes:
        chat_template: put every prompt into the checkpoint's chat template.
        multiturn: with a chat template, solved examples are turns of their own.
        fewshot_seed: of the choice of few-shot examples.
        licence: of the data sets.
    """

    kind: Literal["lm_eval"]
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    title: str
    description: str
    tasks: tuple[TaskChoice, ...] = Field(min_length=1)
    chat_template: bool = False
    multiturn: bool = True
    fewshot_seed: int = FEWSHOT_SEED
    licence: str
    citation: str = ""

    @model_validator(mode="after")
    def _distinct(self) -> CapabilitySpec:
        for what, names in (
            ("task", [choice.task for choice in self.tasks]),
            ("metric key", [*(choice.name for choice in self.tasks), AVERAGE]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what} '{min(twice)}' occurs twice")
        return self

    @property
    def primary(self) -> tuple[str, ...]:
        """Metric keys that the gate and the summary look at."""
        return (AVERAGE,)

    @property
    def metrics(self) -> tuple[MetricInfo, ...]:
        """What each metric key means, tasks first."""
        listed = ", ".join(choice.title or choice.name for choice in self.tasks)
        average = MetricInfo(
            key=AVERAGE,
            title="Average of tasks",
            unit=SHARE,
            direction=Direction.HIGHER,
            definition=f"Unweighted average over {len(self.tasks)} tasks ({listed}). Each document "
            "counts with one over the number of documents of its task.",
        )
        return (*(choice.info for choice in self.tasks), average)


class CapabilitySuite(Record):
    """A declaration and its hash; the documents are lm-eval's, or in a folder of local data."""

    spec: CapabilitySpec
    content_sha256: str


def load_capability_suite(path: Path) -> CapabilitySuite:
    """Return the suite that a YAML file declares.

    Raises:
        InputError: unreadable file, unknown or wrong key, a task or a metric key twice.
    """
    try:
        spec = CapabilitySpec.model_validate(read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error
    return CapabilitySuite(spec=spec, content_sha256=sha256_json(spec.model_dump(mode="json")))
