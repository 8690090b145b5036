"""The verb ``tbpo winrate``: a leaderboard straight from files of judgments, without a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli_config import json_option
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.judgments import JudgmentFile, ModelScores
    from harness.leaderboard import Settings, Standing
    from harness.types import Estimate


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="[NAME=]FILE...")
@click.option(
    "--length-control",
    type=click.Choice(["alpaca-eval", "paper", "none"]),
    default="paper",
    show_default=True,
    help="Form of the win rate at equal length.",
)
@click.option(
    "--difficulty",
    type=click.Path(path_type=Path),
    help="CSV with index and instruction_difficulty, a covariate of the rate at equal length.",
)
@click.option(
    "--regulariser",
    type=click.Path(path_type=Path),
    help="CSV of the extra rows of AlpacaEval's fit, plain or gzip.",
)
@click.option(
    "--lookup",
    type=click.Choice(["index", "row"]),
    default="index",
    show_default=True,
    help="What a difficulty is looked up by; AlpacaEval itself takes the row.",
)
@click.option("--baseline", help="Only pairs with this model, seen from the other side.")
@click.option(
    "--strong-weight",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often a verdict of Arena-Hard's '>>' counts; 1 as often as any.",
)
@click.option("--output", type=click.Path(path_type=Path), help="CSV to write the rows to.")
@click.option(
    "--differences",
    type=click.Path(path_type=Path),
    help="CSV to write the difference of every two models to, with its tests.",
)
@json_option
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the intervals.")
@click.option(
    "--resamples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Bootstrap samples of each interval.",
)
def winrate(
    files: tuple[str, ...], output: Path | None, as_json: bool, **options: str | int | Path | None
) -> None:
    """Compute win rates with intervals from files of judgments, one row a model.

    A FILE is AlpacaEval's annotations.json, rows of one model with the preference, MT-Bench's or
    Arena-Hard's judgments, judged summaries, or a run folder. NAME stands in place of the file's
    own name of the model on trial. Files of MT-Bench's single scores give mean scores.
    """
    from harness.judgments import holds_scores

    opened = [_opened(word) for word in files]
    scored = [holds_scores(file) for file in opened]
    if all(scored):
        _scores(opened, output, as_json, options)
    elif any(scored):
        place = opened[scored.index(True)].table.path
        raise InputError(
            f"{place} holds scores of single answers, others verdicts on pairs: "
            "give the two kinds to two commands"
        )
    else:
        _rates(opened, output, as_json, options)


def _opened(word: str) -> JudgmentFile:
    """Return the file of ``[NAME=]FILE``; a file whose own name has ``=`` in it goes first."""
    from harness.judgments import open_judgments

    name, equals, place = word.partition("=")
    if not equals or Path(word).exists():
        return open_judgments(Path(word))
    if not name or not place:
        raise InputError(f"'{word}': expected FILE or NAME=FILE")
    return open_judgments(Path(place), name)


# Verdicts on pairs.


def _rates(
    opened: Sequence[JudgmentFile], output: Path | None, as_json: bool, options: Mapping[str, Any]
) -> None:
    from harness.judgments import against, read_judgments
    from harness.leaderboard import leaderboard
    from harness.pairwise import differences

    settings, pairs = _settings(options), options["differences"]
    if pairs is not None and pairs == output:
        raise InputError(f"--output and --differences both name {output}: give them two files")
    judgments = read_judgments(opened)
    if options["baseline"] is not None:
        judgments = against(judgments, str(options["baseline"]))
    found = leaderboard(judgments, settings)
    if pairs is not None:
        compared = differences(judgments, found, settings)
        _write("--differences", pairs, [difference.columns() for difference in compared])
    _write("--output", output, [standing.columns() for standing in found])
    _warn(found, settings)
    if as_json:
        click.echo(json.dumps([s.columns() for s in found], indent=2))
    else:
        click.echo("\n".join(_rate_lines(found)))


def _warn(found: Sequence[Standing], settings: Settings) -> None:
    """Say where a rate of AlpacaEval's form is not the one that AlpacaEval publishes."""
    from harness.leaderboard import unpublished

    lacking = " and ".join(f"without {name}" for name in unpublished(settings))
    if lacking and any(standing.length_controlled for standing in found):
        click.echo(
            f"note: the rate at equal length is not AlpacaEval's published one: it is {lacking}. "
            "Give --difficulty and --regulariser for that.",
            err=True,
        )


def _settings(options: Mapping[str, Any]) -> Settings:
    """Return the settings; an option that would be passed over is refused."""
    from harness.judgments.covariates import Lookup, read_difficulty, read_regulariser
    from harness.leaderboard import LengthControl, Settings

    control, difficulty = LengthControl(options["length_control"]), options["difficulty"]
    regulariser = options["regulariser"]
    if difficulty is not None and control is LengthControl.NONE:
        raise InputError("--difficulty has no use with --length-control none")
    if difficulty is None and options["lookup"] != Lookup.INDEX:
        raise InputError(f"--lookup {options['lookup']} has no use without --difficulty")
    if regulariser is not None and control is not LengthControl.ALPACA_EVAL:
        raise InputError("--regulariser belongs to --length-control alpaca-eval")
    return Settings(
        length_control=control,
        difficulty=None if difficulty is None else read_difficulty(difficulty),
        regulariser=None if regulariser is None else read_regulariser(regulariser),
        lookup=Lookup(options["lookup"]),
        strong_weight=options["strong_weight"],
        seed=options["seed"],
        resamples=options["resamples"],
    )


RATE_TITLES = (
    "model",
    "win rate %",
    "se",
    "at equal length %",
    "verdicts W/D/L",
    "prompts",
    "missing verdicts",
)


def _rate_lines(found: Sequence[Standing]) -> Iterator[str]:
    """Yield a table for each judge and baseline, and below it how its figures were obtained."""
    pairs = dict.fromkeys((standing.judge, standing.baseline) for standing in found)
    for judge, baseline in pairs:
        own = [s for s in found if (s.judge, s.baseline) == (judge, baseline)]
        yield f"judge {judge}, against {baseline}"
        yield from _table([RATE_TITLES, *map(_rate_cells, own)])
        yield from _notes(own)


def _rate_cells(standing: Standing) -> tuple[str, ...]:
    return (
        standing.model,
        _percent(standing.rate),
        "" if standing.standard_error is None else f"{100 * standing.standard_error:.2f}",
        _percent(standing.length_controlled),
        f"{standing.wins}/{standing.draws}/{standing.losses}",
        str(standing.rate.clusters),
        str(standing.rate.missing),
    )


def _notes(found: Sequence[Standing]) -> Iterator[str]:
    for method in dict.fromkeys(standing.rate.method for standing in found):
        yield f"  win rate: {method}"
    for method in dict.fromkeys(s.lacking or _method(s.length_controlled) for s in found):
        yield f"  at equal length: {method}"


def _method(estimate: Estimate | None) -> str:
    return "" if estimate is None else estimate.method


def _percent(estimate: Estimate | None) -> str:
    return _interval(estimate, 100.0)


def _interval(estimate: Estimate | None, factor: float = 1.0) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{factor * estimate.value:.2f}"
    low, high = factor * estimate.low, factor * estimate.high
    return f"{factor * estimate.value:.2f} [{low:.2f}, {high:.2f}]"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with columns of equal width; the first column stands left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _write(option: str, path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, numbers to the last bit; an empty cell is a value that is missing."""
    if path is None:
        return
    from harness.files import write_atomic

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomic(path, text.getvalue())
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written: {error.strerror}") from error


# Scores of single answers.

SCORE_TITLES = ("model", "judge", "first turn", "second turn", "average", "judgments", "unparsed")


def _scores(
    opened: Sequence[JudgmentFile], output: Path | None, as_json: bool, options: Mapping[str, Any]
) -> None:
    import numpy as np

    from harness.judgments import mean_scores

    for name in ("baseline", "difficulty", "regulariser", "differences"):
        if options[name] is not None:
            raise InputError(f"--{name} belongs to verdicts on pairs; these are scores")
    rng = np.random.default_rng(options["seed"])
    found = mean_scores(opened, rng=rng, resamples=options["resamples"])
    rows = [_score_columns(model) for model in found]
    _write("--output", output, rows)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for line in _table([SCORE_TITLES, *map(_score_cells, found)]):
        click.echo(line)
    click.echo(f"  scores: {found[0].average.method}")


def _score_columns(found: ModelScores) -> dict[str, Any]:
    named = {f"turn_{turn}": found.turns.get(turn) for turn in (1, 2)} | {"average": found.average}
    columns: dict[str, Any] = {"model": found.model, "judge": found.judge}
    for name, estimate in named.items():
        columns[name] = None if estimate is None else estimate.value
        columns[f"{name}_low"] = None if estimate is None else estimate.low
        columns[f"{name}_high"] = None if estimate is None else estimate.high
    return columns | {"n_judgments": found.judgments, "n_unparsed": found.unparsed}


def _score_cells(found: ModelScores) -> tuple[str, ...]:
    means = (found.turns.get(1), found.turns.get(2), found.average)
    counts = (str(found.judgments), str(found.unparsed))
    return (found.model, found.judge, *map(_interval, means), *counts)
