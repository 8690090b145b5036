"""Words and n-grams of a text, as Distinct-n and repetition count them."""

from __future__ import annotations

import re
from collections import Counter

_TOKEN = re.compile(r"\w+|[^\w\s]")

Gram = tuple[str, ...]


def tokens(text: str) -> list[str]:
    r"""Return the lower-cased words (``\w+``) and single punctuation marks of ``text``.

    Source: evaluation protocol of the TokenRatio paper (arXiv 2605.12288).
    """
    return _TOKEN.findall(text.lower())


def ngram_counts(text: str, n: int) -> Counter[Gram]:
    """Return how often each n-gram of `tokens` occurs; empty where the text is shorter."""
    words = tokens(text)
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))
