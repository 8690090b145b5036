"""A judge in this machine's engine: log-probabilities of the labels as the reply's first words.

Constrained by construction: no reply is sampled, so none can be unreadable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.engines import Engine, ReadableEngine
from harness.errors import CheckpointError, InputError
from harness.judges.llm.questions import Question, Reading
from harness.judges.llm.verdicts import Choice, weighed
from harness.prompts import answer_ids, check_bos, checkpoint_tokenizer, render
from harness.types import Form, Loadable, Message, Role

CHUNK = 64
"""Questions read at once: what a killed run loses."""


@dataclass(frozen=True)
class _Asked:
    """A question as token ids: the prompt, and each choice's label behind it."""

    question: Question
    prompt: list[int]
    labels: dict[Choice, list[int]]

    @property
    def length(self) -> int:
        return len(self.prompt) + max(map(len, self.labels.values()))


class InProcess:
    """Reads labels' log-probabilities from an engine, which it starts when it is first asked.

    Args:
        checkpoint: the judge's weights, ready to be loaded.
        engine: not shared: it holds the judge from the first question until ``close``.
        max_model_len: longest sequence that the engine takes, in tokens.

    Raises:
        InputError: the checkpoint has no weights here, or the engine cannot be read.
    """

    def __init__(self, checkpoint: Loadable, engine: Engine, max_model_len: int) -> None:
        if checkpoint.form is not Form.WEIGHTS:
            raise InputError(f"judge '{checkpoint.spec.name}' has no weights to load")
        if not isinstance(engine, ReadableEngine):
            raise InputError(
                f"judge '{checkpoint.spec.name}': this engine does not tell log-probabilities of "
                "given tokens. Name 'vllm' or 'transformers'."
            )
        self.checkpoint = checkpoint
        self._engine = engine
        self._readable: ReadableEngine = engine
        self._max_model_len = max_model_len
        self._held = False

    @property
    def model(self) -> str:
        """The checkpoint's name."""
        return self.checkpoint.spec.name

    @property
    def identity(self) -> Mapping[str, Any]:
        """Hashes of weights, template and tokenizer, the arithmetic, and the engine."""
        held = self.checkpoint
        return {
            "kind": "in process",
            "weights": held.weights_sha256,
            "template": held.template_sha256,
            "tokenizer": held.tokenizer_sha256,
            "dtype": held.spec.dtype.value,
            "engine": dict(self._engine.identity),
        }

    @cached_property
    def _tokenizer(self) -> Any:
        return checkpoint_tokenizer(self.checkpoint)

    def ask(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """Yield one reading a question; a prompt beyond the engine's context has no verdict.

        Raises:
            EngineError: the engine failed.
            InputError: the prompt wants more of a reply than one of its labels.
        """
        for start in range(0, len(questions), CHUNK):
            asked = [self._asked(question) for question in questions[start : start + CHUNK]]
            fitting = [a for a in asked if a.length <= self._max_model_len]
            yield from (self._too_long(a) for a in asked if a.length > self._max_model_len)
            if fitting:
                yield from self._read(fitting)

    def _asked(self, question: Question) -> _Asked:
        labels = question.prompt.labels
        if not labels:
            raise InputError(
                f"prompt '{question.prompt.name}' wants a reply that calls or explains; a judge in "
                "process is asked for a label. Take another prompt, or an endpoint."
            )
        prompt = self._rendered(question.messages)
        check_bos(self._tokenizer, prompt, f"judge '{self.model}'")
        ids = answer_ids(self._tokenizer, question.messages, list(labels))
        return _Asked(question, prompt, dict(zip(labels.values(), ids, strict=True)))

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        """Return a chat's token ids; for templates without a system turn, it opens the user's."""
        try:
            return render(self._tokenizer, messages)
        except CheckpointError:
            if messages[0].role is not Role.SYSTEM or len(messages) < 2:
                raise
        both = "\n\n".join(message.content for message in messages[:2])
        return render(self._tokenizer, [Message(role=Role.USER, content=both), *messages[2:]])

    def _too_long(self, asked: _Asked) -> Reading:
        reason = f"the prompt has {asked.length} tokens, beyond the {self._max_model_len} allowed"
        return Reading(key=asked.question.key, verdict=None, attempts=0, reason=reason)

    def _read(self, asked: Sequence[_Asked]) -> Iterator[Reading]:
        if not self._held:
            self._engine.load(self.checkpoint)
            self._held = True
        sequences = [[*a.prompt, *label] for a in asked for label in a.labels.values()]
        rows = iter(self._readable.prompt_logprobs(sequences))
        for a in asked:
            # A label of several tokens is as likely as its tokens one after the other.
            sums = {c: sum(next(rows)[-len(label) :]) for c, label in a.labels.items()}
            said = ", ".join(f"{choice}: {value:.4f}" for choice, value in sums.items())
            yield Reading(key=a.question.key, verdict=weighed(sums), reply=f"log P: {said}")

    def close(self) -> None:
        """End the engine; the next question starts it again."""
        if self._held:
            self._engine.close()
        self._held = False
