"""The chat template of a checkpoint: its own or one that the user names, and whether it holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters.identity import (
    own_template,
    own_tokenizer,
    read_text,
    reading,
    template_text,
    text_sha256,
)
from harness.errors import CheckpointError
from harness.types import CheckpointSpec, Loadable

OWN = "own"
"""The value of ``chat_template`` that keeps a checkpoint's own template although others differ."""


class ChosenTemplate(NamedTuple):
    """The template in use: its hash, and its text where it is not the folder's own."""

    sha256: str
    override: str | None


def choose_template(spec: CheckpointSpec, folder: Path, lora: Path | None = None) -> ChosenTemplate:
    """Return the chat template that a checkpoint's prompts are rendered with.

    It is what ``spec.chat_template`` names; else that of an adapter saved with a tokenizer; else
    the folder's own.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is not valid Jinja.
    """
    override, source = _override(spec, lora)
    text = own_template(folder) if override is None else override
    check_syntax(text, source or str(folder))
    return ChosenTemplate(text_sha256(text), override)


def _override(spec: CheckpointSpec, lora: Path | None) -> tuple[str | None, str]:
    """Return the text that replaces the folder's own template, and where it is from."""
    if spec.chat_template not in (None, OWN):
        return named_template(str(spec.chat_template)), str(spec.chat_template)
    own = template_text(lora) if lora is not None and own_tokenizer(lora) else None
    return own, str(lora) if own is not None else ""


def named_template(source: str) -> str:
    """Return the template in a Jinja file, or that of a checkpoint folder.

    Raises:
        CheckpointError: no such file or folder, or the folder has no template.
    """
    place = Path(source).expanduser()
    with reading(place):
        if place.is_file():
            return read_text(place)
        if place.is_dir() and (text := template_text(place)) is not None:
            return text
    problem = "has no chat template" if place.is_dir() else "is neither a file nor a folder"
    raise CheckpointError(
        f"chat_template={source} {problem}. Give '{OWN}', a Jinja file, or a checkpoint folder "
        "whose template is to be used."
    )


def check_syntax(text: str, source: str) -> None:
    """Check that a template is valid Jinja with the statements that transformers allows.

    Raises:
        CheckpointError: names the source, the template's line and what is wrong there.
    """
    from jinja2 import TemplateSyntaxError

    try:
        _environment().from_string(text)
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template of {source} is not valid Jinja: line {error.lineno}: "
            f"{error.message}. Correct it, or name another: chat_template=FILE."
        ) from error


def _environment() -> Any:
    """Return a Jinja environment that knows loops with break and the generation block."""
    from jinja2 import ext, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        tags = {"generation"}  # noqa: RUF012 (Jinja reads this class attribute)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )


def check_templates(checkpoints: Sequence[Loadable]) -> None:
    """Check that checkpoints with one tokenizer have one chat template, unless the user says so.

    A checkpoint whose ``chat_template`` was set, be it to ``own``, is as its user wants it. The
    template of an endpoint is unknown and recorded answers have none: they are not looked at.

    Raises:
        CheckpointError: names the groups of checkpoints that share a template.
    """
    for same_tokenizer in _unstated(checkpoints).values():
        if len(same_tokenizer) > 1:
            groups = "; ".join(", ".join(names) for names in same_tokenizer.values())
            raise CheckpointError(
                f"checkpoints with the same tokenizer have different chat templates ({groups}), so "
                "their prompts would differ. Where that is meant, say chat_template=own for those "
                "that differ; else chat_template=FOLDER of the checkpoint whose template is right."
            )


def _unstated(checkpoints: Sequence[Loadable]) -> dict[str, dict[str, list[str]]]:
    """Return tokenizer hash -> template hash -> names, where no template was asked for."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for checkpoint in checkpoints:
        tokenizer, template = checkpoint.tokenizer_sha256, checkpoint.template_sha256
        if tokenizer and template and checkpoint.spec.chat_template is None:
            found[tokenizer][template].append(checkpoint.spec.name)
    return found
