"""What a run's options and its YAML file have in common: both become one configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.plan import RunConfig
    from harness.types import JudgeSpec

F = TypeVar("F", bound=Callable[..., Any])

CHECKPOINT_HELP = (
    "NAME=SOURCE[,key=value...]; SOURCE is a Hugging Face or PEFT folder, a hub id, a policy.pt, a "
    "GGUF file, an endpoint's URL, a file of recorded outputs or embedded:NAME. Keys: method, "
    "base, dtype, chat_template, merge, model, api_key_env, allow_unchanged, training_logs, "
    "training_data, adapter. Repeat it; the first is the base that differences are taken against. "
    "training_data is a file or hub-id:split; join several by +."
)
JUDGE_HELP = (
    "A language model as a judge: NAME=SOURCE[,key=value...]; SOURCE is the URL of an "
    "OpenAI-compatible API, or a checkpoint for the engine in process. Keys: model, api_key_env, "
    "prompts, suites, temperature (a number or unset), max_tokens, retries, seed, logprobs, dtype, "
    "base. Repeat it."
)

LENGTH = "max_model_len"
"""The longest context: an option of its own, and a setting of the engine."""

output_option = click.option(
    "--output", type=click.Path(path_type=Path), help="Run folder to write or go on with."
)
limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Only about this many examples of each suite; of lm-eval's, documents of each task.",
)
judge_option = click.option("--judge", "judges", multiple=True, metavar="SPEC", help=JUDGE_HELP)
prices_option = click.option(
    "--prices", type=click.Path(path_type=Path), help="Price table in place of the packaged one."
)

budget_option = click.option(
    "--budget",
    multiple=True,
    metavar="KEY=VALUE",
    help="Cap on what judges behind an API may use in one go: usd=5, tokens=1000000 or "
    "requests=500. Repeat it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")

data_option = click.option(
    "--data",
    multiple=True,
    metavar="SUITE=PATH",
    help="Your own copy of a suite's data, in place of the declared file. Repeat it.",
)

ASKING_OPTIONS = (
    click.option(
        "--suite",
        default="instruction_following",
        show_default=True,
        help="Whose prompt the judge gets: SUITE, or SUITE/SUBSET such as hh/harmless.",
    ),
    limit_option,
    budget_option,
    click.option(
        "--engine-set",
        "engine",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the engine.",
    ),
    click.option(
        "--endpoint-set",
        "endpoint",
        multiple=True,
        metavar="KEY=VALUE",
        help="How APIs are asked.",
    ),
    prices_option,
)
"""How a judge is asked outside a run."""

RUN_OPTIONS = (
    click.option(
        "--checkpoint", "checkpoints", multiple=True, metavar="SPEC", help=CHECKPOINT_HELP
    ),
    click.option(
        "--suite", "--suites", "suites", multiple=True, help="Suite, group or YAML file. Repeat it."
    ),
    click.option(
        "--config", type=click.Path(path_type=Path), help="YAML with these options as keys."
    ),
    output_option,
    limit_option,
    click.option("--seed", type=click.IntRange(min=0), help="Seed of all sampling (default 0)."),
    data_option,
    click.option(
        "--max-tokens", type=click.IntRange(min=1), help="A lower limit on every suite's answers."
    ),
    click.option("--max-model-len", type=int, help="Longest prompt plus answer, in tokens."),
    click.option("--engine", help="vllm or transformers; by default vLLM where it is installed."),
    click.option(
        "--deterministic",
        is_flag=True,
        help="Answers that do not depend on the batch they are computed in; much slower.",
    ),
    click.option(
        "--engine-set",
        "engine_settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the engine, such as max_num_seqs=32 or tensor_parallel_size=2. "
        "Repeat it.",
    ),
    click.option(
        "--endpoint-set",
        "endpoint_settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="How endpoints are asked, such as concurrency=8. Repeat it.",
    ),
    judge_option,
    budget_option,
    prices_option,
)


def _with(options: Sequence[Callable[[F], F]], command: F) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def run_options(command: F) -> F:
    """Give a command the options of a run."""
    return _with(RUN_OPTIONS, command)


def asking_options(command: F) -> F:
    """Give a command the options of asking a judge outside a run; `asking` reads them."""
    return _with(ASKING_OPTIONS, command)


def asking(
    limit: int | None,
    budget: Sequence[str],
    engine: Sequence[str],
    endpoint: Sequence[str],
    prices: Path | None,
) -> dict[str, Any]:
    """Return what `asking_options` gave, the suite aside, as keywords of what asks the judge.

    Raises:
        InputError: a setting that is not KEY=VALUE.
    """
    return {
        "limit": limit,
        "engine": parse_settings(engine, "--engine-set"),
        "endpoint": parse_settings(endpoint, "--endpoint-set"),
        "budget": parse_settings(budget, "--budget"),
        "prices": prices,
    }


def parse_checkpoint(text: str, option: str = "--checkpoint") -> dict[str, str]:
    """Return the fields of ``NAME=SOURCE[,key=value...]``.

    Raises:
        InputError: no name, no source, or a part that is not key=value.
    """
    head, *rest = text.split(",")
    name, found, source = head.partition("=")
    if not (found and name and source):
        raise InputError(f"{option} '{text}': expected NAME=SOURCE[,key=value...]")
    fields = {"name": name, "source": source}
    for part in rest:
        key, found, value = part.partition("=")
        if not (found and key and value):
            raise InputError(f"{option} '{text}': '{part}' is not key=value")
        fields[key] = value
    return fields


def _divided(text: str, option: str, form: str) -> tuple[str, str]:
    """Return both sides of the equals sign.

    Raises:
        InputError: a side is empty.
    """
    key, equals, value = text.partition("=")
    if not (equals and key and value):
        raise InputError(f"{option} '{text}': expected {form}")
    return key, value


def parse_settings(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a mapping; values are read as YAML (numbers, true, null).

    Raises:
        InputError: a text that is not KEY=VALUE, or a value that is not YAML.
    """
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, value = _divided(text, option, "KEY=VALUE")
        try:
            found[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
            raise InputError(
                f"{option} '{text}': the value is not YAML. Where it is meant as text, put quotes "
                f"around it: {option} '{key}=\"{value}\"'"
            ) from error
    return found


def parse_data(texts: Sequence[str]) -> dict[str, Path]:
    """Return ``SUITE=PATH`` texts as a mapping.

    Raises:
        InputError: a text that is not SUITE=PATH, or a suite that is named twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, path = _divided(text, "--data", "SUITE=PATH")
        if name in found:
            raise InputError(f"--data names the data of '{name}' twice")
        found[name] = Path(path)
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


def run_config(given: dict[str, Any]) -> RunConfig:
    """Return the configuration that the options of a run, by name, stand for.

    Raises:
        InputError: an option cannot be read, or the configuration is none.
    """
    chosen: dict[str, Any] = {"name": given["engine"]} if given["engine"] else {}
    if given["deterministic"]:
        chosen["deterministic"] = True
    plain = ("output", "limit", "seed", "max_model_len", "max_tokens", "prices")
    options = {name: given[name] for name in plain} | {
        "checkpoints": [parse_checkpoint(text) for text in given["checkpoints"]],
        "suites": list(given["suites"]),
        "engine": chosen | parse_settings(given["engine_settings"], "--engine-set"),
        "endpoint": parse_settings(given["endpoint_settings"], "--endpoint-set"),
        "judges": parse_judges(given["judges"]),
        "budget": parse_settings(given["budget"], "--budget"),
        "data": parse_data(given["data"]),
    }
    return build_config(given["config"], options)


def parse_judges(texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the fields of each ``--judge``; see `parse_checkpoint`."""
    return [parse_checkpoint(text, "--judge") for text in texts]


def judge_spec(text: str) -> JudgeSpec:
    """Return the judge that a ``--judge`` names.

    Raises:
        InputError: it cannot be read, or a field is unknown or wrong.
    """
    from pydantic import ValidationError

    from harness.suites import validation_text
    from harness.types import JudgeSpec

    fields = parse_checkpoint(text, "--judge")
    try:
        return JudgeSpec.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"--judge {fields['name']}: {validation_text(error)}") from error
