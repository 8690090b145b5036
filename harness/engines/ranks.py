"""Given tokens read in vLLM: log-probabilities and ranks, each beginning computed once.

vLLM does not look into its prefix cache for requests that want log-probabilities of the prompt,
because what is cached has none. Here only a sequence's end is asked for: its beginning may come
from the cache, and the log-probabilities of its end are computed all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.engines import TokenReading
from harness.errors import InputError
from harness.types import Loadable

SHARED = 2
"""Sequences in a row with one beginning, from which on the beginning is computed alone first: then
no logits are made of its tokens."""


def no_ranks(checkpoint: Loadable) -> InputError:
    """Return the error for ranks of tokens asked of an unmerged LoRA."""
    return InputError(
        f"'{checkpoint.spec.name}': whether a given token is the likeliest cannot be read beside "
        "an unmerged LoRA; leave out merge=false."
    )


def read_tokens(
    llm: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[TokenReading]:
    """Return the readings of each sequence's tokens from its place in ``starts`` on.

    Args:
        llm: a ``vllm.LLM`` that holds no LoRA.
    """
    found: dict[int, TokenReading] = {}
    cached = bool(llm.llm_engine.vllm_config.cache_config.enable_prefix_caching)
    for shared in (True, False) if cached else (False,):
        places = [i for i in range(len(sequences)) if i not in found]
        outputs = _generate(
            llm, [sequences[i] for i in places], [starts[i] for i in places], shared
        )
        for i, out in zip(places, outputs, strict=True):
            if (out.num_cached_tokens or 0) < starts[i]:
                found[i] = _reading(out, starts[i])
    return [found[i] for i in range(len(sequences))]


def _generate(
    llm: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], shared: bool
) -> list[Any]:
    """Return vLLM's output of each sequence; with ``shared`` parts of it may be cached ones."""
    from vllm import SamplingParams, TokensPrompt

    # With no other token's log-probability a token at equal place with another would not be
    # known for one of the likeliest: vLLM counts it behind all that are as likely.
    reading = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=1,
        flat_logprobs=True,
        detokenize=False,
        skip_reading_prefix_cache=not shared,
    )
    warming = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
    before = _beginnings(sequences, starts) if shared else {}
    prompts, params, kept = [], [], []
    for place, ids in enumerate(sequences):
        if place in before:
            prompts.append(before[place])
            params.append(warming)
        kept.append(len(prompts))
        prompts.append(list(ids))
        params.append(reading)
    asked = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    outputs = llm.generate(asked, params, use_tqdm=False)
    return [outputs[i] for i in kept]


def _beginnings(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[int, list[int]]:
    """Return, by the place of the first that has it, each beginning that several share in a row."""
    found: dict[int, list[int]] = {}
    first = 0
    for place in range(1, len(sequences) + 1):
        same = place < len(sequences) and _beginning(sequences, starts, place) == _beginning(
            sequences, starts, first
        )
        if not same:
            if place - first >= SHARED:
                found[first] = _beginning(sequences, starts, first)
            first = place
    return found


def _beginning(sequences: Sequence[Sequence[int]], starts: Sequence[int], place: int) -> list[int]:
    return list(sequences[place][: starts[place]])


def _reading(out: Any, start: int) -> TokenReading:
    """Return the readings from ``start`` on; what is before may be empty memory."""
    logprobs, likeliest = [], []
    for place in range(start, len(out.prompt_token_ids)):
        step = out.prompt_logprobs[place]
        taken = float(step[out.prompt_token_ids[place]].logprob)
        logprobs.append(taken)
        likeliest.append(all(other.logprob <= taken for other in step.values()))
    return TokenReading(logprobs=tuple(logprobs), likeliest=tuple(likeliest))
