"""Inference engines: token ids in, sampled answers out.

Only :mod:`harness.engines.vllm` and its probe import vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from harness.types import FinishReason, Loadable, Record, Sampling

ENTROPY_KEY = "tbpo_key"
"""Where ``SamplingParams.extra_args`` holds the key under which entropies are recorded."""

TOP_P_KEY = "tbpo_top_p"
"""Where ``SamplingParams.extra_args`` holds a top-p to be applied by this package's filter."""


class Request(Record):
    """One answer to be sampled.

    Attributes:
        key: names the request in the reply; unique within a call.
        prompt: token ids, rendered and checked.
        seed: seed of this request's own random stream.
    """

    key: str
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int


class Completion(Record):
    """The engine's answer to one request.

    ``entropy`` is the mean over generated tokens, in nats, of the entropy of the next-token
    distribution over the whole vocabulary before temperature and truncation; None where the
    engine cannot tell.
    """

    key: str
    text: str
    finish_reason: FinishReason
    tokens: int
    entropy: float | None


class Engine(Protocol):
    """Something that samples answers from the checkpoint it holds."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield one completion a request, as they finish."""
        ...


class SwappableEngine(Engine, Protocol):
    """An engine that can exchange its weights for another checkpoint of the same architecture."""

    def load(self, checkpoint: Loadable) -> None:
        """Hold ``checkpoint`` from now on, with no trace of the one before."""
        ...

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities, nats, of each sequence's tokens but the first."""
        ...
