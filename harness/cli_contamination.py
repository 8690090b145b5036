"""The verb ``tbpo contamination``: evaluation prompts in training data, without a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from harness.cli_config import data_option, json_option, parse_data
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.types import DataOverlap, SuiteOverlap


@click.command()
@click.option(
    "--training",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Training rows: JSONL, JSON or Parquet (pairs, chats, prompt and answer), or "
    "hub-id:split. Repeat it.",
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    required=True,
    help="Suite, group or YAML file. Repeat it.",
)
@click.option(
    "--words",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    help="Length of the runs of words that are compared.",
)
@click.option(
    "--share",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of a prompt's runs in one row that makes it a near-duplicate.",
)
@data_option
@json_option
def contamination(
    training: tuple[str, ...],
    suites: tuple[str, ...],
    words: int,
    share: float,
    data: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count the prompts of suites that occur in training data, exactly or nearly.

    Exit code 0 whatever is found; 2 where something given cannot be read.
    """
    from harness.contamination import data_overlap
    from harness.suites import load_suites
    from harness.training.known import named_sources
    from harness.types import OverlapParameters

    loaded = load_suites(suites, data=parse_data(data))
    if not loaded:
        raise InputError(
            f"{', '.join(suites)}: no prompts to look for. Name a suite of prompts; those of "
            "lm-eval's tasks are counted in a run."
        )
    sources = [source for text in training for source in named_sources(text)]
    found = data_overlap(
        sources,
        {suite.spec.name: suite.examples for suite in loaded},
        OverlapParameters(words=words, share=share),
    )
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: DataOverlap) -> Iterator[str]:
    from harness.report.contamination import source_text

    yield f"{found.rows:,} rows of {', '.join(map(source_text, found.sources))}"
    for suite in found.suites:
        yield from _suite(suite)


def _suite(found: SuiteOverlap) -> Iterator[str]:
    short = f", {found.short} of them too short for it" if found.short else ""
    yield (
        f"{found.suite}: {found.exact} exact and {found.near} near of {found.examples} prompts"
        f"{short}; {found.answers} of {found.references} reference answers"
    )
    for overlap in found.overlaps:
        yield f"  {overlap.kind:6} {overlap.share:4.0%}  {overlap.example_id}  {overlap.origin}"
