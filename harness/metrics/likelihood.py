"""What likelihoods say: of better and worse answers, and of the distance from the base.

The readings come from stages of their own that run models over given answers
(`harness.likelihoods`); here are the keys, and the scores that follow from log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import InputError
from harness.types import Direction, Example, Generation, MetricInfo, Score

PREFERENCE_INFO = (
    MetricInfo(
        key="preference_accuracy",
        title="Preference accuracy",
        unit="share",
        direction=Direction.HIGHER,
        definition="Share of pairs whose better answer gained more log-probability over the base "
        "checkpoint than the worse one, ties counting one half.",
    ),
    MetricInfo(
        key="preference_margin",
        title="Implicit-reward margin",
        unit="nats",
        direction=Direction.HIGHER,
        definition="Gain in log-probability over the base checkpoint of the better answer minus "
        "that of the worse one, summed over the tokens of each.",
    ),
    MetricInfo(
        key="likelihood_accuracy",
        title="Likelihood accuracy",
        unit="share",
        direction=Direction.HIGHER,
        definition="Share of pairs whose better answer has the higher log-probability, summed "
        "over tokens and without a base; ties count one half, and the shorter answer is favoured.",
    ),
    MetricInfo(
        key="logprob_chosen",
        title="Log-probability of the better answer",
        unit="nats",
        direction=Direction.NEITHER,
        definition="Summed over the tokens of the suite's better answer, end-of-sequence included, "
        "in float32. Its fall in training is known as likelihood displacement.",
    ),
    MetricInfo(
        key="logprob_rejected",
        title="Log-probability of the worse answer",
        unit="nats",
        direction=Direction.NEITHER,
        definition="Summed over the tokens of the suite's worse answer, end-of-sequence included, "
        "in float32.",
    ),
)

KL_INFO = (
    MetricInfo(
        key="reference_kl",
        title="Divergence from the base",
        unit="nats per token",
        direction=Direction.NEITHER,
        definition="KL(checkpoint || base) of the next-token distributions before each token of "
        "the checkpoint's own first sample, exact over the vocabulary and untempered, in float32, "
        "averaged over the tokens of the answer. Zero for the base itself.",
    ),
    MetricInfo(
        key="reference_kl_sampled",
        title="Divergence from the base, sampled",
        unit="nats per token",
        direction=Direction.NEITHER,
        definition="Log-probability of the checkpoint's own first sample under the checkpoint "
        "minus that under the base, averaged over the tokens of the answer, in float32. At "
        "temperature 1 without truncation it estimates the same divergence from one sample, with "
        "more noise; at other temperatures it is biased.",
    ),
)

LogProbs = tuple[float, float]
"""Sums of token log-probabilities in nats given the prompt: (better answer, worse answer)."""


def _share(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


NO_BASE_ROW = "the base checkpoint has no log-probabilities here"

AGAINST_BASE = ("preference_accuracy", "preference_margin")
"""Keys that hold a checkpoint against its base."""

SCORED = (*AGAINST_BASE, "likelihood_accuracy")
"""Keys that follow from log-probabilities, in the order of the scores."""


def _against_base(row: LogProbs, base: LogProbs | None) -> dict[str, float | None]:
    if base is None:
        return dict.fromkeys(AGAINST_BASE)
    margin = (row[0] - base[0]) - (row[1] - base[1])
    return {"preference_accuracy": _share(margin), "preference_margin": margin}


def preference_scores(
    checkpoint: str,
    suite: str,
    rows: Mapping[str, LogProbs],
    base_rows: Mapping[str, LogProbs] | None,
    *,
    unlike: str | None = None,
) -> list[Score]:
    """Return the scores of one checkpoint on the pairs of one suite, in the order of ``rows``.

    The implicit reward of an answer y is log pi(y|x) - log pi_base(y|x), DPO's without its factor
    beta, which no comparison depends on; the margin is that of the better answer minus that of
    the worse one.

    Args:
        checkpoint: its name.
        suite: the suite's name.
        rows: by example id, what the checkpoint gives both answers.
        base_rows: the same by the base checkpoint; for the base itself its own rows, whose
            margins are all zero: accuracy one half. None where there is no base: then
            ``likelihood_accuracy`` only.
        unlike: why the base's rows cannot be compared with these; what needs them is missing
            for this reason.

    Source: Rafailov et al. (2023), "Direct Preference Optimization", arXiv 2305.18290, eq. 5.
    """
    scores = []
    for example_id, row in rows.items():
        values: dict[str, float | None] = {}
        if base_rows is not None:
            values = _against_base(row, None if unlike else base_rows.get(example_id))
        values["likelihood_accuracy"] = _share(row[0] - row[1])
        for key, value in values.items():
            reason = (unlike or NO_BASE_ROW) if value is None else None
            scores.append(pair_score(checkpoint, suite, key, example_id, value, reason))
    return scores


def pair_score(
    checkpoint: str,
    suite: str,
    metric: str,
    example_id: str,
    value: float | None,
    reason: str | None = None,
) -> Score:
    """Return a score about a suite's own answers to one prompt."""
    return Score(
        checkpoint=checkpoint,
        suite=suite,
        metric=metric,
        example_id=example_id,
        value=value,
        reason=reason,
    )


class PreferenceAccuracy:
    """The family's place among the metrics: it names the keys, `preference_scores` fills them."""

    info = PREFERENCE_INFO

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Refuse examples without a better and a worse answer.

        Raises:
            InputError: names the first such example.
        """
        for example in examples:
            if example.reference is None or example.rejected is None:
                raise InputError(
                    f"example '{example.id}': preference_accuracy needs a better and a worse "
                    "answer; name their fields as 'reference' and 'rejected' under 'fields'."
                )

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return nothing: these scores are about the suite's own answers, not about generations."""
        return []


class ReferenceKl:
    """``reference_kl`` and ``reference_kl_sampled``: named here, filled by ``kl_scores``."""

    info = KL_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return nothing: two models must read the answers, in a stage of its own."""
        return []
