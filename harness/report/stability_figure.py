"""Training curves as small multiples: a row a checkpoint, a column a logged quantity."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.figures import INK, MUTED, SIZE, document
from harness.report.palette import Style
from harness.report.stability import PANELS, STEM, StabilityBlock, Trace
from harness.stability import CHOSEN, GRADIENT, LOSS
from harness.types import SeedCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, ROW, TOP, BOTTOM = 13.0, 1.05, 0.38, 0.55
"""Inches: the figure's width, a row's height, the headings above, the axis below."""

CONTEXT = 30
"""Most points of another checkpoint's line in the background."""

PALE = 0.6
"""Relative luminance above which a line is outlined, to be seen on a white page."""


def stability_svg(block: StabilityBlock) -> str:
    """Return the figure as a stand-alone SVG document."""
    drawn = document(STEM, block.alt, lambda: _figure(block.traces))
    return re.sub(r'(?<= d=")[^"]*', lambda path: _short_numbers(path[0]), drawn)


def _short_numbers(path: str) -> str:
    """Return path data to a hundredth of a point: as seen, and half as large."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", path)


def _figure(traces: Sequence[Trace]) -> Figure:
    from matplotlib.figure import Figure

    height = TOP + ROW * len(traces) + BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=72)
    grid = figure.subplots(len(traces), len(PANELS), sharex=True, sharey=False, squeeze=False)
    figure.subplots_adjust(
        left=0.152,
        right=0.992,
        top=1 - TOP / height,
        bottom=BOTTOM / height,
        wspace=0.27,
        hspace=0.3,
    )
    for place, (quantity, title) in enumerate(PANELS):
        _draw_column([row[place] for row in grid], traces, quantity)
        grid[0][place].set_title(title, fontsize=SIZE, loc="left", color=INK, pad=8)
        grid[-1][place].set_xlabel("Step")
    for row, trace in zip(grid, traces, strict=True):
        _draw_label(row[0], trace)
    return figure


def _draw_column(panels: Sequence[Axes], traces: Sequence[Trace], quantity: str) -> None:
    if quantity != LOSS:
        for axes in panels[1:]:
            axes.sharey(panels[0])
    if quantity == GRADIENT:
        for axes in panels:
            axes.set_yscale("log")
    for axes, trace in zip(panels, traces, strict=True):
        _draw_panel(axes, trace, quantity, traces)
        _ticks(axes, quantity)


def _draw_panel(axes: Axes, trace: Trace, quantity: str, traces: Sequence[Trace]) -> None:
    if quantity not in trace.curves:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not in the log", transform=axes.transAxes, color=MUTED, ha="center")
        return
    if quantity != LOSS:
        for other in _others(trace, traces, quantity):
            x, y = _thinned(_drawable(other, quantity))
            axes.plot(x, y, color=MUTED, alpha=0.35, linewidth=0.7, zorder=1)
    if quantity == CHOSEN:
        axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    _draw_curve(axes, _drawable(trace.curves[quantity], quantity), trace.style)
    for step in trace.broken:
        axes.plot(
            [step],
            [0.1],
            transform=axes.get_xaxis_transform(),
            marker="x",
            markersize=7,
            markeredgewidth=1.8,
            color=INK,
            linestyle="none",
            clip_on=False,
            zorder=5,
        )


def _others(trace: Trace, traces: Sequence[Trace], quantity: str) -> Iterator[SeedCurve]:
    for other in traces:
        if other is not trace and quantity in other.curves:
            yield other.curves[quantity]


Points = list[tuple[int, float, float, float, int]]
"""Step, median, lowest, highest, number of seeds."""


def _drawable(curve: SeedCurve, quantity: str) -> Points:
    """Return the curve's points; a logarithmic axis has no place for zero."""
    points = zip(curve.steps, curve.median, curve.lowest, curve.highest, curve.seeds, strict=True)
    return [p for p in points if quantity != GRADIENT or p[2] > 0]


def _thinned(points: Points) -> tuple[list[int], list[float]]:
    """Return steps and medians of at most :data:`CONTEXT` groups of points."""
    size = -(-len(points) // CONTEXT)
    groups = [points[i : i + size] for i in range(0, len(points), size or 1)]
    middle = [sorted(p[1] for p in group)[len(group) // 2] for group in groups]
    return [group[len(group) // 2][0] for group in groups], middle


def _draw_curve(axes: Axes, points: Points, style: Style) -> None:
    steps = [p[0] for p in points]
    medians = [p[1] for p in points]
    if any(p[4] > 1 for p in points):
        axes.fill_between(
            steps,
            [p[2] for p in points],
            [p[3] for p in points],
            color=style.colour,
            alpha=0.3,
            linewidth=0,
            zorder=2,
        )
    if _luminance(style.colour) > PALE:
        axes.plot(steps, medians, color=INK, alpha=0.55, linewidth=2.4, zorder=3)
    axes.plot(steps, medians, color=style.colour, linewidth=1.4, zorder=4)


def _luminance(colour: str) -> float:
    """Return a colour's relative luminance (WCAG 2) in [0, 1]."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _ticks(axes: Axes, quantity: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.tick_params(labelsize=SIZE - 1, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02, y=0.08)
    if quantity != GRADIENT:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        return
    axes.yaxis.set_major_locator(LogLocator(10, numticks=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


LABEL = -0.62
"""Where a row's label begins, in widths of its first panel."""


def _draw_label(axes: Axes, trace: Trace) -> None:
    """Write the checkpoint's marker, name and number of seeds left of its row."""
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
    axes.text(LABEL, 0.64, trace.label, weight="bold", color=INK, **place)
    axes.text(LABEL, 0.3, trace.seeds, color=MUTED, size=SIZE - 1, **place)
    axes.plot(
        [LABEL - 0.06],
        [0.64],
        transform=axes.transAxes,
        marker=trace.style.marker,
        markersize=8,
        color=trace.style.colour,
        markeredgecolor=INK,
        markeredgewidth=0.8,
        linestyle="none",
        clip_on=False,
    )
