"""Whether the intervals of model-based win rates cover: rows for coverage.py.

    python benchmarks/coverage_models.py [--only NAME...] [--evaluations N] [--list]

Each cell draws ``n`` judgments in prompts of ``cluster_size`` and returns an estimate with the
truth. Judgments of one prompt depend on each other without changing the chance of any verdict: all
of them use one uniform number with probability SHARED, else their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from coverage import Interval, Shape, main
from scipy.special import expit

from harness.stats.bootstrap import FloatArray, IntArray
from harness.stats.bradley_terry import bradley_terry
from harness.stats.judged import Judged
from harness.stats.length_control import (
    LengthControlled,
    Regulariser,
    alpaca_eval_win_rate,
    paper_win_rate,
)
from harness.types import Estimate

Cell = Callable[[np.random.Generator, int, int], tuple[Estimate, float]]

SHARED = 0.4
RESAMPLES = 500
LENGTH, DIFFICULTY, CONSTANT = 1.0, 0.5, 0.3
STRENGTHS = (0.0, 0.5, -0.3, 0.9)
STYLE = 0.6


def prompts(n: int, size: int) -> IntArray:
    return np.arange(n) // size


def within(rng: np.random.Generator, prompt: IntArray) -> FloatArray:
    """Standard normal values, half of whose variance a prompt's judgments share."""
    common = rng.normal(size=prompt.max() + 1)[prompt]
    return np.asarray((common + rng.normal(size=len(prompt))) / np.sqrt(2))


def verdicts(rng: np.random.Generator, chance: FloatArray, prompt: IntArray) -> FloatArray:
    """Return (n,) wins, of the given chances, that depend on each other within a prompt."""
    own, common = rng.random(len(chance)), rng.random(prompt.max() + 1)[prompt]
    uniform = np.where(rng.random(prompt.max() + 1)[prompt] < SHARED, common, own)
    return (uniform < chance).astype(np.float64)


def mean_rate(difficulty: float, constant: float) -> float:
    """Mean of sigma(difficulty q + constant) over q ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ expit(difficulty * nodes + constant) / weights.sum())


def checked(found: LengthControlled | None) -> Estimate:
    if found is None:
        raise ValueError("a simulated evaluation has judgments")
    return found.estimate


def length_controlled(
    form: str,
    difficult: bool,
    regularised: bool = False,
    longer: float = 0.4,
    constant: float = CONSTANT,
) -> Cell:
    """An evaluation whose candidate is the longer one by so many standard deviations."""
    slope = DIFFICULTY if difficult else 0.0

    def simulate(rng: np.random.Generator, n: int, size: int) -> tuple[Estimate, float]:
        prompt = prompts(n, size)
        d, q = within(rng, prompt) - longer, rng.normal(size=prompt.max() + 1)[prompt]
        y = verdicts(rng, expit(LENGTH * np.tanh(d) + slope * q + constant), prompt)
        hard = q if difficult else None
        if form == "paper":
            found = paper_win_rate(y, d, prompt, rng=rng, difficulty=hard, resamples=RESAMPLES)
        else:
            extra = regulariser(rng, slope) if regularised else None
            found = alpaca_eval_win_rate(
                y, d, prompt, rng=rng, difficulty=hard, regulariser=extra, resamples=RESAMPLES
            )
        return checked(found), mean_rate(slope, constant)

    return simulate


def regulariser(rng: np.random.Generator, slope: float) -> Regulariser:
    covariates = rng.normal(size=(400, 2))
    labels = expit(LENGTH * np.tanh(covariates[:, 0]) + slope * covariates[:, 1])
    return Regulariser(covariates, labels)


def strengths(styled: bool, all_pairs: bool = False) -> Cell:
    """Four models; the truth is the last one's strength.

    Each of the n judgments compares two models that are drawn, or, with ``all_pairs``, each of n
    sets of answers has a judgment of every two models, as in a run.
    """

    def simulate(rng: np.random.Generator, n: int, size: int) -> tuple[Estimate, float]:
        drawn = every_pair(n, size) if all_pairs else drawn_pairs(rng, n, size)
        judged, style = drawn_judgments(rng, *drawn, STYLE if styled else 0.0)
        names = ("style",) if styled else ()
        found = bradley_terry(
            judged, style=style if styled else None, style_names=names, baseline="m0"
        )
        return found.models[-1].strength, STRENGTHS[-1]

    return simulate


def drawn_pairs(rng: np.random.Generator, n: int, size: int) -> tuple[IntArray, ...]:
    """Return prompt and both models of n judgments."""
    first = rng.integers(0, len(STRENGTHS), n)
    second = (first + rng.integers(1, len(STRENGTHS), n)) % len(STRENGTHS)
    return prompts(n, size), first, second


def every_pair(n: int, size: int) -> tuple[IntArray, ...]:
    """Return prompt and both models of the judgments of every two of n sets of answers."""
    first, second = np.triu_indices(len(STRENGTHS), 1)
    return np.repeat(prompts(n, size), len(first)), np.tile(first, n), np.tile(second, n)


def drawn_judgments(
    rng: np.random.Generator, prompt: IntArray, first: IntArray, second: IntArray, effect: float
) -> tuple[Judged, FloatArray]:
    theta, n = np.array(STRENGTHS), len(prompt)
    z = within(rng, prompt)
    y = verdicts(rng, expit(theta[first] - theta[second] + effect * z), prompt)
    judged = Judged(
        models=tuple(f"m{k}" for k in range(len(theta))),
        judges=("judge",),
        prompts=tuple(map(str, range(prompt.max() + 1))),
        candidate=first.astype(np.int32),
        baseline=second.astype(np.int32),
        judge=np.zeros(n, np.int32),
        prompt=prompt.astype(np.int32),
        preference=y,
        order=np.zeros(n, np.int8),
        candidate_length=np.full(n, np.nan),
        baseline_length=np.full(n, np.nan),
        item=np.full(n, -1, np.int32),
        row=np.arange(n, dtype=np.int32),
    )
    return judged, z[:, None]


CELLS: list[tuple[str, Cell]] = [
    ("length-controlled, alpaca-eval", length_controlled("alpaca-eval", True)),
    ("length-controlled, alpaca-eval, regularised", length_controlled("alpaca-eval", True, True)),
    ("length-controlled, paper", length_controlled("paper", False)),
    ("length-controlled, paper, item effect", length_controlled("paper", True)),
    (
        "length-controlled, paper, lopsided",
        length_controlled("paper", False, longer=0.8, constant=1.2),
    ),
    ("Bradley-Terry, drawn pairs", strengths(False)),
    ("Bradley-Terry, drawn pairs, style", strengths(True)),
    ("Bradley-Terry, all pairs", strengths(False, all_pairs=True)),
    ("Bradley-Terry, all pairs, style", strengths(True, all_pairs=True)),
]


def row(name: str, cell: Cell) -> Interval:
    def trial(rng: np.random.Generator, shape: Shape) -> tuple[Estimate, float]:
        return cell(rng, shape.n, shape.size)

    return Interval(name, trial)


if __name__ == "__main__":
    main(intervals=[row(name, cell) for name, cell in CELLS])
