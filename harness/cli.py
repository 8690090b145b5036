"""Command line: parse, call, print, exit code. Heavy modules are imported where they are used."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.cli_checkpoints import checkpoints as checkpoints_group
from harness.cli_stability import stability
from harness.cli_train import train
from harness.errors import InputError, TbpoError

if TYPE_CHECKING:
    from harness.plan import RunConfig

CHECKPOINT_HELP = (
    "NAME=SOURCE[,key=value...]; SOURCE is a Hugging Face or PEFT folder, a hub id, a policy.pt, a "
    "GGUF file, an endpoint's URL, a file of recorded outputs or embedded:NAME. Keys: method, "
    "base, dtype, chat_template, merge, model, api_key_env, allow_unchanged, training_logs, "
    "adapter. Repeat it; the first is the base that differences are taken against."
)
DEMO_OBJECTIVES = ("sft", "dpo", "bpo", "tdpo2", "tis-dpo", "tbpo-q", "tbpo-a")
DEMO_CHECKPOINTS = (
    ("base", "embedded:smollm2-135m-instruct", "instruct"),
    *((name, f"embedded:{name}", name) for name in DEMO_OBJECTIVES),
)

LENGTH = "max_model_len"
"""The longest context: an option of its own, and a setting of the engine."""

DEFECT = 70
"""Exit code of an error that no message was written for."""

output_option = click.option(
    "--output", type=click.Path(path_type=Path), help="Run folder to write or go on with."
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Only about this many examples of each suite."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
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


def parse_checkpoint(text: str) -> dict[str, str]:
    """Return the fields of ``NAME=SOURCE[,key=value...]``.

    Raises:
        InputError: no name, no source, or a part that is not key=value.
    """
    head, *rest = text.split(",")
    name, found, source = head.partition("=")
    if not (found and name and source):
        raise InputError(f"--checkpoint '{text}': expected NAME=SOURCE[,key=value...]")
    fields = {"name": name, "source": source}
    for part in rest:
        key, found, value = part.partition("=")
        if not (found and key and value):
            raise InputError(f"--checkpoint '{text}': '{part}' is not key=value")
        fields[key] = value
    return fields


def parse_settings(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a mapping; values are read as YAML (numbers, true, null).

    Raises:
        InputError: a text that is not KEY=VALUE, or a value that is not YAML.
    """
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key and value):
            raise InputError(f"{option} '{text}': expected KEY=VALUE")
        try:
            found[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
            raise InputError(
                f"{option} '{text}': the value is not YAML. Where it is meant as text, put quotes "
                f"around it: {option} '{key}=\"{value}\"'"
            ) from error
    return found


def file_values(path: Path) -> dict[str, Any]:
    """Return the keys of a run's YAML file, ``engine`` and ``endpoint`` as mappings of settings.

    An engine given by its name alone and ``deterministic``, as the options have them, become
    settings of the engine.

    Raises:
        InputError: the file cannot be read, or settings are no mapping.
    """
    from harness.suites import read_yaml

    values = read_yaml(path)
    if isinstance(values.get("engine"), str):
        values["engine"] = {"name": values["engine"]}
    for key in ("engine", "endpoint"):
        values[key] = {} if values.get(key) is None else values[key]
        if not isinstance(values[key], dict):
            name = " or a name" if key == "engine" else ""
            raise InputError(
                f"{path}: {key}: expected a mapping of settings{name}, found "
                f"{type(values[key]).__name__}"
            )
    if "deterministic" in values:
        values["engine"] |= {"deterministic": values.pop("deterministic")}
    return values


def _prefer_option(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Take the context out of a file's values where the options give it, in either of its forms."""
    if given.get(LENGTH) is not None or LENGTH in given.get("engine", {}):
        values.pop(LENGTH, None)
        values.get("engine", {}).pop(LENGTH, None)


def build_config(path: Path | None, given: dict[str, Any]) -> RunConfig:
    """Return the run's configuration: a YAML file's keys, overridden by what the options give.

    Raises:
        InputError: unknown or wrong key, or a value that is required and absent.
    """
    from pydantic import ValidationError

    from harness.plan import RunConfig
    from harness.suites import validation_text

    values = file_values(path) if path is not None else {}
    _prefer_option(values, given)
    for key, value in given.items():
        if isinstance(value, dict):
            values[key] = (values.get(key) or {}) | value
        elif value not in (None, (), []):
            values[key] = value
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        where = str(path) if path is not None else "options"
        raise InputError(f"{where}: {validation_text(error)}") from error


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
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="SPEC", help=CHECKPOINT_HELP)
@click.option("--suite", "suites", multiple=True, help="Suite, group or YAML file. Repeat it.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with these options as keys.")
@output_option
@limit_option
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all sampling (default 0).")
@click.option("--max-model-len", type=int, help="Longest prompt plus answer, in tokens.")
@click.option("--engine", help="vllm or transformers; by default vLLM where it is installed.")
@click.option(
    "--deterministic",
    is_flag=True,
    help="Answers that do not depend on the batch they are computed in; much slower.",
)
@click.option(
    "--engine-set",
    "engine_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the engine, such as max_num_seqs=32 or tensor_parallel_size=2. Repeat it.",
)
@click.option(
    "--endpoint-set",
    "endpoint_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="How endpoints are asked, such as concurrency=8. Repeat it.",
)
def run_command(
    checkpoints: tuple[str, ...],
    suites: tuple[str, ...],
    config: Path | None,
    output: Path | None,
    limit: int | None,
    seed: int | None,
    max_model_len: int | None,
    engine: str | None,
    deterministic: bool,
    engine_settings: tuple[str, ...],
    endpoint_settings: tuple[str, ...],
) -> None:
    """Evaluate checkpoints on suites through one engine start; write a report."""
    chosen: dict[str, Any] = {"name": engine} if engine else {}
    if deterministic:
        chosen["deterministic"] = True
    given = {
        "checkpoints": [parse_checkpoint(text) for text in checkpoints],
        "suites": list(suites),
        "output": output,
        "limit": limit,
        "seed": seed,
        "max_model_len": max_model_len,
        "engine": chosen | parse_settings(engine_settings, "--engine-set"),
        "endpoint": parse_settings(endpoint_settings, "--endpoint-set"),
    }
    _run(build_config(config, given))


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


@cli.command()
@click.argument("names", nargs=-1)
@json_option
def suites(names: tuple[str, ...], as_json: bool) -> None:
    """List suites, or check and describe the given ones."""
    from harness.suites import known_suites, load_suites, load_training_suite

    wanted = names or tuple(known_suites())
    loaded, training = load_suites(wanted), load_training_suite(wanted)
    if as_json:
        rows = [
            s.spec.model_dump(mode="json")
            | {"examples": len(s.examples), "content_sha256": s.content_sha256}
            for s in loaded
        ]
        if training:
            declared = training.spec.model_dump(mode="json")
            rows.append(declared | {"examples": 0, "content_sha256": training.content_sha256})
        click.echo(json.dumps(rows, indent=2))
        return
    for suite in loaded:
        spec = suite.spec
        click.echo(f"{spec.name}  v{spec.version}  {len(suite.examples)} examples  {spec.title}")
        if names:
            click.echo(f"  {spec.description}\n  metrics: {', '.join(spec.metrics)}")
            click.echo(f"  judges: {', '.join(spec.judges) or 'none'}")
            click.echo(f"  first prompt: {suite.examples[0].messages[-1].content[:400]}")
    if training:
        read = training.spec
        click.echo(f"{read.name}  v{read.version}  training logs  {read.title}")
        if names:
            click.echo(f"  {read.description}\n  {read.parameters}")


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
