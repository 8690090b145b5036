"""Judgments made earlier, here or elsewhere, in the forms that benchmarks leave them in.

Verdicts on pairs become the columns that every win-rate statistic reads; scores of single answers
become means.
"""

from __future__ import annotations

from harness.judgments.reading import JudgmentFile, open_judgments, read_judgments
from harness.judgments.scores import ModelScores, holds_scores, mean_scores
from harness.judgments.verdicts import Judgments, Verdict, against

__all__ = [
    "JudgmentFile",
    "Judgments",
    "ModelScores",
    "Verdict",
    "against",
    "holds_scores",
    "mean_scores",
    "open_judgments",
    "read_judgments",
]
