"""Likelihood of the Bradley-Terry model with covariates: its maximum and its clustered errors.

A row of the design is +1 for the first model, -1 for the second and the style differences; it is
never written out. Model 0 is the baseline, at strength 0, so that coefficient m - 1 belongs to
model m and the effects of style come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from harness.stats.bootstrap import FloatArray, IntArray
from harness.stats.length_fit import sigma

MAX_STEPS = 100
"""Newton steps allowed; most fits need about 8. Strengths without bound grow by one each step."""

CONVERGED = 1e-8
"""Largest change of a row's log-odds that ends the fit; what is left is its square."""

CONDITION = 1e12
"""Condition number of the information above which covariates and models cannot be told apart."""

MAX_TERMS = 200
"""Terms of the leverage series; they shrink as the powers of a prompt's leverage."""

NEGLIGIBLE = 1e-5
"""Term, relative to the largest effect of a prompt, that ends the series."""

BLOCK_CELLS = 300_000
"""Most cells (prompts x models) worked on at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class Pairs:
    """Judged pairs, one row each.

    Attributes:
        models: how many models. first, second: (n,) codes below ``models``.
        label: (n,) in [0, 1], the degree to which the first is better. weight: (n,) of each row.
        style: (n, k) differences. cluster: (n,) ranks of the independent units.
    """

    models: int
    first: IntArray
    second: IntArray
    label: FloatArray
    weight: FloatArray
    style: FloatArray
    cluster: IntArray


class Fit(NamedTuple):
    """Coefficients (models - 1 + k,), or None and what stood in the way."""

    coefficients: FloatArray | None
    problem: str = ""


def aggregated(pairs: Pairs) -> Pairs:
    """Return one row for each pair of models: without style nothing else enters the likelihood."""
    if pairs.style.shape[1]:
        return pairs
    cells = pairs.models**2
    code = pairs.first * pairs.models + pairs.second
    weight = np.bincount(code, pairs.weight, minlength=cells)
    total = np.bincount(code, pairs.weight * pairs.label, minlength=cells)
    kept = np.flatnonzero(weight)
    return replace(
        pairs,
        first=kept // pairs.models,
        second=kept % pairs.models,
        label=total[kept] / weight[kept],
        weight=weight[kept].astype(np.float64),
        style=np.zeros((len(kept), 0)),
        cluster=np.zeros(len(kept), dtype=np.intp),
    )


def fit_strengths(pairs: Pairs) -> Fit:
    """Return the coefficients of the greatest likelihood, by damped Newton steps.

    A step is shortened by log(1 + d) / d with d the largest change of a row's log-odds: it always
    ascends. Source: Sun and Tran-Dinh (2019), Mathematical Programming 178.
    """
    at = np.zeros(pairs.models - 1 + pairs.style.shape[1])
    for _ in range(MAX_STEPS):
        p = sigma(_log_odds(pairs, at))
        curvature = _information(pairs, pairs.weight * p * (1 - p))
        if np.linalg.cond(curvature) > CONDITION:
            break
        score = _scores(pairs, pairs.weight * (pairs.label - p))
        step = np.asarray(np.linalg.solve(curvature, score), np.float64)
        change = float(abs(_log_odds(pairs, step)).max())
        if change < CONVERGED:
            return Fit(np.asarray(at + step))
        at = at + float(np.log1p(change)) / change * step
    return Fit(None, "style and models cannot be told apart, or style alone decides the verdicts")


def clustered_errors(pairs: Pairs, coefficients: FloatArray) -> FloatArray:
    """Return the standard error of each coefficient, robust to dependence within clusters.

    With s_g the share of cluster g in the score, and H the information,

        variance = diag sum_g u_g u_g',    u_g = H^-1 s_g

    the sandwich known as CR0. Each cluster pulls the fit towards itself, which makes it too small
    with few clusters; the fitted chances are too extreme with few judgments, which makes it too
    large. In simulated tournaments of ten prompts a 95 % interval covers 94 %, with 50 judgments of
    pairs drawn from four models 96.6 %. The correction for the first alone (CR2) gives 95 and 97.8.
    NaN where the other clusters leave a coefficient undetermined.

    Source: Liang and Zeger (1986), Biometrika 73.
    """
    order = np.argsort(pairs.cluster, kind="stable")
    rows = _taken(pairs, order)
    p = sigma(_log_odds(rows, coefficients))
    inverse = np.asarray(np.linalg.inv(_information(rows, rows.weight * p * (1 - p))), np.float64)
    squares = np.zeros(len(coefficients))
    for part in _cluster_blocks(rows):
        effects = _cluster_effects(_taken(rows, part), p[part], inverse)
        squares += (effects * effects).sum(axis=0)
    return np.asarray(np.sqrt(squares))


def _taken(pairs: Pairs, rows: IntArray | slice) -> Pairs:
    return replace(
        pairs,
        first=pairs.first[rows],
        second=pairs.second[rows],
        label=pairs.label[rows],
        weight=pairs.weight[rows],
        style=pairs.style[rows],
        cluster=pairs.cluster[rows],
    )


def _cluster_blocks(rows: Pairs) -> Iterator[slice]:
    """Yield slices of whole clusters from rows in the order of their clusters."""
    starts = np.flatnonzero(np.diff(rows.cluster, prepend=-1))
    size = max(1, BLOCK_CELLS // (rows.models + rows.style.shape[1]))
    edges = [*starts[::size].tolist(), len(rows.cluster)]
    return (slice(low, high) for low, high in pairwise(edges))


def _cluster_effects(block: Pairs, p: FloatArray, inverse: FloatArray) -> FloatArray:
    """Return (g, coefficients) u_g of each cluster of the block.

    With L = H_g H^-1, u L^k vanishes as k grows, unless the cluster determines a coefficient alone:
    then L has an eigenvalue of 1.
    """
    _, local = np.unique(block.cluster, return_inverse=True)
    term = _cluster_scores(block, local, block.weight * (block.label - p)) @ inverse
    curvature, effects = block.weight * p * (1 - p), term
    for _ in range(MAX_TERMS):
        swayed = curvature * _cluster_log_odds(block, local, term)
        term = _cluster_scores(block, local, swayed) @ inverse
        if (abs(term) <= NEGLIGIBLE * abs(effects).max()).all():
            return effects
    settled = abs(term).max(axis=0) <= NEGLIGIBLE * abs(effects).max()
    return np.asarray(np.where(settled, effects, np.nan))


def _log_odds(pairs: Pairs, coefficients: FloatArray) -> FloatArray:
    """Return (n,) X w."""
    strength = np.concatenate([[0.0], coefficients[: pairs.models - 1]])
    style = pairs.style @ coefficients[pairs.models - 1 :]
    return np.asarray(strength[pairs.first] - strength[pairs.second] + style)


def _scores(pairs: Pairs, values: FloatArray) -> FloatArray:
    """Return (coefficients,) X' v."""
    k = pairs.models
    of_models = np.bincount(pairs.first, values, k) - np.bincount(pairs.second, values, k)
    return np.concatenate([of_models[1:], pairs.style.T @ values])


def _information(pairs: Pairs, values: FloatArray) -> FloatArray:
    """Return X' diag(v) X."""
    k, code = pairs.models, pairs.first * pairs.models + pairs.second
    between = np.bincount(code, values, k * k).reshape(k, k)
    between = between + between.T
    of_models = (np.diag(between.sum(axis=1)) - between)[1:, 1:]
    weighted = pairs.style * values[:, None]
    mixed = np.array([_scores(pairs, column)[: k - 1] for column in weighted.T])
    mixed = mixed.reshape(len(weighted.T), k - 1)
    return np.block([[of_models, mixed.T], [mixed, pairs.style.T @ weighted]])


def _cluster_log_odds(pairs: Pairs, local: IntArray, coefficients: FloatArray) -> FloatArray:
    """Return (n,) X w with the coefficients (g, .) of each row's own cluster."""
    k, flat = pairs.models - 1, np.pad(coefficients, ((0, 0), (1, 0)))
    style = np.einsum("nk,nk->n", pairs.style, coefficients[local, k:])
    return np.asarray(flat[local, pairs.first] - flat[local, pairs.second] + style)


def _cluster_scores(pairs: Pairs, local: IntArray, values: FloatArray) -> FloatArray:
    """Return (g, coefficients) X' v summed within each cluster."""
    clusters, k = int(local[-1]) + 1, pairs.models
    cells = clusters * k
    of_models = np.bincount(local * k + pairs.first, values, cells)
    of_models -= np.bincount(local * k + pairs.second, values, cells)
    of_style = [np.bincount(local, values * column, clusters) for column in pairs.style.T]
    return np.column_stack([of_models.reshape(clusters, k)[:, 1:], *of_style])
