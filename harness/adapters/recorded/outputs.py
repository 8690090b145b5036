"""The suite ``outputs``: the prompts that recorded outputs answer, in the order of the files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.adapters.recorded.answers import RecordedAnswer, Turns, prompt_of, system_text, turns
from harness.adapters.recorded.reading import read_recorded
from harness.errors import InputError
from harness.files import sha256_json
from harness.suites import OUTPUTS, DataRef, Suite, SuiteSpec
from harness.types import Example, Form, Loadable, Sampling

MAX_TOKENS = 1024
"""Limit for a checkpoint with weights that is asked the same prompts."""

DESCRIPTION = (
    "Prompts of the recorded outputs, each file's in its order. Recorded answers were sampled as "
    "their makers chose, which the files do not say; other checkpoints answer greedily. Between "
    "two neighbouring questions of a dialogue stood each model's own answer to the first."
)


def recorded_suite(checkpoints: Iterable[Loadable]) -> Suite:
    """Return the suite ``outputs`` of a run's checkpoints.

    Raises:
        InputError: no checkpoint's answers are on file, or a prompt cannot be known.
        DataError: a row is broken.
    """
    return outputs_suite(
        {
            checkpoint.spec.name: read_recorded(Path(checkpoint.folder), checkpoint.spec.model)
            for checkpoint in checkpoints
            if checkpoint.form == Form.RECORDED
        }
    )


def outputs_suite(answers: Mapping[str, Sequence[RecordedAnswer]]) -> Suite:
    """Return the suite whose examples are the prompts of all files, as first seen.

    Prompts are one where their turns and system messages are. A file without any system message
    does not say which was set: its prompts are one with those of the same turns. A prompt is
    named by its id, or by its hash where it has none or the id stands for another prompt already.
    Of each prompt as many samples are asked as every prompt of every file has. ROUGE is among the
    metrics where there is a reference, and the judge ``reference`` where every prompt has one. The
    judge ``reward`` is not: it is measured on dialogues of the HH kind, and reads each answer with
    a language model.

    Args:
        answers: by checkpoint.

    Raises:
        InputError: no answer, or answers whose prompt no file holds.
    """
    if not any(answers.values()):
        raise InputError(
            f"suite '{OUTPUTS}' takes its prompts from recorded outputs; no checkpoint is a file "
            "of them. Give one as --checkpoint NAME=FILE.json, or choose another suite."
        )
    examples = _examples(answers.values())
    _check_known(answers, {example.id for example in examples})
    spec = _spec(examples, _samples(answers))
    content = [spec.model_dump(mode="json"), [e.model_dump(mode="json") for e in examples]]
    return Suite(spec=spec, examples=examples, content_sha256=sha256_json(content))


def _examples(files: Iterable[Sequence[RecordedAnswer]]) -> tuple[Example, ...]:
    by_prompt: dict[Turns, Example] = {}
    alike: dict[Turns, list[Turns]] = defaultdict(list)
    taken: set[str] = set()
    # Files that say their system messages go first, so that the others' prompts find theirs.
    for found in sorted(files, key=_silent):
        silent = _silent(found)
        for answer in (answer for answer in found if answer.chat):
            prompt, same = prompt_of(answer.chat), alike[turns(answer.chat)]
            if prompt not in same and not (silent and same):
                by_prompt[prompt] = _example(answer, prompt, taken)
                taken.add(by_prompt[prompt].id)
                same.append(prompt)
            for one in same if silent else [prompt]:
                by_prompt[one] = _with_reference(by_prompt[one], answer.reference)
    return tuple(by_prompt.values())


def _silent(answers: Sequence[RecordedAnswer]) -> bool:
    return not any(system_text(answer.chat) for answer in answers)


def _with_reference(example: Example, reference: str | None) -> Example:
    if example.reference is not None or reference is None:
        return example
    return example.model_copy(update={"reference": reference})


def _example(answer: RecordedAnswer, prompt: Turns, taken: set[str]) -> Example:
    name = answer.id
    if name is None or name in taken:
        name = f"prompt-{sha256_json(prompt)[:16]}"
    return Example(id=name, messages=answer.chat, reference=answer.reference, unit=answer.dialogue)


def _check_known(answers: Mapping[str, Sequence[RecordedAnswer]], ids: set[str]) -> None:
    for checkpoint, found in answers.items():
        strange = [a for a in found if not a.chat and a.id not in ids]
        if strange:
            raise InputError(
                f"checkpoint '{checkpoint}': {len(strange)} recorded answers have no prompt (first "
                f"id: {strange[0].id}). Put the questions beside them, as question.jsonl beside "
                "MT-Bench answers or examples.jsonl beside a run's generations.jsonl."
            )


def _samples(answers: Mapping[str, Sequence[RecordedAnswer]]) -> int:
    counts = (Counter((a.id, prompt_of(a.chat)) for a in found) for found in answers.values())
    return min(number for count in counts for number in count.values())


def _spec(examples: Sequence[Example], samples: int) -> SuiteSpec:
    referenced = sum(example.reference is not None for example in examples)
    complete = referenced == len(examples)
    return SuiteSpec(
        name=OUTPUTS,
        version=1,
        title="Recorded outputs",
        description=DESCRIPTION,
        data=DataRef(path="the checkpoints' files", licence="as the files'"),
        sampling=Sampling(temperature=0.0, max_tokens=MAX_TOKENS, samples=samples),
        metrics=("length", "distinct", *(("rouge",) if referenced else ())),
        judges=("reference",) if complete else (),
        primary=("rouge_l",) if complete else ("characters",),
    )
