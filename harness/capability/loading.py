"""lm-eval's tasks of a suite, loaded: its own configuration, shots as declared, data checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.capability.local import FORMS, GROUPED, LocalData, local_task, read_local
from harness.capability.quiet import offline, quiet, same_random_state
from harness.capability.tasks import CapabilitySuite, TaskChoice
from harness.errors import InputError, unknown_name
from harness.types import Example, Message, Role

FOLDERS = {
    "arc_challenge": "arc",
    "hellaswag": "hellaswag",
    GROUPED: "mmlu/default",
    "truthfulqa_mc2": "truthfulqa",
    "winogrande": "winogrande",
    "gsm8k": "gsm8k",
}
"""Where lm-eval keeps some tasks; to look through all of its folders takes half a minute."""


@dataclass(frozen=True)
class LoadedTask:
    """One of a suite's tasks or groups.

    Attributes:
        item: lm-eval's task or group.
        leaves: its tasks, in lm-eval's order; the task itself where it is no group.
        counts: documents of each leaf that are evaluated, from the first on.
    """

    choice: TaskChoice
    item: Any
    leaves: tuple[Any, ...]
    counts: tuple[int, ...]

    def prefix(self, leaf: Any) -> str:
        """Return what the ids of a task's documents begin with: ``mmlu/anatomy``."""
        own = str(leaf.config.task)
        if leaf is self.item:
            return own
        return f"{self.choice.task}/{own.removeprefix(f'{self.choice.task}_')}"


def load_tasks(
    suite: CapabilitySuite, data: Path | None, limit: int | None = None
) -> list[LoadedTask]:
    """Load a suite's tasks, each with its data.

    Args:
        data: folder of local data; None lets lm-eval fetch its own data sets.
        limit: most documents a task; of a group spread evenly over its tasks, of which those
            without a document are left out.

    Raises:
        InputError: unknown task, metric or filter; data that cannot be had or used.
        DataError: a wrong row of a local file.
    """
    tables = {} if data is None else {c.task: read_local(data, c) for c in suite.spec.tasks}
    with quiet(), same_random_state(), offline(data is not None):
        manager = task_manager(suite)
        loaded = [_load(suite, manager, c, tables.get(c.task), limit) for c in suite.spec.tasks]
    for task in loaded:
        _check(task)
    return loaded


def task_manager(suite: CapabilitySuite) -> Any:
    """Return lm-eval's index of tasks, over no more folders than the suite needs."""
    import lm_eval.tasks  # type: ignore[import-untyped]

    home = Path(lm_eval.tasks.__file__).parent
    names = [choice.task for choice in suite.spec.tasks]
    near = [home / FOLDERS[name] for name in names if name in FOLDERS]
    if len(near) == len(names) and all(folder.is_dir() for folder in near):
        return lm_eval.tasks.TaskManager(include_path=near, include_defaults=False)
    return lm_eval.tasks.TaskManager()


def _load(
    suite: CapabilitySuite,
    manager: Any,
    choice: TaskChoice,
    local: LocalData | None,
    limit: int | None,
) -> LoadedTask:
    from lm_eval.tasks._factory import TaskFactory  # type: ignore[import-untyped]

    known = [*manager.all_subtasks, *manager.all_groups]
    if choice.task not in known:
        raise unknown_name("lm-eval task", choice.task, known)
    changes: dict[str, Any] = {"num_fewshot": choice.shots}
    if local is not None:
        changes["class"] = local_task(local)
    try:
        # Not ``manager.load``, which takes changes for a whole configuration.
        index = manager.task_index
        item = TaskFactory().build(index[choice.task], overrides=changes, registry=index)
    except InputError:
        raise
    except Exception as error:  # hub, network and file systems each raise classes of their own
        if local is not None:
            raise
        raise _unfetched(suite, choice, error) from error
    leaves = tuple(item.get_all_tasks()) if choice.task in manager.all_groups else (item,)
    counts = _counts([len(leaf.task_docs) for leaf in leaves], limit)
    kept = {leaf: count for leaf, count in zip(leaves, counts, strict=True) if count}
    if len(kept) < len(leaves):
        _keep_only(item, kept)
    return LoadedTask(choice, item, tuple(kept), tuple(kept.values()))


def _counts(sizes: Sequence[int], limit: int | None) -> list[int]:
    """Return how many documents of each task are taken: ``limit`` in all, evenly if there are."""
    if limit is None or limit >= sum(sizes):
        return list(sizes)
    taken = [0] * len(sizes)
    while left := limit - sum(taken):
        places = [place for place, size in enumerate(sizes) if taken[place] < size]
        ends = [left * rank // len(places) for rank in range(len(places) + 1)]
        for place, start, end in zip(places, ends, ends[1:], strict=False):
            taken[place] += min(end - start, sizes[place] - taken[place])
    return taken


def _keep_only(group: Any, kept: Container[Any]) -> None:
    """Take all other tasks out of a group of lm-eval's, and what groups they leave empty."""
    for name in list(group.child_names):
        child = group.get(name)
        if hasattr(child, "child_names"):
            _keep_only(child, kept)
            if not len(child):
                group.pop(name)
        elif child not in kept:
            group.pop(name)


def _unfetched(suite: CapabilitySuite, choice: TaskChoice, error: Exception) -> InputError:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    form = FORMS.get(choice.task)
    files = f" with {form.wanted}" if form else ""
    return InputError(
        f"lm-eval could not load the data set of its task '{choice.task}' ({said}). Where there "
        f"is no network, give a folder of local copies{files}: --data {suite.spec.name}=DIR."
    )


def _check(task: LoadedTask) -> None:
    """Refuse a metric or a filter that a task does not have."""
    choice = task.choice
    for leaf in task.leaves:
        metrics = [str(name) for name in leaf.aggregation()]
        filters = [f["name"] for f in leaf.config.filter_list or ({"name": "none"},)]
        if choice.metric not in metrics:
            raise unknown_name(f"metric of lm-eval's task '{choice.task}'", choice.metric, metrics)
        if choice.filter not in filters:
            raise unknown_name(f"filter of lm-eval's task '{choice.task}'", choice.filter, filters)


def first_prompt(task: LoadedTask, suite: CapabilitySuite) -> tuple[str, str]:
    """Return the id of a task's first document and its prompt, solved examples included.

    A suite that puts prompts in a chat template has it without that template here.
    """
    leaf = task.leaves[0]
    with quiet(), same_random_state():
        leaf.set_fewshot_seed(seed=suite.spec.fewshot_seed)
        leaf.build_all_requests(samples=[0])
    return f"{task.prefix(leaf)}/0", str(leaf.instances[0].args[0])


def documents_sha256(tasks: Sequence[LoadedTask]) -> str:
    """Return the hash of all documents of loaded tasks, those of solved examples included."""
    digest = hashlib.sha256()
    with quiet(), same_random_state():
        for task in tasks:
            for leaf in task.leaves:
                shown = leaf.fewshot_docs() if task.choice.shots else ()
                for document in (*leaf.eval_docs, *(shown or ())):
                    text = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
                    digest.update(f"{leaf.config.task}\n{text}\n".encode())
    return digest.hexdigest()


def task_examples(task: LoadedTask) -> Iterator[Example]:
    """Yield the documents that are evaluated, without solved examples, in lm-eval's order.

    The id is ``TASK/NUMBER``, of a group ``GROUP/TASK/NUMBER``; the number is lm-eval's.
    """
    for leaf, count in zip(task.leaves, task.counts, strict=True):
        for number in range(count):
            message = Message(role=Role.USER, content=_asked(leaf, leaf.task_docs[number]))
            yield Example(
                id=f"{task.prefix(leaf)}/{number}", messages=(message,), subset=task.choice.task
            )


def _asked(leaf: Any, document: Any) -> str:
    """Return a document's prompt; where each choice makes its own, what they have in common."""
    text = leaf.doc_to_text(document)
    if isinstance(text, str):
        return text
    if leaf.config.should_decontaminate:
        return str(leaf.doc_to_decontamination_query(document))
    return "\n".join(leaf.doc_to_choice(document))


def chosen(tasks: Sequence[LoadedTask]) -> dict[str, list[int]] | None:
    """Return the places of the evaluated documents by lm-eval's task name; None for all."""
    if all(
        count == len(leaf.task_docs)
        for task in tasks
        for leaf, count in zip(task.leaves, task.counts, strict=True)
    ):
        return None
    return {
        leaf.config.task: list(range(count))
        for task in tasks
        for leaf, count in zip(task.leaves, task.counts, strict=True)
    }
