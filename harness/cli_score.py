"""The verbs ``tbpo score`` and ``tbpo import``: recorded answers without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli_config import build_config, data_option, json_option, parse_data
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.scoring import Rescored
    from harness.types import MetricResult


@click.command()
@click.argument("suite")
@click.option(
    "--outputs",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="File of recorded answers: JSON, JSONL, CSV or Parquet.",
)
@click.option("--model", help="Whose answers, where the file holds those of several models.")
@data_option
@json_option
def score(suite: str, path: Path, model: str | None, data: tuple[str, ...], as_json: bool) -> None:
    """Score recorded answers to SUITE again, without an engine or a model.

    SUITE is a packaged suite, a YAML file, or 'outputs' for the prompts of the file itself. An
    answer is found by the example's id or by the prompt's text.
    """
    from harness.scoring import score_outputs

    found = score_outputs(suite, path, model, parse_data(data))
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_score_lines(found)))


def _score_lines(found: Rescored) -> Iterator[str]:
    yield (
        f"{found.model} on {found.suite}: {found.answers.present} of {found.answers.expected} "
        "answers"
    )
    yield from map(_metric_line, found.metrics)
    for name, reason in found.skipped.items():
        yield f"skipped {name}: {reason}"
    for line in found.lacking:
        yield f"missing: {line}"


def _metric_line(result: MetricResult) -> str:
    from harness.reading import estimate_text

    estimate, mark = result.estimate, " *" if result.primary else ""
    return (
        f"  {result.metric.key + mark:26} {estimate_text(estimate):28} {result.metric.unit}, "
        f"n {estimate.n}, missing {estimate.missing}"
    )


@click.command(name="import")
@click.argument("files", nargs=-1, required=True, metavar="[NAME=]FILE...")
@click.option(
    "--suite",
    default="outputs",
    show_default=True,
    help="Suite or YAML file that the answers belong to; 'outputs': the files' own prompts.",
)
@click.option(
    "--judgments",
    "judged",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File of judgments about these answers. Repeat it.",
)
@click.option("--reference", help="Name that the judgments have for the suite's own answers.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Run folder.")
@data_option
def import_command(
    files: tuple[str, ...],
    suite: str,
    judged: tuple[Path, ...],
    reference: str | None,
    output: Path,
    data: tuple[str, ...],
) -> None:
    """Bring recorded answers, and judgments about them, into a run; write its report.

    A FILE of several models is given once for each, as NAME=FILE,model=NAME. Then 'tbpo compare',
    'report' and 'gate' work on the run as on any other.
    """
    if reference is not None and not judged:
        raise InputError("--reference says whose answers --judgments are about; give those too")
    checkpoints = [*map(_checkpoint, files)]
    given = {"checkpoints": checkpoints, "suites": [suite], "output": output}
    config = build_config(None, given | {"data": parse_data(data)})
    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.judgments import open_judgments
    from harness.pipeline import run

    opened = [open_judgments(path) for path in judged]
    folder = run(config)
    if opened:
        from harness.importing import import_judgments

        found = import_judgments(folder, opened, reference)
        for judge, count in found.judgments.items():
            click.echo(f"{count} judgments of {judge}")
        if found.elsewhere:
            click.echo(f"{found.elsewhere} verdicts are about prompts that the run does not have")
    _report(folder)


def _checkpoint(word: str) -> dict[str, Any]:
    """Return the checkpoint of ``[NAME=]FILE[,model=NAME]``."""
    from harness.adapters import RECORDED
    from harness.scoring import checkpoint_name

    place, comma, model = word.partition(",model=")
    name, equals, path = place.partition("=")
    if not equals:
        name, path = checkpoint_name(Path(model or place)), place
    if not name or not path or (comma and not model):
        raise InputError(f"'{word}': expected FILE, NAME=FILE or NAME=FILE,model=NAME")
    return {"name": name, "source": f"{RECORDED}{path}", "model": model or None}


def _report(folder: Path) -> None:
    from harness.reading import compare_run
    from harness.report import render

    comparison = compare_run(folder)
    for gap in comparison.gaps:
        click.echo(f"incomplete: {gap}", err=True)
    click.echo(f"report: {render(comparison, folder).html}")
