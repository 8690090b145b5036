"""lm-eval's tasks over files of the user's own: their data exchanged, all else as it is.

Solved examples come from a file of training rows where the folder has one. Where it has none, the
last rows of the file are set aside for them and not evaluated: one more than the task is asked
with (lm-eval draws one more, to leave out the document itself), and of MMLU up to as many a
subject, at most a quarter of its rows, filled up from the subjects that follow. Which rows are set
aside does not depend on how many are evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.capability import rows
from harness.errors import DataError, InputError
from harness.files import json_lines, sha256_file

if TYPE_CHECKING:
    from harness.capability.tasks import TaskChoice

GROUPED = "mmlu"
"""The group whose file holds the rows of all its tasks, by subject."""


@dataclass(frozen=True)
class LocalForm:
    """How a task's data lie in a folder.

    Attributes:
        hub: the data set that lm-eval fetches, and its configuration.
        files: names of the evaluated file. solved: of a file of solved examples.
        evaluated, shown: lm-eval's names of the splits that the rows are put in.
        convert: a row of the file as the hub has it.
    """

    hub: str
    files: tuple[str, ...]
    solved: tuple[str, ...]
    evaluated: str
    shown: str
    convert: rows.Converter

    @property
    def wanted(self) -> str:
        """Which files a folder of local data holds, in words."""
        solved = f"; solved examples in {_names(self.solved)}" if self.solved else ""
        return f"{_names(self.files)}, split {self.evaluated} of {self.hub}{solved}"


FORMS = {
    "arc_challenge": LocalForm(
        "allenai/ai2_arc (ARC-Challenge)",
        ("arc_challenge_test",),
        ("arc_challenge_train",),
        "test",
        "train",
        rows.arc,
    ),
    "hellaswag": LocalForm(
        "Rowan/hellaswag",
        ("hellaswag_val", "hellaswag_validation"),
        ("hellaswag_train",),
        "validation",
        "train",
        rows.hellaswag,
    ),
    GROUPED: LocalForm(
        "cais/mmlu", ("mmlu_test",), ("mmlu_dev", "mmlu_train"), "test", "dev", rows.mmlu
    ),
    "truthfulqa_mc2": LocalForm(
        "truthfulqa/truthful_qa (multiple_choice)",
        ("truthfulqa", "truthfulqa_validation"),
        (),
        "validation",
        "train",
        rows.truthfulqa,
    ),
    "winogrande": LocalForm(
        "allenai/winogrande (winogrande_xl)",
        ("winogrande_dev", "winogrande_validation"),
        ("winogrande_train",),
        "validation",
        "train",
        rows.winogrande,
    ),
    "gsm8k": LocalForm(
        "openai/gsm8k (main)",
        ("gsm8k_test",),
        ("gsm8k_train", "gsm8k_train_fewshot"),
        "test",
        "train",
        rows.gsm8k,
    ),
}
"""By lm-eval's name of the task."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LocalData:
    """One task's rows in the hub's columns.

    Attributes:
        tables: by lm-eval's name of the task, the evaluated rows and those for solved examples.
        sha256: by file name, of what was read.
    """

    form: LocalForm
    tables: Mapping[str, tuple[Rows, Rows]]
    sha256: Mapping[str, str]

    def of(self, task: str) -> tuple[Rows, Rows]:
        """Return the rows of one of lm-eval's tasks.

        Raises:
            InputError: the files hold none.
        """
        if task not in self.tables:
            raise InputError(f"{' and '.join(self.sha256)} have no row for lm-eval's task '{task}'")
        return self.tables[task]


def read_local(folder: Path, choice: TaskChoice) -> LocalData:
    """Return a task's rows from a folder; read and checked whole.

    Raises:
        InputError: a task whose files are not known, a file that is missing or has too few rows.
        DataError: a wrong row (file and line are named).
    """
    if choice.task not in FORMS:
        listed = ", ".join(FORMS)
        raise InputError(
            f"local data are read for {listed}; '{choice.task}' is none of them. Leave out its "
            "--data, so that lm-eval fetches its data set."
        )
    form = FORMS[choice.task]
    path = _find(folder, form.files)
    if path is None:
        raise InputError(f"{folder} has no file {_names(form.files)} for the task '{choice.task}'")
    solved = _find(folder, form.solved)
    made = _read(path, form.convert)
    shown = [] if solved is None else _read(solved, form.convert)
    split = _by_subject if choice.task == GROUPED else _whole
    tables = split(path, made, shown, choice)
    used = [path, *([] if solved is None else [solved])]
    return LocalData(form, tables, {p.name: sha256_file(p) for p in used})


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    files = [folder / f"{name}.jsonl{packed}" for name in names for packed in ("", ".gz")]
    return next((path for path in files if path.is_file()), None)


def _names(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}.jsonl'" for name in names)


def _read(path: Path, convert: rows.Converter) -> Rows:
    made = []
    for number, row in json_lines(path):
        try:
            made.append(convert(row))
        except KeyError as error:
            have = ", ".join(sorted(row))
            raise DataError(path, number, f"column {error} is missing (has: {have})") from error
        except ValueError as error:
            raise DataError(path, number, str(error)) from error
    if not made:
        raise DataError(path, None, "the file is empty: no row found")
    return made


def _whole(path: Path, made: Rows, shown: Rows, choice: TaskChoice) -> dict[str, tuple[Rows, Rows]]:
    if shown or not choice.shots:
        return {choice.task: (made, shown)}
    aside = choice.shots + 1
    if len(made) <= aside:
        raise InputError(
            f"{path} has {len(made)} rows; {aside} are set aside for the solved examples of "
            f"'{choice.task}' ({choice.shots}-shot). Give more rows, or a file of solved examples "
            f"beside it: {_names(FORMS[choice.task].solved)}."
        )
    return {choice.task: (made[:-aside], made[-aside:])}


def _by_subject(
    path: Path, made: Rows, shown: Rows, choice: TaskChoice
) -> dict[str, tuple[Rows, Rows]]:
    """Return MMLU's tables: a task a subject, its own solved examples before others'."""
    asked = _grouped(made)
    own = _grouped(shown)
    if not shown and choice.shots:
        sizes = {s: min(choice.shots, max(1, len(r) // 4)) for s, r in asked.items()}
        own = {s: r[-sizes[s] :] for s, r in asked.items()}
        asked = {s: r[: -sizes[s]] for s, r in asked.items()}
    subjects = list(asked)
    tables = {}
    for place, subject in enumerate(subjects):
        following = subjects[place:] + subjects[:place]
        examples = [row for name in following for row in own.get(name, [])][: choice.shots]
        if not asked[subject] or len(examples) < choice.shots:
            raise InputError(
                f"{path} has too few rows of subject '{subject}' to set aside solved examples "
                f"({choice.shots}-shot); give {_names(FORMS[GROUPED].solved)} beside it."
            )
        tables[f"{GROUPED}_{subject}"] = (asked[subject], examples)
    return tables


def _grouped(made: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in made:
        found.setdefault(row["subject"], []).append(row)
    return found


def local_task(data: LocalData) -> type:
    """Return lm-eval's kind of task that takes its rows from ``data`` and downloads nothing."""
    from datasets import Dataset  # type: ignore[import-untyped]
    from lm_eval.api.task import ConfigurableTask  # type: ignore[import-untyped]

    class LocalTask(ConfigurableTask):  # type: ignore[misc]
        """A task as configured, over local rows."""

        def __init__(self, config: dict[str, Any]) -> None:
            known = {key: value for key, value in config.items() if key != "class"}
            known["metadata"] = known.get("metadata", {}) | {"local_data": dict(data.sha256)}
            super().__init__(config=known)

        def download(self, dataset_kwargs: Any = None, **_: Any) -> None:
            """Put the local rows in the place of the hub's."""
            asked, shown = data.of(self.config.task)
            # Without shots no row is shown; lm-eval wants the split all the same.
            self.dataset = {
                data.form.shown: Dataset.from_list(shown or asked),
                data.form.evaluated: Dataset.from_list(asked),
            }

    return LocalTask
