"""AlpacaEval's evaluators as prompts, read from the installed package and never copied.

Source: Li et al. (2023), AlpacaEval, https://github.com/tatsu-lab/alpaca_eval; its files are in
``alpaca_eval/evaluators_configs``. The package itself is not imported. Unlike it, the chat is split
into messages before the answers are put in, so that an answer cannot add a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import InputError, unknown_name
from harness.judges.llm.prompts import ByPattern, ByRank, ByToken, JudgePrompt, Manner
from harness.judges.llm.verdicts import Choice
from harness.suites import read_yaml, validation_text
from harness.types import Message, Role

PACKAGE = "alpaca_eval"
FOLDER = "evaluators_configs"
CONFIG = "configs.yaml"

CHAT = re.compile(r"<\|im_start\|>([^\n]*)\n(.*?)<\|im_end\|>", re.DOTALL)
"""A message as AlpacaEval's templates write it: role and content."""

KEPT = ("tools", "tool_choice")
"""What of ``completions_kwargs`` is part of the question."""

SUPPORTED = (
    "ranking_parser, regex_parser, logprob_parser, or pipeline_meta_parser of json_parser and "
    "ranking_parser"
)
CHOICES = {1: Choice.FIRST, 2: Choice.SECOND, 0: Choice.TIE}
"""AlpacaEval's numbers for the verdicts."""


def evaluators_folder() -> Path:
    """Return the folder of the installed package that holds its evaluators.

    Raises:
        InputError: the package is not installed.
    """
    found = find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    if not places:
        raise InputError(
            "AlpacaEval's prompts are read from its own package, which is not installed: "
            "pip install alpaca-eval. This package's own prompts are named 'tbpo'."
        )
    return Path(next(iter(places))) / FOLDER


def evaluator_prompt(name: str) -> JudgePrompt:
    """Return the prompt of an evaluator, such as ``weighted_alpaca_eval_gpt4_turbo``.

    Model, temperature and the order of the answers are the judge's, not the evaluator's.

    Raises:
        InputError: no such evaluator, or one whose template or parser is not supported.
    """
    folder = evaluators_folder()
    path = folder / name / CONFIG
    if not path.is_file():
        known = [place.parent.name for place in folder.glob(f"*/{CONFIG}")]
        raise unknown_name("AlpacaEval evaluator", name, known)
    try:
        return _prompt(folder, name, read_yaml(path)[name])
    except (KeyError, TypeError, ValueError) as error:
        problem = validation_text(error) if isinstance(error, ValidationError) else repr(error)
        raise InputError(f"{path} has another form than expected: {problem}") from error


def _prompt(folder: Path, name: str, config: Mapping[str, Any]) -> JudgePrompt:
    if config.get("batch_size", 1) != 1:
        raise InputError(f"AlpacaEval evaluator '{name}' asks about several pairs at once")
    asked = config["completions_kwargs"]
    return JudgePrompt(
        name=name,
        version=1,
        title=f"AlpacaEval's {name}",
        messages=split_chat(folder / config["prompt_template"]),
        max_tokens=asked["max_tokens"],
        manner=_manner(name, config),
        extra={key: asked[key] for key in KEPT if key in asked},
    )


def split_chat(path: Path) -> tuple[Message, ...]:
    """Return the messages of a template file.

    Raises:
        InputError: it cannot be read, or is not written as a chat.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    parts = [(role.strip(), content.strip()) for role, content in CHAT.findall(text)]
    if not parts or any(role not in tuple(Role) for role, _ in parts):
        raise InputError(f"{path} is not a chat of system, user and assistant messages")
    return tuple(Message(role=Role(role), content=content) for role, content in parts)


def _manner(name: str, config: Mapping[str, Any]) -> Manner:
    parser, given = config["fn_completion_parser"], config.get("completion_parser_kwargs") or {}
    match parser:
        case "logprob_parser":
            return _by_token(given)
        case "ranking_parser":
            return ByRank(model=given.get("model_1_name", "model_1"))
        case "regex_parser":
            patterns = given["outputs_to_match"]
            return ByPattern(patterns={CHOICES[int(key)]: text for key, text in patterns.items()})
        case "pipeline_meta_parser" if list(given["parsers_to_kwargs"]) == [
            "json_parser",
            "ranking_parser",
        ]:
            first, then = given["parsers_to_kwargs"].values()
            model = (then or {}).get("model_1_name", "model_1")
            return ByRank(model=model, within=first["annotation_key"])
    raise InputError(
        f"AlpacaEval evaluator '{name}' reads replies by {parser}, which is not supported. "
        f"Supported: {SUPPORTED}."
    )


def _by_token(given: Mapping[str, Any]) -> ByToken:
    place = given.get("log_prob_index", "batch")
    return ByToken(
        numerator=given["numerator_token"],
        denominators=tuple(given["denominator_tokens"]),
        binarize=given.get("is_binarize", True),
        place=0 if place == "batch" else place,
    )
