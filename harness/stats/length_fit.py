"""Penalised logistic regressions with few coefficients, fitted under many weightings at once.

A bootstrap of a logistic model refits the same rows a thousand times with other weights. With two
or three coefficients, one Newton step of all refits is a few matrix products, some hundred times
as fast as a loop over a general solver.

The log-likelihood of one weighting c is sum_i c_i [y_i log p_i + (1 - y_i) log(1 - p_i)] with
p = sigma(X w) and labels y in [0, 1]; a penalty on w is taken from it.

Source of the step length: Sun and Tran-Dinh (2019), "Generalized self-concordant functions: a
recipe for Newton-type methods", Mathematical Programming 178: Newton and proximal Newton, nu = 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from harness.stats.bootstrap import FloatArray, IntArray

Target = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
"""Maximiser of the penalised quadratic model, from w, gradient (r, p) and curvature (r, p, p)."""

MAX_STEPS = 2000
"""Newton steps allowed. Most fits need about 7; separated verdicts under a weak penalty, whose
coefficients run into the hundreds, some 300."""

CONVERGED = 1e-7
"""Step that ends the fit; convergence is quadratic, so that what is left is of the order 1e-14."""

CACHED_CELLS = 60_000
"""Cells (weightings x rows) of one block: its few arrays of half a megabyte stay in the cache."""

SINGULAR = 1e-12
"""Share of the largest curvature added to every diagonal entry, so that a covariate that is zero
throughout has a solution: the coefficient 0."""


def sigma(z: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-z)), written 1/2 + tanh(z/2)/2.

    The tanh is odd to the last bit, and with it the fits: swapping the sides of all pairs negates
    the constant exactly.
    """
    return np.asarray(0.5 + np.tanh(z / 2) / 2)


def ridge(strength: float) -> Target:
    """Return the step rule of the penalty strength/2 |w|^2."""

    def target(at: FloatArray, gradient: FloatArray, curvature: FloatArray) -> FloatArray:
        bent = curvature + strength * np.eye(at.shape[1])
        step = np.linalg.solve(bent, (gradient - strength * at)[..., None])[..., 0]
        return np.asarray(at + step)

    return target


def lasso(strength: float) -> Target:
    """Return the step rule of the penalty strength * |w|_1, for at most four coefficients.

    The maximiser has one of 3^p sign patterns, and each pattern leaves a linear system. All are
    solved, and the candidate with the best value wins: exact, without an inner iteration.
    """

    def target(at: FloatArray, gradient: FloatArray, curvature: FloatArray) -> FloatArray:
        p = at.shape[1]
        signs = np.array(list(product((-1.0, 0.0, 1.0), repeat=p)))
        scale = np.trace(curvature, axis1=1, axis2=2)[:, None, None]
        bent = curvature + (SINGULAR * scale + np.finfo(np.float64).tiny) * np.eye(p)
        linear = np.einsum("rij,rj->ri", bent, at) + gradient
        sides = linear[:, None] - strength * signs
        found = np.einsum("rsij,rsj->rsi", _restricted_inverses(bent, signs), sides)
        bowl = np.einsum("rsi,rij,rsj->rs", found, bent, found, optimize=True) / 2
        value = bowl - np.einsum("rsi,ri->rs", found, linear) + strength * abs(found).sum(axis=2)
        return np.asarray(found[np.arange(len(at)), value.argmin(axis=1)])

    return target


def _restricted_inverses(curvature: FloatArray, signs: FloatArray) -> FloatArray:
    """Return (r, patterns, p, p): the inverse among each pattern's non-zero coefficients."""
    active, which = np.unique(abs(signs), axis=0, return_inverse=True)
    block = active[:, :, None] * active[:, None, :]
    filled = curvature[:, None] * block + np.eye(signs.shape[1]) * (1 - active)[:, None, :]
    return np.asarray((np.linalg.inv(filled) * block)[:, which.ravel()])


def blocks(weightings: int, rows: int) -> Iterator[slice]:
    """Yield slices of the weightings whose cells fit the processor's cache."""
    size = max(1, CACHED_CELLS // max(1, rows))
    return (slice(start, start + size) for start in range(0, weightings, size))


def fit_logistic(
    counts: FloatArray,
    index: IntArray,
    design: FloatArray,
    labels: FloatArray,
    target: Target,
    start: FloatArray | None = None,
) -> FloatArray:
    """Return the coefficients (r, p) that maximise the penalised likelihood of each weighting.

    Args:
        counts: (r, g) weight of each group of rows in each fit, at least 0.
        index: (n,) the group of each row.
        design: (n, p) covariates. labels: (n,) in [0, 1].
        target: the penalty's step rule, ``ridge`` or ``lasso``.
        start: (p,) where to begin; zeros if None. It changes the time, not the result.

    Raises:
        ArithmeticError: no convergence within MAX_STEPS.
    """
    first = np.zeros(design.shape[1]) if start is None else start
    parts = [
        _fit_block(counts[part][:, index], design, labels, target, first)
        for part in blocks(len(counts), len(labels))
    ]
    return np.concatenate(parts)


def _fit_block(
    weights: FloatArray,
    design: FloatArray,
    labels: FloatArray,
    target: Target,
    start: FloatArray,
) -> FloatArray:
    """Fit one block of weightings (r, n) by damped Newton steps, from ``start``.

    The likelihood is generalised self-concordant: a step shortened by log(1 + d) / d, with d the
    step's length times the longest row of the design, always ascends, and no line search is
    needed. Full steps run away on very uneven weights.
    """
    places = np.triu_indices(design.shape[1])
    products = design[:, places[0]] * design[:, places[1]]
    reach = float(np.sqrt((design * design).sum(axis=1)).max())
    found, open_ = np.tile(start, (len(weights), 1)), np.arange(len(weights))
    for _ in range(MAX_STEPS):
        at = found[open_]
        gradient, curvature = _derivatives(at, weights, design, labels, products)
        step = target(at, gradient, _symmetric(curvature, places)) - at
        length = reach * np.sqrt((step * step).sum(axis=1))
        damping = np.log1p(length) / np.maximum(length, np.finfo(np.float64).tiny)
        done = length < CONVERGED
        found[open_] = at + np.where(done, 1.0, damping)[:, None] * step
        if done.all():
            return found
        if 2 * done.sum() > len(open_):
            open_, weights = open_[~done], weights[~done]
    raise ArithmeticError(f"the logistic model did not converge in {MAX_STEPS} Newton steps")


def _derivatives(
    at: FloatArray,
    weights: FloatArray,
    design: FloatArray,
    labels: FloatArray,
    products: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return the gradient (r, p) and the upper half of the curvature, (r, p (p + 1) / 2)."""
    half = np.tanh((at / 2) @ design.T)
    residual = (labels - 0.5) - half / 2
    residual *= weights
    half *= half
    np.subtract(1.0, half, out=half)
    half *= weights
    return residual @ design, half @ (products / 4)


def _symmetric(upper: FloatArray, places: tuple[IntArray, ...]) -> FloatArray:
    size = int(places[0].max()) + 1
    full = np.empty((len(upper), size, size))
    full[:, places[0], places[1]] = upper
    full[:, places[1], places[0]] = upper
    return full
