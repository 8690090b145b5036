"""Inference engines: prompts in, sampled answers out.

Only :mod:`harness.engines.vllm` and its probes import vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from harness.types import FinishReason, Loadable, Message, Record, Sampling

PROBE_KEY = "tbpo_key"
"""Where ``SamplingParams.extra_args`` holds the key under which token statistics are recorded."""

TOP_P_KEY = "tbpo_top_p"
"""Where ``SamplingParams.extra_args`` holds a top-p to be applied by this package's filter."""

FORCED_KEY = "tbpo_forced"
"""Where ``SamplingParams.extra_args`` holds the token ids that an answer is forced to be."""


def split_key(key: str) -> tuple[str, str, int]:
    """Return (suite, example id, sample) of a request's key."""
    suite, example, sample = key.split("\n")
    return suite, example, int(sample)


class Request(Record):
    """One answer to be sampled.

    Attributes:
        key: names the request in the reply; unique within a call. ``suite``, example id and
            sample number, on three lines.
        prompt: token ids, rendered and checked; empty where a server renders ``messages``.
        messages: the chat that the prompt was rendered from.
        seed: seed of this request's own random stream.
    """

    key: str
    prompt: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    sampling: Sampling
    seed: int


class TokenStatistics(Record):
    """What an engine saw at each generated token, before temperature and truncation.

    Attributes:
        logprobs: log-probability of the token that was taken, nats.
        entropies: entropy of the distribution over the whole vocabulary, nats.
        entropies_top20: entropy of the 20 likeliest tokens, renormalised, nats.

    Each is empty where the engine cannot tell, else one value a generated token.
    """

    logprobs: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    entropies_top20: tuple[float, ...] = ()


class Completion(Record):
    """The engine's answer to one request; None and empty where it cannot tell.

    Attributes:
        token_ids: the generated tokens, end of sequence included.
        tokens, prompt_tokens: lengths in tokens.
    """

    key: str
    text: str
    finish_reason: FinishReason | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    statistics: TokenStatistics = TokenStatistics()


class Failure(Record):
    """A request that got no answer.

    Attributes:
        reason: why, in words.
        final: asking again cannot help (a recorded answer that is not in the file).
    """

    key: str
    reason: str
    final: bool = False


class Engine(Protocol):
    """Something that holds a checkpoint and samples answers from it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, version and settings: all of the engine that decides its answers."""
        ...

    def load(self, checkpoint: Loadable) -> bool:
        """Hold ``checkpoint`` from now on, with no trace of the one before.

        Returns whether the engine had to be started for it.

        Raises:
            EngineError: it does not start, or refuses the checkpoint.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion | Failure]:
        """Yield one reply a request, as they finish.

        Raises:
            EngineError: the engine failed; requests without a reply have none.
        """
        ...

    def close(self) -> None:
        """Give back what is held; ``load`` may be called again."""
        ...


class TokenReading(Record):
    """What an engine gives the tokens of a sequence, from some place on.

    Attributes:
        logprobs: log-probability of each token given those before it, nats.
        likeliest: whether no other token was likelier in its place.
    """

    logprobs: tuple[float, ...]
    likeliest: tuple[bool, ...]


@runtime_checkable
class ReadableEngine(Protocol):
    """An engine whose log-probabilities of given tokens can be read, to prove what it holds."""

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities, nats, of each sequence's tokens but the first."""
        ...


@runtime_checkable
class RankedEngine(Protocol):
    """An engine that can also tell whether given tokens are the ones it would have taken."""

    def token_readings(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[TokenReading]:
        """Return the readings of each sequence's tokens from its place in ``starts`` on.

        Sequences with the same beginning are read faster where they stand side by side.

        Args:
            sequences: token ids, at most ``max_model_len`` less one of each.
            starts: places counted from 0, each at least 1: the first token follows nothing.

        Raises:
            InputError: the checkpoint that is held cannot be read so.
            EngineError: the engine failed.
        """
        ...
