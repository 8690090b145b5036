"""What is asked of the engine and of the judges: requests and pairs in an order of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations

from harness.engines import Completion, Request
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

    The order depends on the suites alone. Requests that may run long go first, so that the batch
    stays full to the end.
    """
    requests = [
        Request(
            key=f"{suite.spec.name}\n{example.id}\n{sample}",
            prompt=prompts[suite.spec.name][example.id],
            sampling=suite.spec.sampling,
            seed=request_seed(seed, suite.spec.name, example.id, sample),
        )
        for suite in suites
        for example in suite.examples
        for sample in range(suite.spec.sampling.samples)
    ]
    return sorted(requests, key=lambda r: -r.sampling.max_tokens)


def split_key(key: str) -> tuple[str, str, int]:
    """Return (suite, example id, sample) of a request's key."""
    suite, example, sample = key.split("\n")
    return suite, example, int(sample)


def as_generation(checkpoint: Loadable, completion: Completion, prompt_tokens: int) -> Generation:
    """Return the record of a completion."""
    suite, example, sample = split_key(completion.key)
    return Generation(
        checkpoint=checkpoint.spec.name,
        weights_sha256=checkpoint.weights_sha256,
        suite=suite,
        example_id=example,
        sample=sample,
        text=completion.text,
        finish_reason=completion.finish_reason,
        prompt_tokens=prompt_tokens,
        tokens=completion.tokens,
        entropy=completion.entropy,
    )


def make_pairs(
    suite: Suite,
    checkpoints: Sequence[Loadable],
    texts: Mapping[tuple[str, str, str], str],
    judge: Judge,
) -> list[AnswerPair]:
    """Return the pairs a judge compares: later against earlier checkpoints, and the reference."""
    names = [c.spec.name for c in checkpoints]
    pairs = []
    for example in suite.examples:
        found = {n: texts[suite.spec.name, n, example.id] for n in names}
        for baseline, candidate in combinations(names, 2):
            pairs.append(
                AnswerPair(
                    suite.spec.name, candidate, baseline, example, found[candidate], found[baseline]
                )
            )
        if judge.info.judges_reference and example.reference is not None:
            pairs += [
                AnswerPair(suite.spec.name, n, REFERENCE, example, found[n], example.reference)
                for n in names
            ]
    return pairs
