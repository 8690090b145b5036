"""A checkpoint evaluated by lm-eval on a running engine: its own files kept, scores by document."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.capability.loading import LoadedTask, chosen, load_tasks, task_manager
from harness.capability.quiet import offline, quiet, same_random_state
from harness.capability.tasks import AVERAGE, CapabilitySuite
from harness.engines import Engine, RankedEngine
from harness.engines.ranks import no_ranks
from harness.errors import InputError
from harness.files import atomic_folder
from harness.types import Loadable, Score

if TYPE_CHECKING:
    from harness.capability.model import EngineLM

log = logging.getLogger(__name__)

RESULTS = "results.json"
"""lm-eval's own results, in its own format."""

NO_NUMBER = "lm-eval has no finite value for the document"

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""By lm-eval's task name, what it logs of each document and filter."""


class Evaluation(NamedTuple):
    """The scores by document, and how many different prompts were cut on the left."""

    scores: list[Score]
    prompts_cut: int


def evaluate(
    engine: Engine,
    checkpoint: Loadable,
    suite: CapabilitySuite,
    *,
    max_model_len: int,
    limit: int | None,
    data: Path | None,
    out: Path,
    seed: int,
) -> Evaluation:
    """Run lm-eval on the checkpoint that an engine holds, and return the scores by document.

    lm-eval's ``results.json`` and ``samples_TASK.jsonl`` are kept under ``out/CHECKPOINT``, whole
    or not at all. A score of ``leaderboard_average`` repeats a document's score with one over the
    number of documents of its task for a weight, scaled to mean 1: the weighted mean is the
    unweighted average over the tasks.

    Args:
        engine: holds ``checkpoint``.
        max_model_len: longest prompt plus answer, in tokens; longer prompts are cut on the left.
        limit: most documents a task; see `load_tasks`.
        data: folder of local data; None lets lm-eval fetch its own data sets.
        seed: of tasks that sample; few-shot examples follow the suite's own seed.

    Raises:
        InputError: a checkpoint whose log-probabilities cannot be read with ranks; data that
            cannot be had or used; files that cannot be written.
        EngineError: the engine failed.
    """
    check_readable(engine, checkpoint)
    tasks = load_tasks(suite, data, limit)
    from harness.capability.model import EngineLM

    model = EngineLM(
        engine, checkpoint, max_model_len=max_model_len, suite=suite.spec.name, seed=seed
    )
    with contained(data), tempfile.TemporaryDirectory(prefix="tbpo-") as scratch:
        samples = _run(model, suite, tasks, seed, Path(scratch))
        _keep(Path(scratch), out / checkpoint.spec.name, list(samples))
    if model.cut:
        log.warning(
            "'%s', %s: %d prompts and their answers exceed max_model_len %d: cut on the left",
            checkpoint.spec.name,
            suite.spec.name,
            model.cut,
            max_model_len,
        )
    return Evaluation(scores(checkpoint.spec.name, suite, tasks, samples), model.cut)


def check_readable(engine: Engine, checkpoint: Loadable) -> None:
    """Refuse a checkpoint or an engine that lm-eval's tasks of choices cannot be asked of.

    Raises:
        InputError: says what to give instead.
    """
    name = checkpoint.spec.name
    if checkpoint.lora is not None:
        raise no_ranks(checkpoint)
    if not isinstance(engine, RankedEngine):
        raise InputError(
            f"'{name}': lm-eval's tasks need the log-probabilities of given texts, which its "
            "engine cannot tell; give the checkpoint's weights."
        )


@contextmanager
def contained(data: Path | None) -> Iterator[None]:
    """Silence lm-eval, keep its seeds to itself, and the network out where data are local."""
    with quiet(), same_random_state(), offline(data is not None):
        yield


def _run(
    model: EngineLM,
    suite: CapabilitySuite,
    tasks: Sequence[LoadedTask],
    seed: int,
    scratch: Path,
) -> Samples:
    """Run lm-eval, write its files to ``scratch`` and return what it logged of each document."""
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.loggers import EvaluationTracker  # type: ignore[import-untyped]

    tracker = EvaluationTracker(output_path=str(scratch))
    results = simple_evaluate(
        model=model,
        tasks=[task.item for task in tasks],
        samples=chosen(tasks),
        log_samples=True,
        apply_chat_template=suite.spec.chat_template,
        fewshot_as_multiturn=suite.spec.multiturn,
        evaluation_tracker=tracker,
        task_manager=task_manager(suite),
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=suite.spec.fewshot_seed,
    )
    samples: dict[str, list[dict[str, Any]]] = results.pop("samples")
    kept = {name: [dict(row) for row in rows] for name, rows in samples.items()}
    named = tracker.general_config_tracker
    named.model_name = model.checkpoint.spec.name
    named.model_name_sanitized = ""
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    return kept


def _keep(scratch: Path, folder: Path, names: Sequence[str]) -> None:
    """Move lm-eval's files into ``folder`` under names without a date.

    Raises:
        InputError: lm-eval could not write one; it only warns of that.
    """
    found = {_undated(path.name): path for path in scratch.iterdir()}
    expected = [RESULTS, *(f"samples_{name}.jsonl" for name in names)]
    if missing := [name for name in expected if name not in found]:
        raise InputError(f"lm-eval could not write {', '.join(missing)} for {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder) as made:
            for name in expected:
                shutil.move(found[name], made / name)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error


def _undated(name: str) -> str:
    """Return a file's name without lm-eval's date: ``results_2026-...json`` -> ``results.json``."""
    stem, _, _ = name.rpartition("_")
    return f"{stem}{Path(name).suffix}"


def scores(
    checkpoint: str, suite: CapabilitySuite, tasks: Sequence[LoadedTask], samples: Samples
) -> list[Score]:
    """Return the scores by document: each task's own key, then the average's."""
    found = [(task, list(_values(task, samples))) for task in tasks]
    total = sum(len(values) for _, values in found)
    made = []
    for task, values in found:
        for example_id, value in values:
            shared: dict[str, Any] = {
                "checkpoint": checkpoint,
                "suite": suite.spec.name,
                "example_id": example_id,
                "value": value,
                "reason": None if value is not None else NO_NUMBER,
            }
            made.append(Score(metric=task.choice.name, **shared))
            weight = total / (len(found) * len(values))
            made.append(Score(metric=AVERAGE, weight=weight, **shared))
    return made


def _values(task: LoadedTask, samples: Samples) -> Iterator[tuple[str, float | None]]:
    for leaf in task.leaves:
        for row in samples[leaf.config.task]:
            if row["filter"] == task.choice.filter:
                value = row[task.choice.metric]
                yield f"{task.prefix(leaf)}/{row['doc_id']}", _number(task, value)


def _number(task: LoadedTask, value: Any) -> float | None:
    """Return a document's value; None where it is no number of this world.

    Raises:
        InputError: a metric that has no value of its own for a document.
    """
    if not isinstance(value, Real | np.number | np.bool_):
        raise InputError(
            f"metric '{task.choice.metric}' of lm-eval's task '{task.choice.task}' is no average "
            "over documents; choose one that is, such as acc or exact_match."
        )
    found = float(value)
    return found if math.isfinite(found) else None
