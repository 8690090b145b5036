"""Predictive entropy of the answers, and the log-probability of what was answered."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics import answer_score, by_answer
from harness.types import Direction, Example, Generation, MetricInfo, Score

ENTROPY_INFO = (
    MetricInfo(
        key="entropy",
        title="Predictive entropy",
        unit="nats per token",
        direction=Direction.NEITHER,
        definition="Entropy of the next-token distribution, exact over the whole vocabulary and "
        "before temperature and truncation, averaged over the tokens of the answer.",
    ),
    MetricInfo(
        key="entropy_top20",
        title="Entropy of the 20 likeliest tokens",
        unit="nats per token",
        direction=Direction.NEITHER,
        definition="Entropy of the 20 likeliest next tokens, renormalised, averaged over the "
        "tokens of the answer: what the public code of the TokenRatio paper reports, and all that "
        "an endpoint can give. Biased low, most where the distribution is flat; never above "
        "log 20 = 3.0.",
    ),
    MetricInfo(
        key="token_logprob",
        title="Log-probability of a token",
        unit="nats per token",
        direction=Direction.NEITHER,
        definition="Log-probability of the answer's own tokens under the untempered distribution "
        "that they were drawn from, averaged over the tokens of the answer. At temperature 1 "
        "without truncation its expectation is minus the predictive entropy.",
    ),
)

NO_TOKEN = "the answer has no token"
REPORTED = {
    "entropy": "entropy over the whole vocabulary",
    "entropy_top20": "the 20 likeliest tokens",
    "token_logprob": "log-probabilities",
}
"""By key, what an engine must report for it."""


def _values(answer: Generation) -> dict[str, float | None]:
    return {
        "entropy": answer.entropy,
        "entropy_top20": answer.entropy_top20,
        "token_logprob": answer.logprob,
    }


def _score(answer: Generation, key: str, value: float | None) -> Score:
    if answer.tokens == 0:
        return answer_score(answer, key, None, reason=NO_TOKEN, undefined=True)
    if value is None:
        return answer_score(answer, key, None, reason=f"nothing reported {REPORTED[key]}")
    return answer_score(answer, key, value)


class Entropy:
    """``entropy``, ``entropy_top20`` and ``token_logprob``, as the engine saw them at work.

    H = -(1/T) sum_t sum_v p_t(v) log p_t(v) with p_t the model's distribution at token t: the
    TokenRatio paper's predictive entropy (arXiv 2605.12288), with and without its top-k cut.
    """

    info = ENTROPY_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return three scores for each answer; None where not reported or without a token."""
        return [
            _score(answer, key, value)
            for _, answer in by_answer(examples, generations)
            for key, value in _values(answer).items()
        ]
