"""What lm-eval's tasks ask: counts, the data's hash, and a prompt with its solved examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.capability.loading import documents_sha256, first_prompt, load_tasks
from harness.capability.tasks import load_capability_suite
from harness.prompts import checkpoint_tokenizer
from harness.types import Form, Loadable, Record


class FirstPrompt(Record):
    """The first prompt of a task.

    Attributes:
        documents: how many the task has, or as many as are taken of it.
        text: the prompt with its solved examples, without a chat template.
        tokens: of that text; None where there is no tokenizer.
    """

    task: str
    documents: int
    example_id: str
    text: str
    tokens: int | None = None


class TasksView(Record):
    """A suite of lm-eval's tasks as it would be asked; ``documents_sha256`` as in a run."""

    documents_sha256: str
    prompts: tuple[FirstPrompt, ...]

    @property
    def documents(self) -> int:
        """Documents of all tasks."""
        return sum(prompt.documents for prompt in self.prompts)

    def lines(self) -> Iterator[str]:
        """Yield it as lines of text, the prompt that is shown last."""
        yield f"  data: {self.documents:,} documents, SHA-256 {self.documents_sha256}"
        for prompt in self.prompts:
            count = "tokens not known" if prompt.tokens is None else f"{prompt.tokens:,} tokens"
            yield (
                f"  {prompt.task}: {prompt.documents:,} documents; {prompt.example_id} with its "
                f"solved examples {count}"
            )
        yield f"  first prompt: {self.prompts[0].example_id}"
        yield self.prompts[0].text


def view_tasks(
    path: Path, data: Path | None, limit: int | None, checkpoint: Loadable | None
) -> TasksView:
    """Return what a suite of lm-eval's tasks asks.

    Args:
        data: folder of local data; None lets lm-eval fetch its own data sets.
        limit: most documents a task; see `load_tasks`.
        checkpoint: whose tokenizer counts the tokens; an endpoint or a file has none.

    Raises:
        InputError: a wrong declaration, unknown task, or data that cannot be had or used.
        DataError: a wrong row of a local file.
    """
    suite = load_capability_suite(path)
    tasks = load_tasks(suite, data, limit)
    weights = checkpoint is not None and checkpoint.form is Form.WEIGHTS
    tokenizer = checkpoint_tokenizer(checkpoint) if checkpoint and weights else None
    prompts = []
    for task in tasks:
        example_id, text = first_prompt(task, suite)
        prompts.append(
            FirstPrompt(
                task=task.choice.task,
                documents=sum(task.counts),
                example_id=example_id,
                text=text,
                tokens=None if tokenizer is None else len(tokenizer(text).input_ids),
            )
        )
    return TasksView(documents_sha256=documents_sha256(tasks), prompts=tuple(prompts))
