"""Suites that lm-eval runs, within a run: what is planned, and what is still to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import plugins
from harness.capability.loading import documents_sha256, load_tasks, task_examples
from harness.capability.tasks import CapabilitySuite, load_capability_suite
from harness.engines import Engine
from harness.errors import InputError
from harness.files import sha256_json
from harness.groups import EngineGroup
from harness.types import PROMPTS_CUT, Example, Form, Loadable, Score, SuiteCard
from harness.types.records import DataUsed

FOLDER = "lm_eval"
"""Below a run folder: lm-eval's own files, by suite and checkpoint."""

CONTEXT = 4096
"""Tokens that a prompt with its solved examples is given room for, where the model has as many."""

RUNNER = "lm-eval"

NO_LOGPROBS = "lm-eval's tasks read the log-probabilities of given texts, which it does not tell"


@dataclass(frozen=True)
class PlannedTasks:
    """A suite of lm-eval's tasks with the documents that are evaluated.

    Attributes:
        documents_sha256: hash of all documents of the tasks that are evaluated, answers and solved
            examples included.
        data: folder of local data; None where lm-eval fetches its own.
        limit: most documents a task.
    """

    suite: CapabilitySuite
    examples: tuple[Example, ...]
    documents_sha256: str
    data: Path | None
    limit: int | None

    @property
    def name(self) -> str:
        """The suite's."""
        return self.suite.spec.name

    def card(self) -> SuiteCard:
        """Return the suite as it is run."""
        spec = self.suite.spec
        examples = [example.model_dump(mode="json") for example in self.examples]
        content = [self.suite.content_sha256, examples, self.documents_sha256]
        return SuiteCard(
            name=spec.name,
            version=spec.version,
            title=spec.title,
            content_sha256=sha256_json(content),
            examples=len(self.examples),
            sampling=None,
            metrics=spec.metrics,
            judges=(),
            primary=spec.primary,
            has_reference=False,
            licence=spec.licence,
            used=self._used,
            runner=RUNNER,
        )

    @property
    def _used(self) -> DataUsed:
        place = "lm-eval's own data sets" if self.data is None else f"{self.data.name}/"
        return DataUsed(source=place, sha256=self.documents_sha256, rows=len(self.examples))


def plan_tasks(path: Path, data: Path | None, limit: int | None) -> PlannedTasks:
    """Return a suite that lm-eval runs, its tasks and documents loaded and checked.

    Raises:
        InputError: a wrong declaration, unknown task, or data that cannot be had or used.
        DataError: a wrong row of a local file.
    """
    suite = load_capability_suite(path)
    tasks = load_tasks(suite, data, limit)
    examples = tuple(example for task in tasks for example in task_examples(task))
    return PlannedTasks(suite, examples, documents_sha256(tasks), data, limit)


def check_groups(tasks: Sequence[PlannedTasks], groups: Iterable[EngineGroup]) -> None:
    """Refuse checkpoints with weights whose engine cannot read what lm-eval's tasks need.

    Raises:
        InputError: names checkpoint, suite and what to do.
    """
    for group in groups if tasks else ():
        for checkpoint in group.checkpoints:
            if checkpoint.lora is not None:
                raise InputError(
                    f"'{checkpoint.spec.name}' on '{tasks[0].name}': which tokens are the "
                    "likeliest cannot be read beside an unmerged LoRA; leave out merge=false."
                )
        kind = plugins.load("engines", group.engine)
        if group.form is Form.WEIGHTS and not hasattr(kind, "token_readings"):
            raise InputError(
                f"engine '{group.engine}' cannot tell the likeliest tokens, which "
                f"'{tasks[0].name}' needs. Name vllm or transformers."
            )


class TaskStage:
    """Runs what is missing of the planned tasks on an engine that holds a checkpoint.

    Args:
        scored: identities of the scores there are; see ``harness.store.SCORES``.
        append: keeps scores.
        note: keeps an event of the run with its facts.
    """

    def __init__(
        self,
        tasks: Sequence[PlannedTasks],
        folder: Path,
        seed: int,
        scored: Callable[[], set[tuple[Any, ...]]],
        append: Callable[[Iterable[Score]], None],
        note: Callable[..., None],
    ) -> None:
        self.tasks = tasks
        self.folder = folder
        self.seed = seed
        self.scored = scored
        self.append = append
        self.note = note

    def missing(self, checkpoint: Loadable) -> list[PlannedTasks]:
        """Return the suites of which a checkpoint lacks a score."""
        return [tasks for tasks in self.tasks if not self._done(tasks, checkpoint.spec.name)]

    def _done(self, tasks: PlannedTasks, name: str) -> bool:
        present, primary = self.scored(), tasks.suite.spec.primary[0]
        return all((tasks.name, primary, name, e.id, -1) in present for e in tasks.examples)

    def work(self, engine: Engine, checkpoint: Loadable, max_model_len: int) -> None:
        """Evaluate the checkpoint that an engine holds on what it lacks.

        Raises:
            InputError: as :func:`harness.capability.evaluate.evaluate`.
            EngineError: the engine failed; what other suites gave is kept.
        """
        from harness.capability.evaluate import evaluate

        for tasks in self.missing(checkpoint):
            found = evaluate(
                engine,
                checkpoint,
                tasks.suite,
                max_model_len=max_model_len,
                limit=tasks.limit,
                data=tasks.data,
                out=self.folder / FOLDER / tasks.name,
                seed=self.seed,
            )
            if found.prompts_cut:
                self.note(
                    PROMPTS_CUT,
                    checkpoint=checkpoint.spec.name,
                    suite=tasks.name,
                    prompts=found.prompts_cut,
                    max_model_len=max_model_len,
                )
            self.append(found.scores)

    def out_of_reach(self, checkpoint: Loadable) -> list[Score]:
        """Return the scores, without value, of a checkpoint whose weights are not here."""
        return [
            Score(
                checkpoint=checkpoint.spec.name,
                suite=tasks.name,
                metric=info.key,
                example_id=example.id,
                value=None,
                reason=NO_LOGPROBS,
            )
            for tasks in self.missing(checkpoint)
            for info in tasks.suite.spec.metrics
            for example in tasks.examples
        ]
