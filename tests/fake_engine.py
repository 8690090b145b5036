"""An engine and a float32 model that answer by hashing: fast, deterministic, told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from harness.engines import Completion, Request, TokenStatistics
from harness.engines.reference import Continuation, Divergence
from harness.engines.settings import EngineSettings
from harness.errors import EngineDiedError
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
        dies_after: completions, counted over all calls, after each of which the engine dies once.
        chunks: what each call of ``generate`` was handed, by checkpoint.
        settings_seen: those of every engine that was started.
    """

    dies_after: ClassVar[list[int]] = []
    settings_seen: ClassVar[list[EngineSettings]] = []
    fail_after: ClassVar[int | None] = None
    made: ClassVar[int] = 0
    started: ClassVar[int] = 0
    closed: ClassVar[int] = 0
    loads: ClassVar[list[str]] = []
    chunks: ClassVar[list[tuple[str, list[str]]]] = []

    @classmethod
    def forget(cls) -> None:
        cls.fail_after, cls.made, cls.started, cls.closed = None, 0, 0, 0
        cls.loads, cls.chunks, cls.dies_after, cls.settings_seen = [], [], [], []

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        self.settings = settings
        self.held: Loadable | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return self.settings.identity("fake")

    def load(self, checkpoint: Loadable) -> bool:
        fresh = self.held is None
        if fresh:
            self.settings_seen.append(self.settings)
        type(self).started += fresh
        self.held = checkpoint
        self.loads.append(checkpoint.spec.name)
        return fresh

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
            if self.dies_after and self.made == self.dies_after[0]:
                del self.dies_after[0]
                raise EngineDiedError("the engine's process was ended by SIGKILL")
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
            prompt_tokens=len(request.prompt),
            statistics=TokenStatistics(
                logprobs=(-luck[2],), entropies=(3 * luck[1],), entropies_top20=(luck[1],)
            ),
            token_ids=tuple(range(1 + int(7 * luck[0]))),
        )

    def close(self) -> None:
        self.held = None
        type(self).closed += 1


class FakeReference:
    """Stands for ``ReferenceModel``.

    Attributes:
        fail_after: divergences, counted over all calls, after which ``divergences`` raises.
        read: keys of the answers whose divergence was read, by checkpoint.
        held: models that are held now; ``most``: most that were held together.
    """

    vocabulary = 50
    loads: ClassVar[list[str]] = []
    fail_after: ClassVar[int | None] = None
    read: ClassVar[list[tuple[str, str]]] = []
    held: ClassVar[int] = 0
    most: ClassVar[int] = 0

    @classmethod
    def forget(cls) -> None:
        cls.loads, cls.read, cls.fail_after, cls.held, cls.most = [], [], None, 0, 0

    def __init__(self, checkpoint: Loadable) -> None:
        self.name = checkpoint.spec.name
        self.weights = checkpoint.weights_sha256
        self.loads.append(self.name)
        type(self).held += 1
        type(self).most = max(self.most, self.held)

    def token_logprobs(self, items: Sequence[Continuation]) -> Iterator[tuple[str, list[float]]]:
        for item in items:
            both = [*item.prompt, *item.answer]
            yield item.key, logprobs(self.weights, both, len(item.prompt))

    def divergences(
        self, base: FakeReference, items: Sequence[Continuation]
    ) -> Iterator[tuple[str, list[Divergence]]]:
        for item in items:
            if len(self.read) == self.fail_after:
                raise Killed
            self.read.append((self.name, item.key))
            yield item.key, [self.divergence(base, i) for i in range(len(item.answer))]

    def divergence(self, base: FakeReference, place: int) -> Divergence:
        kl = fraction(self.weights, base.weights, place)
        return Divergence(kl=kl, log_ratio=kl - 0.5)

    def close(self) -> None:
        type(self).held -= 1
