"""Bradley-Terry strengths of all checkpoints from pairwise judgments, with style control.

The degree y in [0, 1] to which answer i is better than answer j is modelled as

    P(y = 1) = sigma(theta_i - theta_j + gamma . z)

with theta the strengths, in log-odds against the baseline (theta = 0), and z the differences of
style. Ties count one half. The maximum of the likelihood is used as it stands, without a penalty.

Sources: Bradley and Terry (1952), Biometrika 39. Ford (1957), American Mathematical Monthly 64,
when a maximum exists. Li, Angelopoulos and Chiang (2024), lmsys.org/blog/2024-08-28-style-control,
for the style covariates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.stats.bootstrap import FloatArray, IntArray, t_quantile
from harness.stats.judged import Judged
from harness.stats.length_fit import sigma
from harness.stats.strengths import Fit, Pairs, aggregated, clustered_errors, fit_strengths
from harness.types import BradleyTerry, Estimate, ModelStrength, StyleEffect

BoolArray = NDArray[np.bool_]

_METHOD = "Bradley-Terry, maximum likelihood"
_INTERVAL = "cluster-robust by prompt (CR0 sandwich), t"
_BASELINE = "the baseline itself, by definition"
_WINS = "no finite strength: it wins everything against the baseline and what is tied to it"
_LOSES = "no finite strength: it loses everything against the baseline and what is tied to it"
_APART = "no strength: no chain of judgments ties it to the baseline"
_CONSTANT = "no effect: this style difference is 0 throughout"


@dataclass(frozen=True)
class _Selection:
    """The judgments that are fitted.

    Attributes:
        codes: (m,) codes of the models that have a finite strength, the baseline first.
        valid: (n,) judgments with a verdict and a style. kept: those of them between ``codes``.
        reasons: why a code is not among ``codes``.
    """

    codes: IntArray
    valid: BoolArray
    kept: BoolArray
    reasons: dict[int, str]


def bradley_terry(
    judged: Judged,
    *,
    style: FloatArray | None = None,
    style_names: Sequence[str] = (),
    baseline: str | None = None,
    level: float = 0.95,
) -> BradleyTerry:
    """Return the strength of every model, with an interval clustered by prompt.

    The interval is Student's t on the cluster-robust standard error, with one degree of freedom
    less than there are prompts, or than twice the model's own where it has fewer than half of
    them. Nothing is drawn at random.

    A model has no finite strength where it wins or loses everything against the baseline and all
    that wins and losses tie to the baseline, or where no chain of judgments reaches it. Its value
    is then None, and ``method`` gives the reason. Its judgments are left out of the others' fit:
    in the limit they have no influence there.

    Args:
        judged: judgments; a NaN preference, or a model against itself, is left out and counted.
        style: (n, k) candidate's minus baseline's side, such as ``style_differences``. Divided
            here by its root mean square, but not centred: at equal style a difference is 0. A row
            with NaN is left out and counted.
        style_names: k names. baseline: the model at 0; if None the one most often on the
            baseline's side, the first in ``models`` in a tie.

    Raises:
        ValueError: an unknown baseline, style of another shape, no model, a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, given {level}")
    columns = _style_columns(judged, style, style_names)
    chosen = _selection(judged, columns, _baseline_code(judged, baseline))
    scale = np.sqrt((columns[chosen.kept] ** 2).sum(axis=0) / max(1, chosen.kept.sum()))
    varied = scale > 0
    pairs = _pairs(judged, columns[:, varied] / scale[varied], chosen)
    fit = fit_strengths(aggregated(pairs)) if len(chosen.codes) > 1 else Fit(np.zeros(0))
    errors = None if fit.coefficients is None else _errors(pairs, fit.coefficients)
    return BradleyTerry(
        baseline=judged.models[chosen.codes[0]],
        models=_models(judged, chosen, pairs, fit, errors, level),
        style=_effects(style_names, varied, pairs, fit, errors, level),
    )


# Input.


def _style_columns(judged: Judged, style: FloatArray | None, names: Sequence[str]) -> FloatArray:
    columns = np.zeros((len(judged), 0)) if style is None else np.asarray(style, np.float64)
    if columns.shape != (len(judged), len(names)):
        raise ValueError(
            f"style has shape {columns.shape}, expected ({len(judged)}, {len(names)}): a row for "
            "each judgment and a column for each name"
        )
    return columns


def _baseline_code(judged: Judged, baseline: str | None) -> int:
    if not judged.models:
        raise ValueError("no model to compare: the judgments are empty")
    if baseline is None:
        return int(np.bincount(judged.baseline, minlength=len(judged.models)).argmax())
    if baseline not in judged.models:
        raise ValueError(f"no judgment of the baseline {baseline!r}; models: {judged.models}")
    return judged.models.index(baseline)


def _selection(judged: Judged, style: FloatArray, reference: int) -> _Selection:
    valid = np.isfinite(judged.preference) & np.isfinite(style).all(axis=1)
    valid &= judged.candidate != judged.baseline
    above, below = _reachable(judged, valid, reference)
    inside = above & below
    others = np.flatnonzero(inside & (np.arange(len(inside)) != reference))
    reasons = {
        int(code): _WINS if above[code] else _LOSES if below[code] else _APART
        for code in np.flatnonzero(~inside)
    }
    return _Selection(
        codes=np.concatenate([[reference], others]),
        valid=valid,
        kept=valid & inside[judged.candidate] & inside[judged.baseline],
        reasons=reasons,
    )


def _reachable(judged: Judged, valid: BoolArray, reference: int) -> tuple[BoolArray, BoolArray]:
    """Return which models a chain of wins leads from to the baseline, and from the baseline to.

    A share of a verdict, such as a tie, is a win of both sides. The likelihood has a maximum on
    the models where both hold (Ford 1957).
    """
    k = len(judged.models)
    first, second = judged.candidate[valid].astype(np.intp), judged.baseline[valid].astype(np.intp)
    y = judged.preference[valid]
    won = np.bincount(first * k + second, y, k * k) + np.bincount(second * k + first, 1 - y, k * k)
    beats = won.reshape(k, k) > 0
    return _led_to(beats.T, reference), _led_to(beats, reference)


def _led_to(edges: BoolArray, start: int) -> BoolArray:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import breadth_first_order  # type: ignore[import-untyped]

    found = np.zeros(len(edges), dtype=np.bool_)
    found[breadth_first_order(csr_array(edges), start, return_predecessors=False)] = True
    return found


def _pairs(judged: Judged, style: FloatArray, chosen: _Selection) -> Pairs:
    place = np.full(len(judged.models), -1, dtype=np.intp)
    place[chosen.codes] = np.arange(len(chosen.codes))
    kept = chosen.kept
    return Pairs(
        models=len(chosen.codes),
        first=place[judged.candidate[kept]],
        second=place[judged.baseline[kept]],
        label=judged.preference[kept],
        weight=np.ones(int(kept.sum())),
        style=np.asfortranarray(style[kept]),
        cluster=judged.prompt[kept].astype(np.intp),
    )


def _errors(pairs: Pairs, coefficients: FloatArray) -> FloatArray:
    if not len(pairs.label):
        return np.full(len(coefficients), np.nan)
    return clustered_errors(pairs, coefficients)


# Result.


def _models(
    judged: Judged,
    chosen: _Selection,
    pairs: Pairs,
    fit: Fit,
    errors: FloatArray | None,
    level: float,
) -> tuple[ModelStrength, ...]:
    """Return the strengths in the order of ``Judged.models``."""
    place = {int(code): rank for rank, code in enumerate(chosen.codes)}
    blanks, prompts = _blanks(judged, chosen, level), len(np.unique(pairs.cluster))
    results = []
    for code, (name, blank) in enumerate(zip(judged.models, blanks, strict=True)):
        rank = place.get(code)
        if rank is None:
            strength = blank.model_copy(update={"method": f"{_METHOD}; {chosen.reasons[code]}"})
        elif rank == 0:
            strength = blank.model_copy(update={"value": 0.0, "method": f"{_METHOD}; {_BASELINE}"})
        else:
            strength = _with_t(blank, fit, errors, rank - 1, prompts)
        results.append(ModelStrength(model=name, strength=strength, win_rate=_as_rate(strength)))
    return tuple(results)


def _blanks(judged: Judged, chosen: _Selection, level: float) -> list[Estimate]:
    """Return for each code an estimate without a value, of the judgments that it takes part in."""
    k, prompts = len(judged.models), int(judged.prompt.max(initial=-1)) + 1
    met = np.zeros((prompts, k), dtype=np.bool_)
    n, missing = np.zeros(k, dtype=np.intp), np.zeros(k, dtype=np.intp)
    for side in (judged.candidate, judged.baseline):
        met[judged.prompt[chosen.kept], side[chosen.kept]] = True
        n += np.bincount(side[chosen.kept], minlength=k)
        missing += np.bincount(side[~chosen.valid], minlength=k)
    missing -= np.bincount(judged.candidate[judged.candidate == judged.baseline], minlength=k)
    clusters = met.sum(axis=0)
    return [
        Estimate(
            value=None,
            level=level,
            n=int(n[code]),
            clusters=int(clusters[code]),
            missing=int(missing[code]),
            method=_METHOD,
        )
        for code in range(k)
    ]


def _effects(
    names: Sequence[str],
    varied: BoolArray,
    pairs: Pairs,
    fit: Fit,
    errors: FloatArray | None,
    level: float,
) -> tuple[StyleEffect, ...]:
    places = iter(range(pairs.models - 1, pairs.models - 1 + int(varied.sum())))
    blank = Estimate(
        value=None,
        level=level,
        n=len(pairs.label),
        clusters=len(np.unique(pairs.cluster)),
        method=_METHOD,
    )
    constant = blank.model_copy(update={"method": f"{_METHOD}; {_CONSTANT}"})
    effects = (
        _with_t(blank, fit, errors, next(places), blank.clusters) if varies else constant
        for varies in varied
    )
    named = zip(names, effects, strict=True)
    return tuple(StyleEffect(name=name, effect=effect) for name, effect in named)


def _with_t(
    blank: Estimate, fit: Fit, errors: FloatArray | None, place: int, prompts: int
) -> Estimate:
    """Return the coefficient at ``place`` with its interval, or the reason why it has none.

    Args:
        prompts: behind all coefficients together.
    """
    if fit.coefficients is None or errors is None:
        return blank.model_copy(update={"method": f"{_METHOD}; {fit.problem}"})
    value, error = float(fit.coefficients[place]), float(errors[place])
    if blank.clusters < 2 or math.isnan(error):
        method = f"{_METHOD}; no interval: it hangs on a single prompt"
        return blank.model_copy(update={"value": value, "method": method})
    half = t_quantile(blank.level, min(prompts, 2 * blank.clusters) - 1) * error
    bounds = {"value": value, "low": value - half, "high": value + half}
    return blank.model_copy(update=bounds | {"method": f"{_METHOD}; {_INTERVAL}"})


def _as_rate(strength: Estimate) -> Estimate:
    """Return the win rate against the baseline of a strength in log-odds."""
    found = {"value": strength.value, "low": strength.low, "high": strength.high}
    rates = {
        name: None if bound is None else float(sigma(np.asarray(bound)))
        for name, bound in found.items()
    }
    return strength.model_copy(update=rates)
