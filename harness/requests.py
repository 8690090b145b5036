"""What is asked of the engine and of the judges: requests and pairs in an order of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from harness.dialogues import depth as depth_of
from harness.dialogues import earlier_questions, is_later_question
from harness.engines import Completion, Request, split_key
from harness.files import sha256_json
from harness.judges import AnswerPair, Judge
from harness.judges.llm import MultiTurnPair
from harness.suites import Suite
from harness.types import REFERENCE, Example, Generation, Loadable, Sampling


def request_seed(seed: int, suite: str, example: str, sample: int) -> int:
    """Return the seed of one request: the same for every checkpoint, independent of the others."""
    text = f"{seed}\n{suite}\n{example}\n{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def make_requests(
    suites: Sequence[Suite],
    prompts: Mapping[str, Mapping[str, tuple[int, ...]]],
    seed: int,
    depth: int | None = None,
) -> list[Request]:
    """Return the requests of all suites in one queue, longest answers first.

    Where nothing was rendered, the requests carry messages alone.

    The order depends on the suites alone. Requests that may run long go first, so that the batch
    stays full to the end.

    Args:
        depth: only those that go on from so many answers of the model's own; all where it is None.
    """
    requests = [
        Request(
            key=f"{suite.spec.name}\n{example.id}\n{sample}",
            prompt=prompts.get(suite.spec.name, {}).get(example.id, ()),
            messages=example.messages,
            sampling=sampling,
            seed=request_seed(seed, suite.spec.name, example.id, sample),
        )
        for suite in suites
        for example, sampling in _asked(suite, depth)
        for sample in range(sampling.samples)
    ]
    return sorted(requests, key=lambda r: -r.sampling.max_tokens)


def _asked(suite: Suite, depth: int | None) -> Iterator[tuple[Example, Sampling]]:
    """Yield the examples of a suite that are asked at a depth, with how they are sampled."""
    earlier = earlier_questions(suite.examples)
    for example in suite.examples:
        sampling = suite.sampling(example)
        if sampling is not None and depth in (None, depth_of(example, earlier)):
            yield example, sampling


def rounds(suites: Sequence[Suite]) -> int:
    """Return in how many rounds all questions can be asked: later ones wait for answers."""
    depths = [
        depth_of(example, earlier)
        for suite in suites
        for earlier in [earlier_questions(suite.examples)]
        for example in suite.examples
    ]
    return 1 + max(depths, default=0)


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

    Where one of the two has no answer there is no pair. A later question of a dialogue is judged
    with the answers before it, and against no reference, which has none.
    """
    pairs: list[AnswerPair] = []
    earlier = earlier_questions(suite.examples)
    for example in suite.examples:
        asked = (*earlier.get(example.id, ()), example.id)
        replies = {c.spec.name: _replies(suite, c, asked, texts) for c in checkpoints}
        found = {name: given for name, given in replies.items() if given is not None}
        for baseline, candidate in combinations(found, 2):
            about = (suite.spec.name, candidate, baseline, example)
            pairs.append(_pair(about, found[candidate], found[baseline]))
        later = is_later_question(example.messages)
        if judge.info.judges_reference and example.reference is not None and not later:
            pairs += [
                AnswerPair(suite.spec.name, n, REFERENCE, example, found[n][-1], example.reference)
                for n in found
            ]
    return pairs


def _replies(
    suite: Suite,
    checkpoint: Loadable,
    asked: Sequence[str],
    texts: Mapping[tuple[str, str, str], str],
) -> tuple[str, ...] | None:
    """Return a checkpoint's answers to the questions of a dialogue; None where one is missing."""
    keys = [(suite.spec.name, checkpoint.spec.name, name) for name in asked]
    return tuple(texts[key] for key in keys) if all(key in texts for key in keys) else None


def _pair(
    about: tuple[str, str, str, Example], candidate: Sequence[str], baseline: Sequence[str]
) -> AnswerPair:
    if not is_later_question(about[-1].messages):
        return AnswerPair(*about, candidate[-1], baseline[-1])
    before = (tuple(candidate[:-1]), tuple(baseline[:-1]))
    return MultiTurnPair(*about, candidate[-1], baseline[-1], *before)
