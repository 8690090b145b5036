"""What a comparison holds about judges: how far they can be trusted, whom they hold strong."""

from __future__ import annotations

from harness.types.records import Estimate, Record


class JudgeQuality(Record):
    """One judge's weaknesses, each an estimate clustered by prompt.

    Attributes:
        rows: judgments, invalid ones among them.
        flip_rate: share of pairs seen in both orders whose winner changes with the order.
        consistency: share of those pairs with the same verdict in both orders; what neither flips
            nor is consistent is a tie in one order only.
        position_preference: mean preference for the answer shown first, over those pairs; 1/2 is
            none. With one order alone, position and quality could not be told apart.
        length_preference: share of decided verdicts that go to the longer answer. It includes what
            longer answers deserve.
        length_slope: log-odds of a win for each doubling of the length.
        ties: share of valid verdicts. invalid: share of rows.
    """

    judge: str
    rows: int
    flip_rate: Estimate
    consistency: Estimate
    position_preference: Estimate
    length_preference: Estimate
    length_slope: Estimate
    ties: Estimate
    invalid: Estimate


class JudgePair(Record):
    """Agreement of two judges on the showings that both judged."""

    first: str
    second: str
    agreement: Estimate
    kappa: Estimate


class JudgeAgreement(Record):
    """Agreement between judges on win, tie and loss.

    Attributes:
        alpha: Krippendorff's, nominal, over all judges and the showings that two or more judged.
    """

    alpha: Estimate
    pairs: tuple[JudgePair, ...]


class SuiteJudge(Record):
    """The quality of one judge on one suite."""

    suite: str
    quality: JudgeQuality


class SuitePanel(Record):
    """The agreement of the judges of one suite, of two or more."""

    suite: str
    agreement: JudgeAgreement


class ModelStrength(Record):
    """Strength of one model: log-odds against the baseline, and the win rate that it implies.

    With style covariates both are for answers of equal style.
    """

    model: str
    strength: Estimate
    win_rate: Estimate


class StyleEffect(Record):
    """Change of the log-odds by one root mean square of a style difference."""

    name: str
    effect: Estimate


class BradleyTerry(Record):
    """Strengths of all models, in the order that the models come in, and effects of style."""

    baseline: str
    models: tuple[ModelStrength, ...]
    style: tuple[StyleEffect, ...]


class SuiteStrengths(Record):
    """Strengths by one judge on one suite, as judged and at equal style."""

    suite: str
    judge: str
    raw: BradleyTerry
    styled: BradleyTerry
