"""``tbpo suites``: which there are, whether they are sound, what they ask, and their pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli_config import data_option, json_option, parse_checkpoint, parse_data
from harness.errors import InputError, TbpoError, unknown_name

if TYPE_CHECKING:
    from harness.suite_view import SuiteView
    from harness.types import Loadable, Record

names_argument = click.argument("names", nargs=-1, required=True, metavar="NAME|FILE...")


class _Suites(click.Group):
    """A group whose words, where none is a command, are suites to show."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = next((word for word in args if not word.startswith("-")), None)
        if first is not None and first not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Suites, invoke_without_command=True)
@json_option
@click.pass_context
def suites(ctx: click.Context, as_json: bool) -> None:
    """List suites and groups of them; 'tbpo suites NAME' shows one. Nothing is fetched to list."""
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise InputError(f"put --json behind '{ctx.invoked_subcommand}'")
        return
    rows = list(_listed())
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(_list_lines(rows)))


def _listed() -> Iterator[dict[str, Any]]:
    """Yield each packaged suite's declaration and what is known of its content without a fetch."""
    from harness.suites import known_groups, known_suites

    groups = known_groups()
    for name, path in known_suites().items():
        held = {"groups": [key for key, group in groups.items() if name in group.suites]}
        yield _row(path) | held


def _row(path: Path) -> dict[str, Any]:
    from harness.suites import SuiteKind, load_suite, read_spec, suite_kind

    kind = suite_kind(path)
    if kind is not SuiteKind.PROMPTS:
        declared, digest = _declared(path)
        asked = 0 if kind is SuiteKind.TRAINING else None  # lm-eval keeps the documents of its own
        return declared.model_dump(mode="json") | {"examples": asked, "content_sha256": digest}
    spec = read_spec(path)
    found: dict[str, Any] = {"examples": None, "content_sha256": None}
    if spec.data.path is not None:
        suite = load_suite(path)
        found = {"examples": len(suite.examples), "content_sha256": suite.content_sha256}
    return spec.model_dump(mode="json") | found


def _declared(path: Path) -> tuple[Record, str]:
    """Return the declaration of a suite that asks no prompts of its own, and its hash."""
    from harness.suites import SuiteKind, load_training_suite, suite_kind

    if suite_kind(path) is SuiteKind.TRAINING:
        training = load_training_suite([str(path)])
        assert training is not None
        return training.spec, training.content_sha256
    from harness.capability.tasks import load_capability_suite

    found = load_capability_suite(path)
    return found.spec, found.content_sha256


def _list_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    from harness.suites import known_groups

    for row in rows:
        yield f"{row['name']}  v{row['version']}  {_holds(row)}  {row['title']}"
    yield "groups:"
    for name, group in known_groups().items():
        most = f", about {group.limit} prompts of each" if group.limit else ""
        yield f"  {name}: {', '.join(group.suites)}{most}  {group.title}"
        if group.judges:
            yield f"    judges: {group.judges}"


def _holds(row: Mapping[str, Any]) -> str:
    from harness.suites import DataRef, SuiteKind

    if row.get("kind") == SuiteKind.TRAINING:
        return "training logs"
    if row.get("kind") == SuiteKind.LM_EVAL:
        return f"{len(row['tasks'])} tasks of lm-eval"
    if row["examples"] is None:
        return f"from {DataRef.model_validate(row['data'])}"
    return f"{row['examples']} examples"


def _resolved(names: tuple[str, ...]) -> dict[Path, int | None]:
    """Return the YAML files behind names, each with the most examples taken of it.

    Raises:
        InputError: unknown name, or one without a declaration.
    """
    from harness.suites import OUTPUTS, resolve_names

    if OUTPUTS in names:
        raise InputError(
            f"'{OUTPUTS}' has no declaration: its prompts are those of the recorded answers. "
            "'tbpo checkpoints inspect FILE' shows such a file."
        )
    return resolve_names(names)


# Validate.


@suites.command()
@names_argument
@data_option
def validate(names: tuple[str, ...], data: tuple[str, ...]) -> None:
    """Check suites: declaration, data, metrics, judges, primary keys, version. A line for each.

    Exit code 0: a run would take them all; 2: it would not, and every error is printed. The tasks
    and data of lm-eval are looked at where --data names a local copy.
    """
    from harness.suites import declared_name

    copies = parse_data(data)
    errors: list[TbpoError] = []
    seen: list[str] = []
    for path in _found(names, errors):
        try:
            name = declared_name(path)
            seen.append(name)
            click.echo(_checked(path, copies.get(name)))
        except TbpoError as error:
            errors.append(error)
    errors += [unknown_name("suite of --data", n, seen) for n in copies if n not in seen]
    for problem in errors:
        click.echo(f"tbpo: {problem}", err=True)
    sys.exit(2 if errors else 0)


def _found(names: tuple[str, ...], errors: list[TbpoError]) -> list[Path]:
    found: dict[Path, None] = {}
    for name in names:
        try:
            found |= dict.fromkeys(_resolved((name,)))
        except TbpoError as error:
            errors.append(error)
    return list(found)


def _checked(path: Path, copy: Path | None) -> str:
    """Return the line of a suite that a run would take.

    Raises:
        InputError: it would not, and why.
    """
    from harness.checks import check_version, load_judges, load_metrics
    from harness.suite_text import left_out_text
    from harness.suite_view import data_used, dialogues
    from harness.suites import SuiteKind, load_suite, suite_kind

    if suite_kind(path) is not SuiteKind.PROMPTS:
        declared, digest = _declared(path)
        row = declared.model_dump(mode="json")
        said = f"{row['name']}  v{row['version']}  {_holds(row)}"
        if suite_kind(path) is SuiteKind.TRAINING:
            if copy is not None:
                raise InputError(f"--data {row['name']}: a training suite has no data of its own")
            return f"{said}  {digest}"
        if copy is None:
            return f"{said}, its data not looked at  {digest}"
        from harness.capability.stage import plan_tasks

        planned = plan_tasks(path, copy, None)
        return f"{said}, {len(planned.examples):,} documents  {planned.card().content_sha256}"
    suite = load_suite(path, copy)
    load_metrics([suite])
    load_judges([suite])
    check_version(suite)
    left_out = left_out_text(data_used(suite, path).left_out) or "none"
    return (
        f"{suite.spec.name}  v{suite.spec.version}  {len(suite.examples):,} examples, "
        f"{dialogues(suite):,} dialogues  rows left out: {left_out}  {suite.content_sha256}"
    )


# Show.


@suites.command()
@names_argument
@data_option
@click.option(
    "--checkpoint",
    metavar="SPEC",
    help="NAME=SOURCE as for 'tbpo run': counts tokens, and puts a prompt in its chat template.",
)
@json_option
def show(
    names: tuple[str, ...], data: tuple[str, ...], checkpoint: str | None, as_json: bool
) -> None:
    """Show what suites ask, how, what is measured, and one prompt as a model reads it."""
    from harness.suite_text import view_lines
    from harness.suites import SuiteKind, declared_name, suite_kind

    found = _resolved(names)
    copies = parse_data(data)
    by_path = {path: declared_name(path) for path in found}
    for name in copies:
        if name not in by_path.values():
            raise unknown_name("suite of --data", name, by_path.values())
    reader = _reader(checkpoint)
    shown: list[tuple[dict[str, Any], list[str]]] = []
    for path, limit in found.items():
        kind, name = suite_kind(path), by_path[path]
        if kind is SuiteKind.PROMPTS:
            seen = _view(path, copies.get(name), limit, reader)
            shown.append((seen.row(), list(view_lines(seen))))
            continue
        row, lines = _row(path), list(_declared_lines(path))
        if kind is SuiteKind.LM_EVAL and name in copies:
            from harness.capability.view import view_tasks

            tasks = view_tasks(path, copies[name], limit, reader)
            row |= tasks.model_dump(mode="json") | {"examples": tasks.documents}
            lines += tasks.lines()
        elif kind is SuiteKind.LM_EVAL:
            lines.append(
                "  data: lm-eval fetches its own in a run; they were not looked at, and no prompt "
                f"is shown. A folder of copies is: --data {name}=FOLDER"
            )
        shown.append((row, lines))
    if as_json:
        click.echo(json.dumps([row for row, _ in shown], indent=2))
    else:
        click.echo("\n\n".join("\n".join(lines) for _, lines in shown))


def _reader(text: str | None) -> Loadable | None:
    """Return the checkpoint of ``--checkpoint``, made ready; None where none is given."""
    if text is None:
        return None
    from pydantic import ValidationError

    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.adapters import prepare
    from harness.suites import validation_text
    from harness.types import CheckpointSpec

    try:
        spec = CheckpointSpec.model_validate(parse_checkpoint(text))
    except ValidationError as error:
        raise InputError(f"--checkpoint '{text}': {validation_text(error)}") from error
    return prepare(spec)


def _view(path: Path, copy: Path | None, limit: int | None, reader: Loadable | None) -> SuiteView:
    from harness.checks import load_judges, load_metrics
    from harness.suite_view import data_used, view
    from harness.suites import cut, load_suite

    suite = load_suite(path, copy)
    used = data_used(suite, path)
    suite = cut(suite, limit, None)
    return view(suite, used, load_metrics([suite]), load_judges([suite]), reader)


def _declared_lines(path: Path) -> Iterator[str]:
    row = _row(path)
    yield f"{row['name']}  v{row['version']}  {_holds(row)}  {row['title']}"
    yield f"  {row['description']}"
    spec, _ = _declared(path)
    for task in row.get("tasks", []):
        yield f"  task: {task['task']}, {task['shots']} solved examples, metric {task['metric']}"
    if "parameters" in row:
        yield f"  {spec.parameters}"  # type: ignore[attr-defined]
    if row["citation"]:
        yield f"  citation: {row['citation']}"


# Pages.


@suites.command()
@click.argument("names", nargs=-1, metavar="[NAME|FILE...]")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Folder for the pages."
)
def docs(names: tuple[str, ...], output: Path) -> None:
    """Write a Markdown page for each suite, and an index; nothing is fetched."""
    from harness.suite_docs import write_pages

    written = write_pages(output, list(_resolved(names)) if names else None)
    click.echo(f"{len(written)} pages in {output}")
