"""How far judges can be trusted: asked about pairs that were decided before, mostly by people.

What a model decided is measured too, but is no agreement with people, and is kept for no report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import EngineError, InputError
from harness.judges.llm import LlmJudge
from harness.judges.llm.checks import Checked, keep_check
from harness.judging import llm_judge, make_budget
from harness.labelled import Deciders, Labelled, labelled_pairs, prompt_of, read_labelled
from harness.stats.agreement import human_agreement
from harness.stats.judge_agreement import judge_agreement
from harness.stats.judge_quality import judge_quality
from harness.stats.judged import Judged, from_judgments
from harness.stats.winrate import LABELS
from harness.training.data import Skips
from harness.types import Estimate, JudgeQuality, JudgeSpec, Judgment, Record

FIGURES = (
    "flip_rate",
    "consistency",
    "position_preference",
    "length_preference",
    "length_slope",
    "ties",
    "invalid",
)


class Measured(Record):
    """What was found of one judge.

    Attributes:
        figures: agreement with the labels first, each an estimate clustered by prompt.
        alike, half, opposed: pairs decided as they were labelled, left a tie, and decided against.
        reason: why the first pair without a verdict has none.
    """

    name: str
    identity: str
    figures: dict[str, Estimate]
    alike: int
    half: int
    opposed: int
    reason: str | None


class Check(Record):
    """What was found of several judges on one set of pairs.

    Attributes:
        deciders: whose the labels are.
        skipped: rows that make no pair, by reason, in words.
        between: how far the judges agree with each other.
    """

    pairs: int
    measured_on: str
    deciders: Deciders
    skipped: str
    judges: tuple[Measured, ...]
    between: dict[str, Estimate]


def check_judges(
    specs: Sequence[JudgeSpec],
    files: Sequence[Path],
    suite: str,
    *,
    limit: int | None,
    engine: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    budget: Mapping[str, Any],
    prices: Path | None,
    seed: int = 0,
) -> Check:
    """Ask judges about labelled pairs in both orders.

    What is found is kept for the reports of later runs where people decided the pairs.

    Args:
        files: pairs in the forms of ``harness.labelled``.
        suite: whose prompt the judges get, ``SUITE`` or ``SUITE/SUBSET``.
        limit: only the first so many pairs.

    Raises:
        InputError: a file, a judge or a setting cannot be used.
        EngineError: a judge cannot be asked, or left pairs unanswered; verdicts stay cached.
        BudgetError: the budget is spent; verdicts stay cached.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise InputError("two judges have one name; names must differ.")
    skips = Skips()
    read, deciders = read_labelled(files, skips)
    pairs = labelled_pairs(read[:limit], suite)
    shared = make_budget(budget, prices)
    judges = [llm_judge(spec, engine, endpoint, shared, own_length=True) for spec in specs]
    found = {judge.spec.name: _verdicts(judge, pairs) for judge in judges}
    rng = np.random.default_rng(seed)
    data = ", ".join(path.name for path in files) + (f", first {limit} pairs" if limit else "")
    measured = [_measured(j, found[j.spec.name], pairs, deciders, rng) for j in judges]
    if deciders is Deciders.PEOPLE:
        for one in measured:
            _keep(one, data)
    return Check(
        pairs=len(pairs),
        measured_on=data,
        deciders=deciders,
        skipped=str(skips),
        judges=tuple(measured),
        between=_between(found, pairs, rng),
    )


def _verdicts(judge: LlmJudge, pairs: Sequence[Labelled]) -> list[Judgment]:
    try:
        found = judge.compare([pair.asked for pair in pairs])
    finally:
        judge.close()
    if waiting := [judgment for judgment in found if judgment.unanswered]:
        raise EngineError(
            f"judge '{judge.spec.name}' gave no usable reply on {len(waiting)} of {len(found)} "
            f"pairs (first: {waiting[0].reason}). What was judged is kept; run the same command "
            "to ask for the rest."
        )
    return found


def _columns(verdicts: Sequence[Judgment], pairs: Sequence[Labelled]) -> Judged:
    """Return the verdicts as columns, pairs of one prompt in one cluster."""
    sizes = {
        pair.asked.example.id: (
            float(len(pair.asked.candidate_text)),
            float(len(pair.asked.baseline_text)),
        )
        for pair in pairs
    }
    return from_judgments(verdicts, lambda found: sizes[found.example_id], _unit)


def _unit(found: Judgment) -> str:
    return prompt_of(found.example_id)


def _measured(
    judge: LlmJudge,
    verdicts: Sequence[Judgment],
    pairs: Sequence[Labelled],
    deciders: Deciders,
    rng: np.random.Generator,
) -> Measured:
    degrees = np.array([_degree(found) for found in verdicts])
    labels = np.array([float(pair.preferred) for pair in pairs])
    found = human_agreement(degrees, labels, [_unit(verdict) for verdict in verdicts], rng=rng)
    (quality,) = judge_quality(_columns(verdicts, pairs))
    return Measured(
        name=judge.spec.name,
        identity=judge.info.identity,
        figures={agreement_with(deciders): found.agreement} | _figures(quality),
        alike=found.alike,
        half=found.half,
        opposed=found.opposed,
        reason=next((verdict.reason for verdict in verdicts if verdict.reason), None),
    )


def agreement_with(deciders: Deciders) -> str:
    """Return the name of the figure that says how far a judge agrees with the labels."""
    return f"agreement with {deciders}"


def _keep(found: Measured, data: str) -> None:
    """Keep a judge's agreement with people for later reports, where a pair has a verdict."""
    agreement = found.figures[agreement_with(Deciders.PEOPLE)]
    if agreement.value is not None:
        keep_check(Checked(identity=found.identity, agreement=agreement, measured_on=data))


def _degree(found: Judgment) -> float:
    """Return 1, 1/2 or 0 by the pair's outcome; NaN without one."""
    return LABELS.get(found.outcome, float("nan"))


def _figures(quality: JudgeQuality) -> dict[str, Estimate]:
    return {name.replace("_", " "): getattr(quality, name) for name in FIGURES}


def _between(
    found: Mapping[str, Sequence[Judgment]], pairs: Sequence[Labelled], rng: np.random.Generator
) -> dict[str, Estimate]:
    every = [judgment for verdicts in found.values() for judgment in verdicts]
    agreement = judge_agreement(_columns(every, pairs), rng=rng)
    if agreement is None:
        return {}
    kappas = {f"kappa of {p.first} and {p.second}": p.kappa for p in agreement.pairs}
    return {"Krippendorff's alpha": agreement.alpha} | kappas
