"""Figures as SVG, the same bytes on every run; scatter plots with intervals.

matplotlib is used without pyplot and with its default settings, whatever the user's matplotlibrc
says. Text stays text, so that it can be selected, read aloud and set in the page's own font.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from harness.report.labels import Box, place
from harness.report.palette import Style
from harness.report.text import clean
from harness.types import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Stand-ins that :func:`inline` replaces, so that a figure follows the page into dark mode.
INK, MUTED, GRID, PAPER = "#1c2024", "#5b6470", "#dfe2e6", "#fffffe"
THEME = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "none"}

SIZE = 10.0
"""Font size in points."""

SCALE_STEPS = 12
"""Colours of the scale; a few steps are drawn as shapes, many would need an image."""


@dataclass(frozen=True)
class Point:
    """A checkpoint in a chart; ``shade`` is its value on the colour scale."""

    label: str
    style: Style
    x: Estimate
    y: Estimate
    shade: float | None = None


@dataclass(frozen=True)
class Chart:
    """What a scatter plot shows; ``level`` is a horizontal line, ``scale`` names the colours."""

    stem: str
    alt: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    x_factor: float = 1.0
    y_factor: float = 1.0
    level: float | None = None
    scale: str | None = None


def svg(chart: Chart) -> str:
    """Return a chart as a stand-alone SVG document on a white ground."""
    return document(chart.stem, chart.alt, lambda: _figure(chart))


def document(stem: str, alt: str, draw: Callable[[], Figure]) -> str:
    """Return what ``draw`` draws, under this module's settings, as a stand-alone SVG document."""
    import io

    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(stem))
        figure = draw()
        stream = io.StringIO()
        figure.savefig(stream, format="svg", facecolor=PAPER, metadata=_NO_METADATA)
    return _labelled(stream.getvalue(), alt)


_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _settings(salt: str) -> dict[RcKeyType, Any]:
    return {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": SIZE,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    }


def _figure(chart: Chart) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.7), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.margins(0.14)
    if chart.level is not None:
        axes.axhline(chart.level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    colours = _colours(figure, axes, chart)
    for point, colour in zip(chart.points, colours, strict=True):
        _draw_point(axes, chart, point, colour)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _draw_labels(axes, chart)
    return figure


def _colours(figure: Figure, axes: Axes, chart: Chart) -> list[str]:
    """Return the fill of each point; draws the colour scale where the chart has one."""
    shades = [p.shade for p in chart.points if p.shade is not None]
    if chart.scale is None or not shades:
        return [p.style.colour for p in chart.points]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    edges = scale_edges(min(shades), max(shades))
    colours = colormaps["viridis"].resampled(SCALE_STEPS)
    _draw_scale(figure, axes, edges, colours, chart.scale)
    return [
        PAPER if p.shade is None else to_hex(colours(scale_step(p.shade, edges)))
        for p in chart.points
    ]


def scale_edges(low: float, high: float) -> list[float]:
    """Return the bounds of the colour steps from ``low`` to ``high``; wider where these agree."""
    slack = 0.0 if high > low else max(abs(high), 1.0) * 0.05
    step = (high - low + 2 * slack) / SCALE_STEPS
    return [low - slack + step * place for place in range(SCALE_STEPS + 1)]


def scale_step(value: float, edges: Sequence[float]) -> int:
    """Return the 0-based colour step that ``value`` falls into."""
    share = (value - edges[0]) / (edges[-1] - edges[0])
    return min(SCALE_STEPS - 1, max(0, int(share * SCALE_STEPS)))


def _draw_scale(
    figure: Figure, axes: Axes, edges: list[float], colours: Colormap, title: str
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    mappable = ScalarMappable(BoundaryNorm(edges, SCALE_STEPS), colours)
    bar = figure.colorbar(mappable, ax=axes, ticks=edges[::4], fraction=0.05, pad=0.03)
    bar.ax.set_yticklabels([f"{edge:.3g}" for edge in edges[::4]])
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.set_label(title)
    bar.outline.set_visible(False)


def _span(estimate: Estimate, factor: float) -> tuple[float, float, float]:
    """Return value, lower and upper bound; absent bounds collapse onto the value."""
    value = estimate.value if estimate.value is not None else 0.0
    low = value if estimate.low is None else estimate.low
    high = value if estimate.high is None else estimate.high
    return value * factor, low * factor, high * factor


def _draw_point(axes: Axes, chart: Chart, point: Point, colour: str) -> None:
    x, left, right = _span(point.x, chart.x_factor)
    y, bottom, top = _span(point.y, chart.y_factor)
    line = point.style.colour if chart.scale is None else MUTED
    axes.plot([left, right], [y, y], color=line, linewidth=1.3, alpha=0.75, zorder=2)
    axes.plot([x, x], [bottom, top], color=line, linewidth=1.3, alpha=0.75, zorder=2)
    axes.plot(
        [x],
        [y],
        marker=point.style.marker,
        markersize=8,
        color=colour,
        markeredgecolor=INK,
        markeredgewidth=0.8,
        linestyle="none",
        zorder=3,
    )


def _draw_labels(axes: Axes, chart: Chart) -> None:
    from matplotlib.transforms import IdentityTransform

    identity = IdentityTransform()
    spans = [(_span(p.x, chart.x_factor), _span(p.y, chart.y_factor)) for p in chart.points]
    anchors = [_pixels(axes, x[0], y[0]) for x, y in spans]
    window = axes.get_window_extent()
    frame = Box(window.x0, window.y0, window.x1, window.y1)
    obstacles = [box for x, y in spans for box in _obstacles(axes, x, y)]
    texts = [p.label for p in chart.points]
    for text, (x, y) in zip(texts, place(anchors, texts, obstacles, frame, SIZE), strict=True):
        axes.text(x, y, text, transform=identity, ha="center", va="center_baseline", zorder=4)


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    left, bottom = axes.transData.transform((x, y))
    return float(left), float(bottom)


def _obstacles(
    axes: Axes, x: tuple[float, float, float], y: tuple[float, float, float]
) -> list[Box]:
    centre, start, end = (_pixels(axes, value, y[0]) for value in x)
    _, low, high = (_pixels(axes, x[0], value) for value in y)
    return [
        Box(centre[0] - 5, centre[1] - 5, centre[0] + 5, centre[1] + 5),
        Box(start[0], centre[1] - 1, end[0], centre[1] + 1),
        Box(centre[0] - 1, low[1], centre[0] + 1, high[1]),
    ]


def _labelled(document: str, alt: str) -> str:
    """Return the SVG without prologue and with a title that assistive technology reads."""
    title = escape(" ".join(clean(alt).split()))
    start = document.index("<svg ")
    end = document.index(">", start)
    head = f'{document[start:end]} role="img" aria-label="{title}"'
    body = "\n".join(line.rstrip() for line in document[end + 1 :].splitlines())
    return f"{head}>\n<title>{title}</title>{body}\n"


def inline(document: str, prefix: str) -> str:
    """Return an SVG for embedding: ids unique to ``prefix``, colours taken from the page."""
    document = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', document)
    document = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", document)
    for stand_in, themed in THEME.items():
        document = document.replace(stand_in, themed)
    return document


def usable(estimates: Sequence[Estimate | None]) -> bool:
    """Return whether all estimates have a value to draw."""
    return all(e is not None and e.value is not None for e in estimates)
