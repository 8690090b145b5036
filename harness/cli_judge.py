"""``tbpo judge``: how far a language model can be trusted as a judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli_config import (
    asking,
    asking_options,
    json_option,
    judge_option,
    judge_spec,
)
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.judge_check import Check, Measured

PEOPLE = "people"


@click.group()
def judge() -> None:
    """Measure judges before their verdicts are believed."""


@judge.command()
@judge_option
@click.option(
    "--pairs",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    required=True,
    help="Labelled pairs: 'chosen' and 'rejected' answers, or TL;DR comparisons. Repeat it.",
)
@asking_options
@json_option
def check(
    judges: tuple[str, ...],
    files: tuple[Path, ...],
    suite: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure how often judges decide as people did, and how steadily.

    What is found of a judge is kept, and stands beside its verdicts in the reports of later runs;
    not so where a model decided the pairs, as in TL;DR comparisons.
    """
    specs = [judge_spec(text) for text in judges]
    if not specs:
        raise InputError("no judge given: --judge NAME=SOURCE[,key=value...]")
    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.judge_check import check_judges

    found = check_judges(
        specs,
        files,
        suite,
        **asking(**how),
    )
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: Check) -> Iterator[str]:
    yield f"{found.pairs} pairs of {found.measured_on}, shown in both orders"
    if found.skipped:
        yield f"left out: {found.skipped}"
    if found.deciders != PEOPLE:
        yield f"decided by {found.deciders}, not by people: what is found is kept for no report"
    for judge in found.judges:
        yield from _judge_lines(judge, found.deciders)
    for name, estimate in found.between.items():
        yield _line(name, estimate)


def _judge_lines(found: Measured, deciders: str) -> Iterator[str]:
    yield found.name
    for name, estimate in found.figures.items():
        yield _line(name, estimate)
    yield f"  decided alike {found.alike}, tie {found.half}, against {deciders} {found.opposed}"
    if found.reason:
        yield f"  no verdict on some pairs, first: {found.reason}"


def _line(name: str, estimate: object) -> str:
    from harness.reading import estimate_text
    from harness.types import Estimate

    assert isinstance(estimate, Estimate)
    missing = f", missing {estimate.missing}" if estimate.missing else ""
    return f"  {name:34} {estimate_text(estimate)}  n {estimate.n}{missing}"
