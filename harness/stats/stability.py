"""Training stability of one run, read off its logged steps, and its summary over seeds.

Arrays have shape (T,), one entry for each logged step, in the order of the steps. Windows count
logged steps, whatever the distance between them. Nothing here draws at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median, stdev

import numpy as np
from numpy.typing import NDArray

from harness.types import Finding, SeedCurve, SeedFinding, SeedSummary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POINTS = 120
"""Most entries of a curve; longer logs are grouped."""

SLOPE_UNIT = 100
"""Steps that a slope is given for."""

NO_SPREAD = "a spread over seeds needs at least 2"


def _too_short(steps: int, needed: int) -> Finding:
    return Finding(value=None, n=steps, reason=f"too short: {steps} logged steps, {needed} needed")


def spike_share(norms: Floats, *, factor: float, window: int) -> Finding:
    """Return the share of steps at which the gradient norm exceeds ``factor`` running medians.

    Step t is a spike if g_t > factor * median(g_(t-window), ..., g_(t-1)). The median is of earlier
    steps only, so that a spike does not hide itself; the first ``window`` steps are not judged.
    """
    if len(norms) <= window:
        return _too_short(len(norms), window + 1)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(norms[:-1], window), axis=1)
    spikes = norms[window:] > factor * medians
    return Finding(value=float(spikes.mean()), n=len(spikes))


def rank_correlation(x: Floats, y: Floats, *, needed: int) -> Finding:
    """Return Spearman's rank correlation of two quantities of the same steps, in [-1, 1].

    Pearson's correlation of the ranks, equal values sharing their mean rank. None with fewer than
    ``needed`` steps, and where either quantity has one value throughout.
    """
    if len(x) < needed:
        return _too_short(len(x), needed)
    a, b = _centred_ranks(x), _centred_ranks(y)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if not scale:
        reason = "one of the two is the same at every step"
        return Finding(value=None, n=len(x), reason=reason)
    return Finding(value=float(a @ b) / scale, n=len(x))


def _centred_ranks(values: Floats) -> Floats:
    """Return ranks less their mean, shape (T,); equal values share a rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks - (len(values) + 1) / 2


def running_mean(values: Floats, width: int) -> Floats:
    """Return the means of all whole windows of ``width`` entries, shape (T - width + 1,)."""
    means: Floats = np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1)
    return means


def loss_deviation(losses: Floats, *, width: int) -> Finding:
    """Return the loss's noise in its own units: its deviation from a centred running mean.

    With r_t = l_t - mean(l_(t-h), ..., l_(t+h)), width = 2h + 1, over the steps whose window is
    whole: sqrt(mean(r_t^2) / (1 - 1/width)). The factor makes it the standard deviation for
    independent noise around a straight line, of which the running mean takes up 1/width.
    """
    if len(losses) < 2 * width:
        return _too_short(len(losses), 2 * width)
    half = width // 2
    residuals = losses[half : len(losses) - half] - running_mean(losses, width)
    deviation = math.sqrt(float(np.mean(residuals**2)) / (1 - 1 / width))
    return Finding(value=deviation, n=len(residuals))


def loss_noise(losses: Floats, *, width: int) -> Finding:
    """Return :func:`loss_deviation` in terms of the running mean's fall from start to lowest.

    A factor on the loss and a constant added to it change nothing, so objectives that drop
    constants or scale their loss can be compared. A fall of at most sqrt(2/width) deviations, the
    standard error of a difference of two window means, is not told from noise: None.
    """
    deviation = loss_deviation(losses, width=width)
    if deviation.value is None:
        return deviation
    smooth = running_mean(losses, width)
    fall = float(smooth[0] - smooth.min())
    if fall <= deviation.value * math.sqrt(2 / width):
        reason = "the loss fell no more than its noise explains"
        return Finding(value=None, n=deviation.n, reason=reason)
    return Finding(value=deviation.value / fall, n=deviation.n)


def end_mean(values: Floats, *, width: int) -> Finding:
    """Return the mean of the last ``width`` entries; one step alone is too noisy to be an end."""
    if len(values) < width:
        return _too_short(len(values), width)
    return Finding(value=float(values[-width:].mean()), n=width)


def end_slope(steps: Ints, values: Floats, *, width: int) -> Finding:
    """Return the least-squares slope over the second half of the entries, in 100 steps.

    Near zero where the values have settled; needs ``2 * width`` entries.
    """
    if len(values) < 2 * width:
        return _too_short(len(values), 2 * width)
    half = len(values) // 2
    x, y = steps[half:] - steps[half:].mean(), values[half:]
    return Finding(value=SLOPE_UNIT * float(x @ y / (x @ x)), n=len(y))


def loss_limit(losses: Floats, *, window: int, factor: float) -> Finding:
    """Return the loss above which a run has exploded.

    median(l_1, ..., l_window) + factor * spread, where the spread is the larger of the range
    (max - min) of the same steps and the interquartile range of all steps: a run that warms up
    slowly has hardly any range at its start. A constant added to the loss and a positive factor on
    it change no verdict, since objectives drop constants and scale their losses. The first
    ``window`` steps cannot exceed it. None where no step follows them, and where the loss never
    changes, which gives no scale.
    """
    if len(losses) <= window:
        return _too_short(len(losses), window + 1)
    start = losses[:window]
    quartiles = np.quantile(losses, (0.25, 0.75))
    spread = max(float(np.ptp(start)), float(np.ptp(quartiles)))
    if not spread:
        reason = "the loss hardly ever changes, which gives no scale"
        return Finding(value=None, n=window, reason=reason)
    return Finding(value=float(np.median(start)) + factor * spread, n=window)


def explosion(
    losses: Floats, norms: Floats, *, window: int, loss_factor: float, gradient_factor: float
) -> tuple[int, str] | None:
    """Return the place of the first step at which a run exploded, and how; None if none did.

    A step explodes if its loss exceeds :func:`loss_limit`, or its gradient norm exceeds
    ``gradient_factor`` times the median norm of the first ``window`` steps. Where there is no limit
    of the loss, or that median is zero, the step is not tested by it.
    """
    highest = loss_limit(losses, window=window, factor=loss_factor).value
    norm = _start(norms, window)
    tests = (
        (losses, math.inf if highest is None else highest, "loss"),
        (norms, gradient_factor * norm if norm else math.inf, "gradient norm"),
    )
    found = [_first_above(values, limit, name) for values, limit, name in tests]
    return min((f for f in found if f is not None), default=None)


def _first_above(values: Floats, limit: float, name: str) -> tuple[int, str] | None:
    above = np.flatnonzero(values > limit)
    if not len(above):
        return None
    place = int(above[0])
    return place, f"{name} {values[place]:.3g} above {limit:.3g}"


def _start(values: Floats, window: int) -> float:
    return float(np.median(values[:window])) if len(values) else 0.0


def over_seeds(figure: str, findings: Sequence[SeedFinding]) -> SeedSummary:
    """Return median, range and standard deviation (n - 1) of a figure over seeds.

    With fewer than two values there is no spread: range and deviation are None, never zero.
    """
    values = [f.value for f in findings if f.value is not None]
    spread = len(values) >= 2
    return SeedSummary(
        figure=figure,
        seeds=tuple(findings),
        median=median(values) if values else None,
        lowest=min(values) if spread else None,
        highest=max(values) if spread else None,
        sd=stdev(values) if spread else None,
        n=len(values),
        missing=len(findings) - len(values),
        reason=None if spread else _why(findings, len(values)),
        method="median, range and standard deviation (n - 1) over seeds",
    )


def _why(findings: Sequence[SeedFinding], values: int) -> str:
    reasons = dict.fromkeys(f.reason for f in findings if f.reason)
    return NO_SPREAD if values else "; ".join(r for r in reasons if r) or "no log"


def seed_curve(quantity: str, runs: Sequence[tuple[Ints, Floats]]) -> SeedCurve:
    """Return a quantity's median, lowest and highest over runs at each step.

    Args:
        quantity: its name.
        runs: steps and values of each run; runs may lack steps that others have.

    Where the runs have more than :data:`POINTS` steps between them, consecutive steps are grouped
    evenly, and an entry is over all values of its group.
    """
    entries = list(_entries(runs))
    return SeedCurve(
        quantity=quantity,
        steps=tuple(int(step) for step, _, _ in entries),
        median=tuple(float(np.median(values)) for _, values, _ in entries),
        lowest=tuple(float(values.min()) for _, values, _ in entries),
        highest=tuple(float(values.max()) for _, values, _ in entries),
        seeds=tuple(reached for _, _, reached in entries),
    )


def _entries(runs: Sequence[tuple[Ints, Floats]]) -> Iterator[tuple[int, Floats, int]]:
    """Yield each group's last step, its values, and how many runs have any in it."""
    steps = np.unique(np.concatenate([steps for steps, _ in runs])) if runs else np.array([])
    for group in np.array_split(steps, min(POINTS, len(steps)) or 1):
        if len(group):
            parts = [v[(s >= group[0]) & (s <= group[-1])] for s, v in runs]
            yield int(group[-1]), np.concatenate(parts), sum(len(part) > 0 for part in parts)
