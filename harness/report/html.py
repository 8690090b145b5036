"""A report as one HTML file that opens offline: style and figures inside, no scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report.figures import inline
from harness.report.origin import (
    counts,
    dtype_text,
    engine_facts,
    facts,
    licence_text,
    run_facts,
    sampling_text,
    weights_text,
)
from harness.report.stability import STEM, unit_text
from harness.report.strengths import strength_note
from harness.report.tables import excludes
from harness.report.text import clean
from harness.report.verdict import agreement_text, interval_methods
from harness.report.view import Report
from harness.report.winrates import P_VALUES, describe, duel_data
from harness.types import REFERENCE

TEMPLATES = Path(__file__).with_name("templates")


def _printable(value: object) -> object:
    return clean(value) if type(value) is str else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        agreement_text=agreement_text,
        counts=counts,
        describe=describe,
        dtype_text=dtype_text,
        duel_data=duel_data,
        engine_facts=engine_facts,
        excludes=excludes,
        facts=facts,
        interval_methods=interval_methods,
        p_values=P_VALUES,
        reference=REFERENCE,
        run_facts=run_facts,
        sampling_text=sampling_text,
        licence_text=licence_text,
        stability_stem=STEM,
        strength_note=strength_note,
        unit_text=unit_text,
        weights_text=weights_text,
    )
    return environment


def html(report: Report, figures: dict[str, str]) -> str:
    """Return the report as one HTML document; whatever a model wrote is escaped.

    Args:
        report: the content.
        figures: stand-alone SVG documents by file stem, drawn by this package; the only text
            that enters the page unescaped besides the style sheet.
    """
    drawings = {stem: Markup(inline(document, stem)) for stem, document in figures.items()}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    page = _environment().get_template("report.html.j2")
    return page.render(report=report, figures=drawings, style=style)
