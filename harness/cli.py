"""Command line: parse, call, print, exit code. Heavy modules are imported where they are used."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.cli_annotate import annotate
from harness.cli_checkpoints import checkpoints as checkpoints_group
from harness.cli_config import (
    build_config,
    json_option,
    limit_option,
    output_option,
    run_config,
    run_options,
)
from harness.cli_contamination import contamination
from harness.cli_diversity import diversity
from harness.cli_judge import judge
from harness.cli_plan import plan
from harness.cli_score import import_command, score
from harness.cli_stability import stability
from harness.cli_suites import suites
from harness.cli_train import train
from harness.cli_winrate import winrate
from harness.errors import TbpoError

if TYPE_CHECKING:
    from harness.plan import RunConfig

DEMO_OBJECTIVES = ("sft", "dpo", "bpo", "tdpo2", "tis-dpo", "tbpo-q", "tbpo-a")
DEMO_CHECKPOINTS = (
    ("base", "embedded:smollm2-135m-instruct", "instruct"),
    *((name, f"embedded:{name}", name) for name in DEMO_OBJECTIVES),
)

DEFECT = 70
"""Exit code of an error that no message was written for."""

run_argument = click.argument("run_folder", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tbpo")
@click.option("-v", "--verbose", is_flag=True, help="More log lines on stderr.")
def cli(verbose: bool) -> None:
    """Compare preference-optimised language-model checkpoints on one engine start."""
    logging.basicConfig(
        level=logging.ERROR,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("harness").setLevel(logging.DEBUG if verbose else logging.INFO)


def _run(config: RunConfig) -> None:
    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.pipeline import run

    _render(run(config))


def _render(folder: Path) -> None:
    from harness.reading import compare_run
    from harness.report import render

    comparison = compare_run(folder)
    files = render(comparison, folder)
    for gap in comparison.gaps:
        logging.getLogger("harness").warning("incomplete: %s", gap)
    click.echo(f"report: {files.html}")


@cli.command()
@output_option
@limit_option
def demo(output: Path | None, limit: int | None) -> None:
    """Compare the embedded model with seven checkpoints trained from it; write a report."""
    given = {
        "checkpoints": [{"name": n, "source": s, "method": m} for n, s, m in DEMO_CHECKPOINTS],
        "suites": ["mini"],
        "output": output or Path("results") / (f"demo-{limit}" if limit else "demo"),
        "limit": limit,
    }
    _run(build_config(None, given))


@cli.command(name="run")
@run_options
def run_command(**given: Any) -> None:
    """Evaluate checkpoints on suites through one engine start; write a report."""
    _run(run_config(given))


@cli.command()
@run_argument
@json_option
def compare(run_folder: Path, as_json: bool) -> None:
    """Compare the checkpoints of a run: metrics, differences and win rates with intervals."""
    from harness.reading import compare_run, summary_text

    comparison = compare_run(run_folder)
    click.echo(comparison.model_dump_json(indent=2) if as_json else summary_text(comparison))


@cli.command()
@run_argument
def report(run_folder: Path) -> None:
    """Render report.html and report.md from a run folder, complete or not."""
    _render(run_folder)


@cli.command()
@click.argument("candidate")
@click.option("--baseline", required=True, help="Checkpoint to be no worse than.")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    default=Path("results/demo"),
    show_default=True,
    help="Run folder that holds both.",
)
@click.option("--rules", type=click.Path(path_type=Path), help="YAML of margins.")
@json_option
def gate(
    candidate: str, baseline: str, run_folder: Path, rules: Path | None, as_json: bool
) -> None:
    """Decide whether CANDIDATE is no worse than the baseline.

    Exit code 0: pass; 1: regression; 3: inconclusive, which includes any missing data.
    """
    from harness.gate import decide, load_rules
    from harness.reading import compare_run, gate_text

    outcome = decide(compare_run(run_folder), candidate, baseline, load_rules(rules))
    click.echo(outcome.model_dump_json(indent=2) if as_json else gate_text(outcome))
    sys.exit(outcome.exit_code)


cli.add_command(checkpoints_group)
cli.add_command(train)
cli.add_command(stability)
judge.add_command(annotate)
cli.add_command(judge)
cli.add_command(plan)
cli.add_command(winrate)
cli.add_command(score)
cli.add_command(contamination)
cli.add_command(diversity)
cli.add_command(import_command)
cli.add_command(suites)


def main() -> None:
    """Run the command line; print a user's error without a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        click.echo("stopped; what was computed is kept, run the same command to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TbpoError as error:
        click.echo(f"tbpo: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except Exception:
        # Python's own exit code 1 would read as the gate's "regression".
        traceback.print_exc()
        click.echo("tbpo: this is a defect of the harness; please report it", err=True)
        sys.exit(DEFECT)
