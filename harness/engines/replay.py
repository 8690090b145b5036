"""The engine that answers from a file: outputs recorded earlier, matched to what is asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.adapters.recorded.adapter import identity
from harness.adapters.recorded.answers import RecordedAnswer, Turns, system_text, turns
from harness.adapters.recorded.reading import read_recording
from harness.engines import Completion, Failure, Request, split_key
from harness.errors import EngineError, InputError
from harness.types import Form, Loadable, Message


class Answers:
    """Recorded answers by id and by prompt.

    A file whose lowest sample number is 1 counts its samples from 1. Where no prompt has two
    answers, or numbers reach twice as many as any has, they number something else (rows, seeds),
    and place counts.
    """

    def __init__(self, answers: Sequence[RecordedAnswer]) -> None:
        self._by_id: dict[str, list[RecordedAnswer]] = defaultdict(list)
        self._by_prompt: dict[Turns, list[RecordedAnswer]] = defaultdict(list)
        for answer in sorted(answers, key=lambda a: a.sample or 0):
            if answer.id is not None:
                self._by_id[answer.id].append(answer)
            self._by_prompt[turns(answer.chat)].append(answer)
        numbers = [answer.sample or 0 for answer in answers]
        self._first = int(min(numbers, default=0) == 1)
        prompts = Counter((a.id, system_text(a.chat), turns(a.chat)) for a in answers)
        most = max(prompts.values(), default=0)
        self._numbered = most > 1 and max(numbers) - self._first < 2 * most

    def find(self, example_id: str, messages: Sequence[Message]) -> list[RecordedAnswer] | str:
        """Return the answers to a prompt by sample, or why there is none.

        The id goes first, then the text of the prompt. An id alone is trusted only where the
        file does not hold the prompt: where it holds another, that answer is not given.
        """
        named = self._by_id.get(example_id, [])
        if found := [answer for answer in named if answer.answers(messages) is not False]:
            return _under_one_system(found, messages)
        asked = self._by_prompt.get(turns(messages), [])
        if found := [answer for answer in asked if answer.answers(messages)]:
            return _under_one_system(found, messages)
        if named:
            return f"the file has another prompt under the id '{example_id}'"
        return f"the file has no answer to '{example_id}', neither by id nor by prompt"

    def answer(
        self, example_id: str, messages: Sequence[Message], sample: int
    ) -> RecordedAnswer | str:
        """Return the answer of that sample number, from 0, to a prompt, or why there is none.

        Where several ids of the file hold the prompt, each numbers its own samples, and their
        place counts.
        """
        found = self.find(example_id, messages)
        if isinstance(found, str):
            return found
        numbers = [(answer.sample or 0) - self._first for answer in found]
        if not self._numbered or len(set(numbers)) < len(numbers):
            numbers = list(range(len(found)))
        if sample not in numbers:
            return f"sample {sample} (from 0) is not among the {len(found)} of the file"
        return found[numbers.index(sample)]


def _under_one_system(
    found: list[RecordedAnswer], messages: Sequence[Message]
) -> list[RecordedAnswer] | str:
    """Return the answers under the system message that is asked, else under the only other."""
    asked = system_text(messages)
    if exact := [answer for answer in found if system_text(answer.chat) == asked]:
        return exact
    if len({system_text(answer.chat) for answer in found}) > 1:
        return "the file has the prompt under several system messages, and it is asked without"
    return found


class ReplayEngine:
    """Answers every request from the checkpoint's file, or says why it cannot.

    Sampling parameters and seeds are not looked at: the answers are what they are.
    """

    def __init__(self) -> None:
        self._answers: Answers | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name alone: the answers are decided by the file, whose hash is the checkpoint's."""
        return {"name": "replay"}

    def load(self, checkpoint: Loadable) -> bool:
        """Read the checkpoint's file; nothing is started.

        Raises:
            EngineError: the checkpoint is not a file of outputs, or the file has changed.
            DataError: a row is broken.
        """
        self.close()
        name, path = checkpoint.spec.name, Path(checkpoint.folder)
        if checkpoint.form != Form.RECORDED:
            raise EngineError(f"'{name}' is not a file of recorded outputs; it cannot be replayed.")
        recording = read_recording(path, checkpoint.spec.model)
        if identity(path, recording, checkpoint.spec.model) != checkpoint.weights_sha256:
            raise EngineError(f"'{name}': {path} has changed since the run began. Start it again.")
        self._answers = Answers(recording.answers)
        return False

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion | Failure]:
        """Yield the recorded answer to each request, in order.

        A request's example id and sample are read from its key. A failure is final: the file
        does not hold the answer, or holds one to another prompt.

        Raises:
            EngineError: nothing is loaded, or a request comes without its chat.
        """
        if self._answers is None:
            raise EngineError("the replay engine is asked before a file is loaded.")
        if any(not request.messages for request in requests):
            raise EngineError("recorded answers are found by the chat, and a request has none.")
        for request in requests:
            yield _reply(request, self._answers)

    def close(self) -> None:
        """Forget the file."""
        self._answers = None


def check_answered(checkpoints: Iterable[Loadable], requests: Sequence[Request]) -> None:
    """Refuse a file of recorded outputs that answers none of the requests.

    Raises:
        InputError: names the first such file, and why its first answer was not found.
        DataError: a row is broken.
    """
    for checkpoint in checkpoints:
        if checkpoint.form is Form.RECORDED and requests:
            _check_answered(checkpoint, requests)


def _check_answered(checkpoint: Loadable, requests: Sequence[Request]) -> None:
    path = Path(checkpoint.folder)
    answers = Answers(read_recording(path, checkpoint.spec.model).answers)
    if any(isinstance(_reply(request, answers), Completion) for request in requests):
        return
    first = _reply(requests[0], answers)
    assert isinstance(first, Failure)
    suites = ", ".join(dict.fromkeys(split_key(request.key)[0] for request in requests))
    raise InputError(
        f"'{checkpoint.spec.name}': {path} answers no prompt of suite {suites} (first: "
        f"{'/'.join(first.key.splitlines())}: {first.reason}). An answer is found by the "
        "example's id, or by the prompt's text, the same but for outer space. Give the file of "
        "answers to these prompts, or choose suite 'outputs', which takes its prompts from the "
        "file."
    )


def _reply(request: Request, answers: Answers) -> Completion | Failure:
    _, example_id, sample = split_key(request.key)
    found = answers.answer(example_id, request.messages, sample)
    if isinstance(found, str):
        return Failure(key=request.key, reason=found, final=True)
    return _completion(request.key, found)


def _completion(key: str, answer: RecordedAnswer) -> Completion | Failure:
    if answer.text is None:
        return Failure(key=key, reason="the recorded answer is null", final=True)
    return Completion(
        key=key,
        text=answer.text,
        finish_reason=answer.finish_reason,
        tokens=answer.tokens,
    )
