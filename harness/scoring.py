"""Recorded answers scored again: a suite's metrics without an engine, a model or a run folder.

The figures are those that a run over the same file would have: the answers are matched by the
replaying engine, scored by the suite's own metrics, and summarised by the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness.adapters import RECORDED
from harness.compare import compare
from harness.engines import Completion
from harness.engines.replay import ReplayEngine
from harness.errors import InputError
from harness.plan import Plan, RunConfig, make_plan
from harness.requests import as_generation, make_requests, request_sha256
from harness.suites import Suite
from harness.types import (
    CheckpointSpec,
    Counts,
    Generation,
    MetricInfo,
    MetricResult,
    Record,
    RunManifest,
    Status,
)

NEEDS_MODEL = "it is read from a model's log-probabilities: run the checkpoint with 'tbpo run'"

LONGEST_NAME = 80
"""Characters of a checkpoint's name."""


class Rescored(Record):
    """A file of answers scored on a suite.

    Attributes:
        answers: prompts times samples that the suite asks for, and those the file answers.
        metrics: each with interval and count of missing values.
        skipped: by metric, why it was not computed.
        lacking: what is missing of the others, with reasons.
    """

    suite: str
    model: str
    file_sha256: str
    answers: Counts
    metrics: tuple[MetricResult, ...]
    skipped: dict[str, str]
    lacking: tuple[str, ...]


def checkpoint_name(path: Path) -> str:
    """Return a file's name without its endings as a checkpoint may be called."""
    stem = path.name.split(".json")[0].split(".csv")[0].split(".parquet")[0]
    return re.sub(r"[^\w.+-]", "-", stem).lstrip(".+-")[:LONGEST_NAME] or "outputs"


def score_outputs(
    suite: str, path: Path, model: str | None = None, data: Mapping[str, Path] | None = None
) -> Rescored:
    """Score the answers in a file on a suite.

    Args:
        suite: a packaged suite, a YAML file, or ``outputs`` for the prompts of the file itself.
        model: whose answers are wanted, where the file holds those of several models.
        data: the user's own copy of the suite's data, by suite.

    Raises:
        InputError: unknown suite, several suites, or a file that answers none of its prompts.
        DataError: a row of the file is broken.
    """
    name = checkpoint_name(Path(model) if model else path)
    spec = CheckpointSpec(name=name, source=f"{RECORDED}{path}", model=model)
    # A plan is only read here: nothing is written, so that the output folder is never made.
    plan = make_plan(
        RunConfig(
            checkpoints=(spec,), suites=(suite,), output=Path("unwritten"), data=dict(data or {})
        )
    )
    if len(plan.suites) != 1:
        raise InputError(f"'{suite}' stands for {len(plan.suites)} suites of prompts; name one")
    return _rescored(plan, plan.suites[0])


def _rescored(plan: Plan, suite: Suite) -> Rescored:
    answers = _replayed(plan, suite)
    families = {n: plan.metrics[n].score(suite.examples, answers) for n in suite.spec.metrics}
    skipped = {name: NEEDS_MODEL for name, scores in families.items() if not scores}
    infos = [i for name in families if name not in skipped for i in plan.metrics[name].info]
    found = compare(
        _manifest(plan, infos),
        [score for scores in families.values() for score in scores],
        (),
        answers,
        {suite.spec.name: suite.examples},
        samples_shown=0,
    )
    expected = len(suite.examples) * suite.spec.samples
    return Rescored(
        suite=suite.spec.name,
        model=plan.base.spec.name,
        file_sha256=plan.base.weights_sha256,
        answers=Counts(expected=expected, present=len(answers)),
        metrics=found.metrics,
        skipped=skipped,
        lacking=(*found.gaps, *found.unknown),
    )


def _replayed(plan: Plan, suite: Suite) -> list[Generation]:
    """Return the file's answers to a suite, as a run would record them."""
    checkpoint, seed = plan.base, plan.config.seed
    requests = {request.key: request for request in make_requests([suite], {}, seed)}
    identity = plan.groups[0].sha256(seed)
    engine = ReplayEngine()
    engine.load(checkpoint)
    return [
        as_generation(checkpoint, reply, request_sha256(checkpoint, requests[reply.key], identity))
        for reply in engine.generate(list(requests.values()))
        if isinstance(reply, Completion)
    ]


def _manifest(plan: Plan, infos: list[MetricInfo]) -> RunManifest:
    """Return the plan's manifest as of a run that is complete, without judges."""
    (card,) = plan.manifest.suites
    computed = card.model_copy(update={"metrics": tuple(infos), "judges": ()})
    changes = {"suites": (computed,), "judges": (), "status": Status.COMPLETE, "counts": {}}
    return plan.manifest.model_copy(update=changes)
