"""The verb ``tbpo judge annotate``: recorded answers -> AlpacaEval's ``annotations.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli_config import (
    JUDGE_HELP,
    asking,
    asking_options,
    json_option,
    judge_spec,
)
from harness.errors import EngineError, InputError

if TYPE_CHECKING:
    from harness.annotating import Annotated, Official

LACKING = {
    "reference": "answers to prompts without a reference answer",
    "output": "reference answers to prompts without an answer",
    "null": "pairs with an answer that is null",
    "repeated": "answers to a prompt after its first",
    "dialogues": "later questions of a dialogue",
}


@click.command()
@click.option("--judge", required=True, metavar="SPEC", help=JUDGE_HELP.removesuffix(" Repeat it."))
@click.option(
    "--outputs",
    type=click.Path(path_type=Path),
    required=True,
    help="File of the recorded answers on trial: JSON, JSONL, CSV or Parquet.",
)
@click.option("--model", help="Whose answers, where the file holds those of several models.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    required=True,
    help="File of recorded answers to hold them against.",
)
@click.option("--reference-model", help="Whose answers are the reference, likewise.")
@click.option(
    "--via",
    type=click.Choice(["own", "alpaca-eval"]),
    default="own",
    show_default=True,
    help="Who asks the judge and pairs the answers; alpaca-eval is its makers' own package.",
)
@asking_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("annotations.json"),
    show_default=True,
    help="File to write.",
)
@json_option
def annotate(
    judge: str,
    outputs: Path,
    model: str | None,
    reference: Path,
    reference_model: str | None,
    via: str,
    suite: str,
    output: Path,
    as_json: bool,
    **how: Any,
) -> None:
    """Judge recorded answers against recorded reference answers to the same prompts.

    Prompts are matched by their text. The file is AlpacaEval's annotations.json, which
    'tbpo winrate' reads as well as AlpacaEval does. Verdicts are cached: a stopped command goes on.
    """
    _keep_inputs(output, outputs, reference)
    spec = judge_spec(judge)
    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.annotating import Via, write_annotations
    from harness.annotating import annotate as annotated
    from harness.pairing import Source

    found = annotated(
        spec,
        Source(outputs, model),
        Source(reference, reference_model),
        suite,
        via=Via(via),
        **asking(**how),
    )
    write_annotations(output, found)
    click.echo(_as_json(found) if as_json else "\n".join(_lines(found, output)))
    if found.unanswered:
        raise EngineError(
            f"{found.unanswered} verdicts are missing from {output} because no usable reply came "
            f"(first: {found.reason}). What was judged is kept; run the same command to ask for "
            "the rest."
        )


def _keep_inputs(output: Path, *inputs: Path) -> None:
    if output.resolve() in [path.resolve() for path in inputs]:
        raise InputError(f"--output {output} is one of the files to be judged; name another")


def _as_json(found: Annotated) -> str:
    counts = {"pairs": len(found.annotations), "decided": found.decided}
    facts = found.model_dump(mode="json", exclude={"annotations"})
    return json.dumps(counts | facts, indent=2)


def _lines(found: Annotated, output: Path) -> Iterator[str]:
    pairs = len(found.annotations)
    yield (
        f"{pairs} pairs of {found.candidate} against {found.baseline}, judged by {found.judge} in "
        "both orders"
    )
    yield f"with a verdict {found.decided}, without {pairs - found.decided}"
    if found.equal:
        yield f"tied unasked, the answers being equal: {found.equal}"
    for name, count in found.lacking:
        if count:
            yield f"left out: {count} {LACKING[name]}"
    if found.official:
        yield _official_line(found.official)
    yield f"annotations: {output}"
    yield f"intervals, and at equal length: tbpo winrate {output} --length-control alpaca-eval"


def _official_line(found: Official) -> str:
    known = found.win_rate is not None and found.standard_error is not None
    rate = f"{found.win_rate:.2f} +- {found.standard_error:.2f}" if known else "-"
    return (
        f"alpaca-eval {found.version}: win rate {rate}, wins {found.n_wins}, draws "
        f"{found.n_draws}, losses {found.n_wins_base}, n {found.n_total}"
    )
