"""The model behind length-controlled win rates: judgments in, coefficients and rates out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.bootstrap import Clusters, FloatArray, IntArray, cluster_index
from harness.stats.length_fit import Target, blocks, fit_logistic, sigma

FOLDS = 5

_AT_EQUAL_LENGTH = np.array([0.0, 1.0, 1.0])


@dataclass(frozen=True)
class Regulariser:
    """Further judgments that hold the length and difficulty effects in place.

    Attributes:
        covariates: (m, 2) standardised length difference, before tanh, and item difficulty.
        labels: (m,) in [0, 1]. weight: of each row, against 1 for a judgment of the candidate.
    """

    covariates: FloatArray
    labels: FloatArray
    weight: float = 0.1


@dataclass(frozen=True)
class Rows:
    """Valid judgments. ``cluster`` (n,) are ranks below ``clusters``; ``design`` is (n, 3)."""

    labels: FloatArray
    design: FloatArray
    cluster: IntArray
    clusters: int
    missing: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """What is fitted: all rows, the judgments first; group ``clusters`` holds the fixed rows.

    ``items`` (k, 3) is what the rate is averaged over: the judgments' own, resampled with them,
    or a fixed set.
    """

    labels: FloatArray
    design: FloatArray
    group: IntArray
    rows: Rows
    items: FloatArray
    fixed_items: bool
    target: Target
    scale: float = 1.0
    weight: float = 0.0


def valid_rows(
    labels: ArrayLike,
    length_differences: ArrayLike,
    clusters: Clusters,
    difficulty: ArrayLike | None,
    missing: int,
) -> Rows | None:
    """Return the judgments with a valid label, checked."""
    y = np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    if not ((y[known] >= 0) & (y[known] <= 1)).all():
        raise ValueError("labels must lie in [0, 1], or be NaN where there is no verdict")
    lengths = _column(length_differences, known, "length difference")
    hard = (
        np.zeros_like(lengths) if difficulty is None else _column(difficulty, known, "difficulty")
    )
    if len(clusters) != len(y):
        raise ValueError(f"{len(y)} labels but {len(clusters)} clusters")
    if not known.any():
        return None
    count, cluster = cluster_index(np.asarray(clusters)[known])
    covariate, notes = _length_covariate(lengths)
    return Rows(
        labels=y[known],
        design=np.stack([covariate, hard, np.ones_like(hard)], axis=1),
        cluster=cluster,
        clusters=count,
        missing=missing + int((~known).sum()),
        notes=notes,
    )


def _column(values: ArrayLike, known: NDArray[np.bool_], name: str) -> FloatArray:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != known.shape:
        raise ValueError(f"{known.size} labels but {column.size} values of {name}")
    if not np.isfinite(column[known]).all():
        raise ValueError(f"a {name} is not finite: give its judgment the label NaN")
    return np.asarray(column[known])


def _length_covariate(lengths: FloatArray) -> tuple[FloatArray, tuple[str, ...]]:
    """Return tanh(d / s), or zeros where no length effect can be seen."""
    if np.ptp(lengths) == 0:
        return np.zeros_like(lengths), ("no length effect, as all length differences are equal",)
    return np.tanh(lengths / lengths.std(ddof=1)), ()


def length_model(
    rows: Rows,
    target: Target,
    predict_difficulty: ArrayLike | None = None,
    regulariser: Regulariser | None = None,
) -> Model:
    """Return the model of the judgments under the penalty whose step rule is ``target``."""
    model = Model(
        labels=rows.labels,
        design=rows.design,
        group=rows.cluster,
        rows=rows,
        items=rows.design * _AT_EQUAL_LENGTH,
        fixed_items=False,
        target=target,
    )
    if predict_difficulty is not None:
        q = np.asarray(predict_difficulty, dtype=np.float64)
        items = np.stack([np.zeros_like(q), q, np.ones_like(q)], axis=1)
        model = replace(model, items=items, fixed_items=True)
    return model if regulariser is None else _regularised(model, regulariser)


def _regularised(model: Model, extra: Regulariser) -> Model:
    """Return the model with the regulariser's rows, of constant 0, in a group of their own."""
    added = np.zeros((len(extra.labels), 3))
    added[:, 0] = np.tanh(extra.covariates[:, 0])
    added[:, 1] = extra.covariates[:, 1]
    return replace(
        model,
        labels=np.concatenate([model.labels, extra.labels]),
        design=np.concatenate([model.design, added]),
        group=np.concatenate([model.group, np.full(len(added), model.rows.clusters)]),
        weight=extra.weight,
    )


def fit(model: Model, counts: FloatArray, start: FloatArray | None = None) -> FloatArray:
    """Return (r, 3) coefficients for counts (r, clusters) of the judgments' clusters."""
    fixed = np.full((len(counts), 1), model.weight)
    groups = model.scale * np.concatenate([counts, fixed], axis=1)
    return fit_logistic(groups, model.group, model.design, model.labels, model.target, start)


def rates(model: Model, coefficients: FloatArray, counts: FloatArray) -> FloatArray:
    """Return (r,) the mean prediction at equal length of each fit, over its own items."""
    if not model.items[:, 1].any():
        return np.asarray(sigma(coefficients[:, 2]))
    found = np.empty(len(coefficients))
    for part in blocks(len(coefficients), len(model.items)):
        predicted = sigma(coefficients[part] @ model.items.T)
        weights = None if model.fixed_items else counts[part][:, model.rows.cluster]
        found[part] = np.average(predicted, axis=1, weights=weights)
    return found


def chosen_penalty(model: Model, penalties: FloatArray) -> float:
    """Return the C of least cross-validated loss; the first, the strongest, where folds lack."""
    folds = min(FOLDS, model.rows.clusters)
    if folds < 2 or len(penalties) == 1:
        return float(penalties[0])
    fold = _folds(model, folds)
    weights = np.where(model.group < model.rows.clusters, 1.0, model.weight)
    held_out = weights * (fold == np.arange(folds)[:, None])
    training = (penalties[:, None, None] * (weights - held_out)).reshape(-1, len(fold))
    rows = np.arange(len(fold))
    fits = fit_logistic(training, rows, model.design, model.labels, model.target)
    z = fits @ model.design.T
    loss = (np.logaddexp(0.0, z) - model.labels * z).reshape(len(penalties), folds, -1)
    per_fold = (loss * held_out).sum(axis=2) / np.bincount(fold, minlength=folds)
    return float(penalties[per_fold.mean(axis=1).argmin()])


def _folds(model: Model, folds: int) -> IntArray:
    """Return the fold of each row: items in turn, in order of appearance, the fixed rows first."""
    rows = model.rows
    _, first = np.unique(rows.cluster, return_index=True)
    place = np.empty(rows.clusters, dtype=np.intp)
    place[np.argsort(first)] = np.arange(rows.clusters)
    fixed = len(model.labels) - len(rows.labels)
    return np.asarray(np.concatenate([place[rows.cluster] + fixed, np.arange(fixed)]) % folds)


def coefficient_effects(model: Model, found: FloatArray) -> FloatArray:
    """Return (rows, 3) the first-order change of the coefficients per unit of a row's weight."""
    weights = np.where(model.group < model.rows.clusters, 1.0, model.weight)
    predicted = sigma(model.design @ found)
    active = found != 0
    design = model.design[:, active]
    curvature = (design * (weights * predicted * (1 - predicted))[:, None]).T @ design
    effects = np.zeros_like(model.design)
    effects[:, active] = np.linalg.solve(
        curvature, (design * (model.labels - predicted)[:, None]).T
    ).T
    return effects
