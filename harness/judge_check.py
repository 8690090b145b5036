"""How far judges can be trusted: asked about pairs that people have decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import InputError
from harness.files import sha256_json
from harness.judges import AnswerPair
from harness.judges.llm import LlmJudge
from harness.judges.llm.checks import Checked, keep_check
from harness.judging import llm_judge, make_budget
from harness.stats.agreement import human_agreement
from harness.stats.judge_agreement import judge_agreement
from harness.stats.judge_quality import judge_quality
from harness.stats.judged import Judged, from_judgments
from harness.stats.winrate import LABELS
from harness.training.data import Pair, Skips, read_pairs
from harness.types import Estimate, Example, JudgeQuality, JudgeSpec, Judgment, Record

ONE, OTHER = "one", "other"
"""Names of the two answers of a pair, in an order that says nothing about which people prefer."""

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
        figures: agreement with people first, each an estimate clustered by prompt.
        alike, half, opposed: pairs decided as people did, left a tie, and decided against them.
    """

    name: str
    identity: str
    figures: dict[str, Estimate]
    alike: int
    half: int
    opposed: int


class Check(Record):
    """What was found of several judges on one set of pairs.

    Attributes:
        skipped: rows that make no pair, by reason, in words.
        between: how far the judges agree with each other.
    """

    pairs: int
    measured_on: str
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
    """Ask judges about human-labelled pairs in both orders; what is found is kept in the cache.

    Args:
        files: preference data in any form that training reads.
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
    pairs = labelled_pairs(read_pairs(files, skips)[:limit], suite)
    shared = make_budget(budget, prices)
    judges = [llm_judge(spec, engine, endpoint, shared) for spec in specs]
    found = {judge.spec.name: _verdicts(judge, pairs) for judge in judges}
    rng = np.random.default_rng(seed)
    data = ", ".join(path.name for path in files) + (f", first {limit} pairs" if limit else "")
    return Check(
        pairs=len(pairs),
        measured_on=data,
        skipped=str(skips),
        judges=tuple(
            _measured(judge, found[judge.spec.name], pairs, data, rng) for judge in judges
        ),
        between=_between(found, pairs, rng),
    )


@dataclass(frozen=True)
class Labelled:
    """A pair as a judge is asked about it.

    Attributes:
        preferred: whether people prefer the candidate.
    """

    asked: AnswerPair
    preferred: bool


def labelled_pairs(pairs: Sequence[Pair], suite: str) -> list[Labelled]:
    """Return human-labelled pairs for a judge; which answer is the candidate is up to a hash.

    Were it always the preferred one, chance agreement of two judges would be near 1. Examples are
    named by their prompt and the pair's place, so that equal prompts share a cluster.
    """
    return [_labelled(pair, place, *suite.partition("/")[::2]) for place, pair in enumerate(pairs)]


def _labelled(pair: Pair, place: int, suite: str, subset: str) -> Labelled:
    preferred = int(sha256_json([pair.chosen, pair.rejected]), 16) % 2 == 0
    texts = (pair.chosen, pair.rejected) if preferred else (pair.rejected, pair.chosen)
    name = f"{_prompt(pair)}-{place}"
    example = Example(id=name, messages=pair.messages, subset=subset or None)
    return Labelled(AnswerPair(suite, ONE, OTHER, example, *texts), preferred)


def _prompt(pair: Pair) -> str:
    return sha256_json([[m.role, m.content] for m in pair.messages])[:16]


def _verdicts(judge: LlmJudge, pairs: Sequence[Labelled]) -> list[Judgment]:
    try:
        return judge.compare([pair.asked for pair in pairs])
    finally:
        judge.close()


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
    """Return the prompt's part of an example's name."""
    return found.example_id.rpartition("-")[0]


def _measured(
    judge: LlmJudge,
    verdicts: Sequence[Judgment],
    pairs: Sequence[Labelled],
    data: str,
    rng: np.random.Generator,
) -> Measured:
    degrees = np.array([_degree(found) for found in verdicts])
    human = np.array([float(pair.preferred) for pair in pairs])
    people = human_agreement(degrees, human, [_unit(found) for found in verdicts], rng=rng)
    (quality,) = judge_quality(_columns(verdicts, pairs))
    identity = judge.info.identity
    keep_check(Checked(identity=identity, agreement=people.agreement, measured_on=data))
    return Measured(
        name=judge.spec.name,
        identity=identity,
        figures={"agreement with people": people.agreement} | _figures(quality),
        alike=people.alike,
        half=people.half,
        opposed=people.opposed,
    )


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
