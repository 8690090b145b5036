"""What a language model decided about two answers in the order in which it saw them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

from harness.types import Probability, Record


class Choice(StrEnum):
    """Which of the two answers is better, by its place."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


class Verdict(Record):
    """A choice, and the degree in [0, 1] to which the answer shown first is better."""

    choice: Choice
    first: Probability


DEGREES = {Choice.FIRST: 1.0, Choice.TIE: 0.5, Choice.SECOND: 0.0}


def certain(choice: Choice) -> Verdict:
    """Return the verdict of a judge that shows no degree."""
    return Verdict(choice=choice, first=DEGREES[choice])


def weighed(logprobs: Mapping[Choice, float]) -> Verdict:
    """Return the verdict that the log-probabilities of the choices amount to.

    The degree is P(first) + P(tie) / 2 with the probabilities renormalised over the choices that
    are given; the choice is the likeliest one, and a tie where two are equally likely.

    Args:
        logprobs: nats, of one choice or more.
    """
    top = max(logprobs.values())
    weights = {choice: math.exp(value - top) for choice, value in logprobs.items()}
    degree = sum(DEGREES[choice] * weight for choice, weight in weights.items())
    best = [choice for choice, value in logprobs.items() if value == top]
    return Verdict(
        choice=best[0] if len(best) == 1 else Choice.TIE,
        first=min(1.0, degree / sum(weights.values())),
    )
