"""What is asked of the engine and of the judges: requests and pairs in an order of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from harness.engines import Completion, Request, split_key
from harness.files import sha256_json
from harness.judges import AnswerPair, Judge
from harness.suites import Suite
from harness.types import REFERENCE, Generation, Loadable


def request_seed(seed: int, suite: str, example: str, sample: int) -> int:
    """Return the seed of one request: the same for every checkpoint, independent of the others."""
    text = f"{seed}\n{suite}\n{example}\n{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def make_requests(
    suites: Sequence[Suite], prompts: Mapping[str, Mapping[str, tuple[int, ...]]], seed: int
) -> list[Request]:
    """Return the requests of all suites in one queue, longest answers first.

    Where nothing was rendered, the requests carry messages alone.

    The order depends on the suites alone. Requests that may run long go first, so that the batch
    stays full to the end.
    """
    requests = [
        Request(
            key=f"{suite.spec.name}\n{example.id}\n{sample}",
            prompt=prompts.get(suite.spec.name, {}).get(example.id, ()),
            messages=example.messages,
            sampling=suite.spec.sampling,
            seed=request_seed(seed, suite.spec.name, example.id, sample),
        )
        for suite in suites
        for example in suite.examples
        for sample in range(suite.spec.sampling.samples)
    ]
    return sorted(requests, key=lambda r: -r.sampling.max_tokens)


def request_sha256(checkpoint: Loadable, request: Request, engine_sha256: str) -> str:
    """Return the hash over everything that decides an answer, so that none is taken for another.

    Weights, configuration, chat template, prompt token ids (messages, where a server renders
    them), sampling, seed, and the engine with its version and settings.
    """
    chat = [message.model_dump(mode="json") for message in request.messages]
    asked: list[Any] = list(request.prompt) or chat
    return sha256_json(
        [
            checkpoint.weights_sha256,
            checkpoint.architecture,
            checkpoint.template_sha256,
            checkpoint.arithmetic,
            asked,
            request.sampling.model_dump(mode="json"),
            request.seed,
            engine_sha256,
        ]
    )


def as_generation(checkpoint: Loadable, completion: Completion, identity: str) -> Generation:
    """Return the record of a completion; ``identity`` is its request's hash."""
    suite, example, sample = split_key(completion.key)
    seen = completion.statistics
    return Generation(
        checkpoint=checkpoint.spec.name,
        weights_sha256=checkpoint.weights_sha256,
        request_sha256=identity,
        suite=suite,
        example_id=example,
        sample=sample,
        text=completion.text,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        tokens=completion.tokens,
        entropy=_mean(seen.entropies),
        entropy_top20=_mean(seen.entropies_top20),
        logprob=_mean(seen.logprobs),
        token_ids=completion.token_ids,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def make_pairs(
    suite: Suite,
    checkpoints: Sequence[Loadable],
    texts: Mapping[tuple[str, str, str], str],
    judge: Judge,
) -> list[AnswerPair]:
    """Return the pairs a judge compares: later against earlier checkpoints, and the reference.

    Where one of the two has no answer there is no pair.
    """
    pairs = []
    for example in suite.examples:
        keys = {c.spec.name: (suite.spec.name, c.spec.name, example.id) for c in checkpoints}
        found = {name: texts[key] for name, key in keys.items() if key in texts}
        for baseline, candidate in combinations(found, 2):
            pairs.append(
                AnswerPair(
                    suite.spec.name, candidate, baseline, example, found[candidate], found[baseline]
                )
            )
        if judge.info.judges_reference and example.reference is not None:
            pairs += [
                AnswerPair(suite.spec.name, n, REFERENCE, example, found[n], example.reference)
                for n in found
            ]
    return pairs
