"""``tbpo train``: every key of the recipe is a flag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from harness.errors import InputError


def _metavar(annotation: Any) -> str:
    """Return what a flag takes, from a field's type: INTEGER, NUMBER, a choice, or TEXT."""
    choices = [a for a in get_args(annotation) if isinstance(a, str)]
    if choices:
        return f"[{'|'.join(choices)}]"
    text = str(annotation)
    for word, name in (("int", "INTEGER"), ("float", "NUMBER")):
        if word in text:
            return name
    return "TEXT"


def _shown(default: Any) -> str:
    return "; ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _option(name: str, field: Any) -> click.Option:
    """Return the click option of one field; its value goes to the recipe's own validation."""
    from pydantic_core import PydanticUndefined

    flag, text = f"--{name.replace('_', '-')}", field.description
    if field.default not in (None, (), PydanticUndefined):
        text += f" [default: {_shown(field.default)}]"
    if field.annotation is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=text)
    several = get_origin(field.annotation) is tuple
    return click.Option(
        [flag, name],
        multiple=several,
        metavar=_metavar(field.annotation),
        help=f"{text} Repeat it." if several else text,
    )


class RecipeCommand(click.Command):
    """A command with one option for each key of the recipe, made when they are asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own options and the recipe's, in the recipe's order."""
        from harness.training.recipe import Recipe

        fields = Recipe.model_fields.items()
        flags = [_option(name, field) for name, field in fields if name != "options"]
        return [*super().get_params(ctx), *flags]


def objective_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return ``--set KEY=VALUE`` as the objective's options; values are read as YAML.

    Raises:
        InputError: a part is not KEY=VALUE, or its value is not YAML.
    """
    import yaml

    options = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise InputError(f"--set '{pair}': expected KEY=VALUE")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or error
            raise InputError(f"--set '{pair}': the value is not YAML: {problem}") from error
    return options


def given_keys(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given; the word none stands for null, or for an empty list."""
    nothing = {"none": None, ("none",): ()}
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    return {key: nothing.get(value, value) for key, value in given.items()}


def _check_output(output: Path) -> None:
    """Refuse an output that cannot become a folder, before a model is read or a pair tokenised."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; expected a new folder, or that of this run")


@click.command(cls=RecipeCommand)
@click.option("--recipe", metavar="NAME|FILE", help="YAML recipe: a file, or a packaged one.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="Objective's option.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest on stdout.")
def train(
    recipe: str | None, output: Path, options: tuple[str, ...], as_json: bool, **flags: Any
) -> None:
    """Train a policy on preference pairs; a killed run goes on with the same command.

    Flags override the recipe; 'none' stands for no value. Defaults are the TokenRatio paper's.
    """
    _check_output(output)
    from harness.engines.environment import hide_mismatched_builds

    hide_mismatched_builds()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    from harness.training.ranks import processes
    from harness.training.recipe import load_recipe
    from harness.training.search import train as run

    given = given_keys(flags)
    if options:
        given["options"] = objective_options(options)
    manifest = run(load_recipe(recipe, given), output)
    if not processes().is_main_process:
        return
    held = manifest["held_out"]["after"]["implicit_reward_accuracy"]
    click.echo(
        json.dumps(manifest, indent=2)
        if as_json
        else f"{output}: held-out preference accuracy {held['value']:.3f} "
        f"[{held['low']:.3f}, {held['high']:.3f}], {held['n']} pairs"
    )
