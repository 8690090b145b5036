"""A comparison as files for people: HTML, Markdown and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.files import write_atomic
from harness.types import Comparison


@dataclass(frozen=True)
class ReportFiles:
    """What :func:`render` wrote."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]


def render(comparison: Comparison, folder: Path) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``figures/*.svg`` into ``folder``.

    The same comparison gives the same bytes. Each file is replaced as a whole, figures first, so
    that a report never shows a figure that is not there. Files of other names are left alone.

    Raises:
        OSError: ``folder`` cannot be written.
    """
    from harness.report.html import html
    from harness.report.markdown import markdown
    from harness.report.view import build

    report = build(comparison)
    figures = report.figures()
    paths = {stem: folder / "figures" / f"{stem}.svg" for stem in figures}
    for stem, path in paths.items():
        write_atomic(path, figures[stem])
    write_atomic(folder / "report.md", markdown(report))
    write_atomic(folder / "report.html", html(report, figures))
    return ReportFiles(folder / "report.html", folder / "report.md", tuple(paths.values()))
