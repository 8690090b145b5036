"""An engine and a float32 model that answer by hashing: fast, deterministic, told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

from harness.engines import Completion, Request
from harness.engines.reference import Continuation
from harness.engines.vllm import EngineSettings
from harness.types import FinishReason, Loadable


class Killed(BaseException):
    """What a test raises to stop a run where it is."""


def fraction(*about: object) -> float:
    """Return a number in [0, 1) that depends on ``about`` alone."""
    digest = hashlib.sha256(repr(about).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def logprobs(weights: str, tokens: Sequence[int], start: int) -> list[float]:
    return [-10 * fraction(weights, i, tokens[i]) for i in range(start, len(tokens))]


class FakeEngine:
    """Stands for ``VllmEngine``; class attributes record what happened and where to fail.

    Attributes:
        fail_after: completions, counted over all calls, after which ``generate`` raises.
        chunks: what each call of ``generate`` was handed, by checkpoint.
    """

    fail_after: ClassVar[int | None] = None
    made: ClassVar[int] = 0
    started: ClassVar[int] = 0
    closed: ClassVar[int] = 0
    loads: ClassVar[list[str]] = []
    chunks: ClassVar[list[tuple[str, list[str]]]] = []

    @classmethod
    def forget(cls) -> None:
        cls.fail_after, cls.made, cls.started, cls.closed = None, 0, 0, 0
        cls.loads, cls.chunks = [], []

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        self.starts = 0
        self.held: Loadable | None = None

    def load(self, checkpoint: Loadable) -> None:
        if self.held is None:
            self.starts += 1
            type(self).started += 1
        self.held = checkpoint
        self.loads.append(checkpoint.spec.name)

    @property
    def weights(self) -> str:
        assert self.held is not None
        return self.held.weights_sha256

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [logprobs(self.weights, list(s), 1) for s in sequences]

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        assert self.held is not None
        self.chunks.append((self.held.spec.name, [r.key for r in requests]))
        for request in sorted(requests, key=lambda r: fraction(self.weights, r.key)):
            if self.made == self.fail_after:
                raise Killed
            type(self).made += 1
            yield self.answer(request)

    def answer(self, request: Request) -> Completion:
        luck = [fraction(self.weights, request.seed, request.prompt, i) for i in range(6)]
        words = ["red", "green", "blue", "the cat", "a dog"]
        return Completion(
            key=request.key,
            text=" ".join(words[int(5 * x)] for x in luck),
            finish_reason=FinishReason.STOP,
            tokens=1 + int(7 * luck[0]),
            entropy=3 * luck[1],
        )

    def close(self) -> None:
        type(self).closed += 1


class FakeReference:
    """Stands for ``ReferenceModel``."""

    loads: ClassVar[list[str]] = []

    def __init__(self, checkpoint: Loadable) -> None:
        self.weights = checkpoint.weights_sha256
        self.loads.append(checkpoint.spec.name)

    def token_logprobs(self, items: Sequence[Continuation]) -> Iterator[tuple[str, list[float]]]:
        for item in items:
            both = [*item.prompt, *item.answer]
            yield item.key, logprobs(self.weights, both, len(item.prompt))
