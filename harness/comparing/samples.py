"""Answers of all checkpoints to the same prompts, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from harness.alignment import AlignedRun
from harness.types import Example, Role, SampleAnswers


def samples(run: AlignedRun, shown: int) -> Iterator[SampleAnswers]:
    """Yield the first ``shown`` prompts of each subset with the first answers to them."""
    for card in run.manifest.suites:
        for example in _first_of_each_subset(run.examples[card.name], shown):
            found = {name: run.answers(card.name, name) for name in run.checkpoints}
            yield SampleAnswers(
                suite=card.name,
                example_id=example.id,
                prompt=prompt_text(example),
                reference=example.reference,
                answers={
                    name: answers[example.id, 0].text
                    for name, answers in found.items()
                    if (example.id, 0) in answers
                },
            )


def _first_of_each_subset(examples: Sequence[Example], shown: int) -> Iterator[Example]:
    taken: Counter[str | None] = Counter()
    for example in examples:
        taken[example.subset] += 1
        if taken[example.subset] <= shown:
            yield example


def prompt_text(example: Example) -> str:
    """Return the prompt as plain text: the user's message, or all turns of a longer dialogue."""
    spoken = [m for m in example.messages if m.role != Role.SYSTEM]
    if len(spoken) == 1:
        return spoken[0].content
    return "\n".join(f"{m.role.capitalize()}: {m.content}" for m in example.messages)
