"""The verb ``tbpo stability``: training logs read without a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.types import TrainingStability


@click.command()
@click.argument("logs", nargs=-1, required=True, metavar="[NAME=]FOLDER...")
@click.option(
    "--suite",
    default="training_stability",
    show_default=True,
    help="Training suite, or a YAML file, with the windows and thresholds to read them by.",
)
@click.option("--definitions", is_flag=True, help="Print what each figure means as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def stability(logs: tuple[str, ...], suite: str, definitions: bool, as_json: bool) -> None:
    """Show the training stability of trained folders from their logs, without a run.

    A FOLDER holds seeds/seed-N/train_log.jsonl or train_log.jsonl; a .jsonl file is one log.
    """
    from harness.reading import stability_text

    found = read(logs, suite)
    click.echo(found.model_dump_json(indent=2) if as_json else stability_text(found))
    if definitions and not as_json:
        click.echo(f"Diverged: {found.divergence}")
        for info in found.figures:
            click.echo(f"{info.title}: {info.definition}")


def read(given: tuple[str, ...], suite: str) -> TrainingStability:
    """Return the training stability of ``[NAME=]FOLDER`` words.

    Raises:
        InputError: two of one name, no log in a folder, or ``suite`` is no training suite.
        DataError: a log is wrong (file and line are named).
    """
    from harness.stability import read_stability
    from harness.suites import load_training_suite
    from harness.training_logs import find_logs

    places = _named(given)
    declared = load_training_suite([suite])
    if declared is None:
        raise InputError(f"--suite {suite}: not a suite of kind 'training'")
    found = [find_logs(name, Path(place), place) for name, place in places.items()]
    card = declared.card(logs.source for logs in found)
    return read_stability(card, [row for logs in found for row in logs.rows])


def _named(given: tuple[str, ...]) -> dict[str, str]:
    """Return places by name: the given one, else the folder's (a file's folder's) own."""
    places: dict[str, str] = {}
    for word in given:
        name, equals, place = word.partition("=")
        if not equals:
            path = Path(word).resolve()
            name, place = (path.parent if path.is_file() else path).name, word
        if not name or not place:
            raise InputError(f"'{word}': expected FOLDER or NAME=FOLDER")
        if name in places:
            raise InputError(f"'{name}' is given twice; tell them apart with NAME=FOLDER")
        places[name] = place
    return places
