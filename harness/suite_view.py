"""What a suite asks: counts, lengths of prompts, and one prompt as a checkpoint reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from harness.files import sha256_file
from harness.judges import Judge
from harness.metrics import Metric
from harness.prompts import checkpoint_tokenizer, later_lengths, render_suite
from harness.suites import Suite, SuiteSpec
from harness.suites.data import find_data, read_rows
from harness.suites.rows import read_examples
from harness.types import Example, Form, JudgeInfo, Loadable, MetricInfo, Record
from harness.types.records import DataUsed

NO_CHECKPOINT = "no checkpoint was given whose tokenizer could count them"


class Lengths(Record):
    """Lengths of prompts, in one unit.

    Attributes:
        prompts: how many were measured.
        total: of all of them together.
    """

    prompts: int
    median: float
    longest: int
    total: int


class Rendering(Record):
    """Prompts as a checkpoint reads them.

    Attributes:
        checkpoint: its name; None where none was given.
        tokens: of the prompts that need no answer of the model's own; None with a ``reason``.
        longest_later: longest that a later question of a dialogue can become, in tokens, with the
            longest answers before it; None where there is none.
        example_id: of the prompt that is shown.
        text: that prompt, special tokens included; its messages where there is no tokenizer.
    """

    checkpoint: str | None = None
    tokens: Lengths | None = None
    reason: str | None = None
    longest_later: int | None = None
    example_id: str
    text: str


class SuiteView(Record):
    """A suite of prompts as it would be asked.

    Attributes:
        dialogues: independent units among the examples: a dialogue of several questions is one.
        subsets: examples by subset; empty where the suite has none.
        used: the file that was read, its hash, and the rows that became no example.
        characters: of the prompts, the questions before a later one included.
    """

    spec: SuiteSpec
    metrics: tuple[MetricInfo, ...]
    judges: tuple[JudgeInfo, ...]
    content_sha256: str
    examples: int
    dialogues: int
    subsets: dict[str, int]
    used: DataUsed
    characters: Lengths
    rendering: Rendering

    def row(self) -> dict[str, Any]:
        """Return JSON: the declaration's own keys, and beside them what was found."""
        found = self.model_dump(mode="json", exclude={"spec", "metrics", "judges"})
        infos = {
            "metric_definitions": [info.model_dump(mode="json") for info in self.metrics],
            "judge_definitions": [info.model_dump(mode="json") for info in self.judges],
        }
        return self.spec.model_dump(mode="json") | found | infos


def view(
    suite: Suite,
    used: DataUsed,
    metrics: Mapping[str, Metric],
    judges: Mapping[str, Judge],
    checkpoint: Loadable | None = None,
) -> SuiteView:
    """Return what a suite asks.

    Args:
        used: see `data_used`.
        metrics, judges: those that the suite names, among others.
        checkpoint: whose tokenizer and chat template the prompts are put in.

    Raises:
        CheckpointError: the checkpoint cannot render a prompt.
    """
    subsets = Counter(e.subset for e in suite.examples if e.subset is not None)
    return SuiteView(
        spec=suite.spec,
        metrics=tuple(info for name in suite.spec.metrics for info in metrics[name].info),
        judges=tuple(judges[name].info for name in suite.spec.judges),
        content_sha256=suite.content_sha256,
        examples=len(suite.examples),
        dialogues=dialogues(suite),
        subsets=dict(subsets),
        used=used,
        characters=_lengths(sum(len(m.content) for m in e.messages) for e in suite.examples),
        rendering=_rendering(suite, checkpoint),
    )


def dialogues(suite: Suite) -> int:
    """Return the number of independent units: a dialogue of several questions is one."""
    return len({example.unit or example.id for example in suite.examples})


def data_used(suite: Suite, path: Path) -> DataUsed:
    """Return the file that a suite's examples were read from, and its rows that became none.

    Args:
        path: of the suite's YAML, beside which its own data lie.

    Raises:
        InputError, DataError: as `harness.suites.load_suite`.
    """
    if suite.used is not None:
        return suite.used
    found = find_data(suite.spec, path.parent, None)
    rows = read_rows(found.path)
    _, left_out = read_examples(found.path, rows, suite.spec)
    digest = sha256_file(found.path)
    return DataUsed(source=found.source, sha256=digest, rows=len(rows), left_out=dict(left_out))


def _lengths(values: Iterable[int]) -> Lengths:
    found = list(values)
    return Lengths(prompts=len(found), median=median(found), longest=max(found), total=sum(found))


def _rendering(suite: Suite, checkpoint: Loadable | None) -> Rendering:
    first = suite.examples[0]
    if checkpoint is None or checkpoint.form is not Form.WEIGHTS:
        return Rendering(
            checkpoint=None if checkpoint is None else checkpoint.spec.name,
            reason=NO_CHECKPOINT if checkpoint is None else _elsewhere(checkpoint),
            example_id=first.id,
            text=messages_text(first),
        )
    tokenizer = checkpoint_tokenizer(checkpoint)
    prompts = render_suite(checkpoint, suite, tokenizer)
    return Rendering(
        checkpoint=checkpoint.spec.name,
        tokens=_lengths(map(len, prompts.values())),
        longest_later=max(later_lengths(suite, tokenizer).values(), default=None),
        example_id=first.id,
        text=str(tokenizer.decode(prompts[first.id])),
    )


def _elsewhere(checkpoint: Loadable) -> str:
    what = "an endpoint" if checkpoint.form is Form.ENDPOINT else "a file of recorded answers"
    return f"'{checkpoint.spec.name}' is {what}, whose tokenizer is not here"


def messages_text(example: Example) -> str:
    """Return the chat of an example, each turn after its role."""
    return "\n".join(f"{m.role.value}: {m.content}" for m in example.messages)
