"""The verb ``tbpo contamination``: evaluation prompts in training data, without a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli_config import data_option, json_option, parse_data
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.types import DataOverlap, Example, SuiteOverlap


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
    "--suites",
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
    from harness.training.known import named_sources
    from harness.types import OverlapParameters

    examples = _examples(suites, parse_data(data))
    sources = [source for text in training for source in named_sources(text)]
    found = data_overlap(
        sources,
        examples,
        OverlapParameters(words=words, share=share),
    )
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_lines(found)))


def _examples(
    suites: tuple[str, ...], copies: Mapping[str, Path]
) -> Mapping[str, tuple[Example, ...]]:
    """Return the prompts by suite; of lm-eval's tasks where there is a copy of their data.

    Raises:
        InputError: there are none.
    """
    from harness.suites import declared_name, lm_eval_suites, load_suites

    found = {suite.spec.name: suite.examples for suite in load_suites(suites, data=copies)}
    unseen = []
    for path in lm_eval_suites(suites):
        name = declared_name(path)
        if name in copies:
            from harness.capability.stage import plan_tasks

            found[name] = plan_tasks(path, copies[name], None).examples
        else:
            unseen.append(f"{name} was not looked at; name a copy: --data {name}=FOLDER")
    if not found:
        said = unseen or [f"{', '.join(suites)}: no prompts to look for; name a suite of prompts"]
        raise InputError("; ".join(said))
    for line in unseen:
        click.echo(f"tbpo: {line}", err=True)
    return found


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
