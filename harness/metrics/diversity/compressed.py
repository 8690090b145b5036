"""Compression ratio: how much shorter gzip makes the samples of a prompt."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

from harness.metrics import by_prompt, prompt_score
from harness.types import Direction, Example, Generation, MetricInfo, Score

KEY = "compression_ratio"

COMPRESSION_INFO = (
    MetricInfo(
        key=KEY,
        title="Compression ratio",
        unit="ratio",
        direction=Direction.LOWER,
        definition="Bytes of one prompt's samples, a line end between them, over their bytes "
        "after gzip, averaged over prompts: high where samples repeat each other or themselves. "
        "Rises with the amount of text, and is below 1 for very short texts: compare equal "
        "prompt sets and numbers of samples.",
    ),
)


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Return the bytes of ``texts``, in UTF-8 and joined by line ends, over those after gzip -9.

    None where no text has a character besides white space.

    Source: Shaib et al. (2024), "Standardizing the Measurement of Text Diversity", arXiv
    2403.00553. There the texts are one corpus. Here they are the samples of a prompt, whose
    ratios can be averaged, resampled and paired: leaving one prompt after the other out of a
    corpus would compress it as often as it has prompts, and gzip sees no further back than 32 KiB.
    """
    if not any(text.strip() for text in texts):
        return None
    whole = "\n".join(texts).encode("utf-8")
    return len(whole) / len(gzip.compress(whole, compresslevel=9, mtime=0))


def _score(answers: Sequence[Generation]) -> Score:
    value = compression_ratio([answer.text for answer in answers])
    reason = "no sample of the prompt has text" if value is None else None
    return prompt_score(answers[0], KEY, value, reason=reason, undefined=value is None)


class Compression:
    """``compression_ratio`` of every prompt over all its samples."""

    info = COMPRESSION_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return one score for each prompt; None where none of its samples has text."""
        return [_score(answers) for _, answers in by_prompt(examples, generations)]
