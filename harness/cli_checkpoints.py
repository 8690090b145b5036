"""``tbpo checkpoints``: what a checkpoint is, and any form of it as a Hugging Face folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.adapters.inspection import Inspection
    from harness.types import CheckpointSpec

NAME = "checkpoint"
TEMPLATE_LINES = 6
LINE_WIDTH = 100
"""Lines of a chat template that are shown, and characters of each; JSON has all of it."""

source_argument = click.argument("source")
base_option = click.option("--base", help="Base of a LoRA or of a policy.pt: folder, hub id...")
template_option = click.option(
    "--chat-template", help="A Jinja file or a folder whose chat template replaces its own."
)


@click.group()
def checkpoints() -> None:
    """Inspect a checkpoint of any form, or convert it."""


@checkpoints.command()
@source_argument
@base_option
@template_option
@click.option("--model", help="Name under which an endpoint or a file of answers has it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def inspect(source: str, as_json: bool, **fields: str | None) -> None:
    """Show what SOURCE is: form, base, hashes, parameters, chat template, what would be dropped.

    Exit code 0: a run would take it; 2: a run would refuse it, and the output says why.
    """
    spec = _spec(source, fields)
    from harness.adapters.inspection import inspect as inspected

    found = inspected(spec)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_lines(found)))
    sys.exit(2 if found.problems else 0)


@checkpoints.command()
@source_argument
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A new folder.")
@base_option
@template_option
def convert(source: str, output: Path, **fields: str | None) -> None:
    """Write SOURCE as a Hugging Face folder that any engine loads; a LoRA is merged."""
    spec = _spec(source, fields)
    from harness.adapters.conversion import convert as converted

    ready = converted(spec, output)
    click.echo(f"{output}  weights {ready.weights_sha256}")
    for note in ready.notes:
        click.echo(f"  {note}")


def _spec(source: str, fields: dict[str, Any]) -> CheckpointSpec:
    """Return the checkpoint to look at, with the process made fit to read it."""
    from pydantic import ValidationError

    from harness.engines.environment import prepare_process
    from harness.errors import InputError
    from harness.suites import validation_text
    from harness.types import CheckpointSpec

    prepare_process()
    try:
        return CheckpointSpec(name=NAME, source=source, **fields)
    except ValidationError as error:
        raise InputError(f"{source or 'SOURCE'}: {validation_text(error)}") from error


def _lines(found: Inspection) -> Iterator[str]:
    for title, value in _rows(found):
        if value is not None:
            yield f"{title:<15} {value}"
    for note in found.notes:
        yield f"{'note':<15} {note}"
    for problem in found.problems:
        yield f"{'REFUSED':<15} {problem}"


def _rows(found: Inspection) -> Iterator[tuple[str, str | None]]:
    yield "source", found.source
    yield "form", f"{found.form} ({found.adapter})"
    yield "revision", found.revision
    yield "folder", found.folder
    if found.base is not None:
        yield "base", f"{found.base.folder}, weights {found.base.weights_sha256}"
    as_they_lie = f"{found.weights_sha256} (files as they lie; a run records what it loads)"
    yield "weights", as_they_lie if found.reworked else found.weights_sha256
    yield "parameters", _parameters(found)
    yield "size", None if found.size_bytes is None else f"{found.size_bytes / 1e6:,.1f} MB"
    yield "model", found.model_type
    yield "vocabulary", _count(found.vocabulary, "rows")
    yield "context", _count(found.context_length, "tokens")
    yield "tokenizer", found.tokenizer_sha256
    yield "chat template", found.template_sha256
    for line in (found.chat_template or "").splitlines()[:TEMPLATE_LINES]:
        yield "", line[:LINE_WIDTH]


def _parameters(found: Inspection) -> str | None:
    """Return exact counts with their stored formats: ``1,234 (BF16) + 56 of the adapter``."""
    if not found.parameters:
        return None
    parts = ", ".join(f"{count:,} ({name})" for name, count in found.parameters.items())
    own = found.adapter_parameters
    return parts if own is None else f"{parts} + {own:,} of the adapter"


def _count(value: int | None, unit: str) -> str | None:
    return None if value is None else f"{value:,} {unit}"
