"""Verifiable instructions, checked by IFEval's own checkers as lm-eval ships them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.errors import InputError, unknown_name
from harness.metrics import answer_score, by_answer
from harness.types import Direction, Example, Generation, Instruction, MetricInfo, Score

NEED_PUNKT = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
"""Instructions whose checkers split sentences with NLTK's Punkt model."""

NO_INSTRUCTION = "the example has no instruction"
NO_PUNKT = (
    "needs NLTK's sentence model, which is not installed: run "
    "'python -m nltk.downloader punkt_tab' once, or put it under $NLTK_DATA"
)


def _info(key: str, title: str, unit: str, definition: str) -> MetricInfo:
    return MetricInfo(
        key=key, title=title, unit=unit, direction=Direction.HIGHER, definition=definition
    )


_LOOSE = "in the answer or in a variant without its first line, last line or asterisks"

IFEVAL_INFO = (
    _info(
        "ifeval_prompt_strict",
        "IFEval, prompts, strict",
        "share",
        "Share of prompts whose answer keeps every instruction.",
    ),
    _info(
        "ifeval_prompt_loose",
        "IFEval, prompts, loose",
        "share",
        f"Share of prompts with every instruction kept {_LOOSE}.",
    ),
    _info(
        "ifeval_inst_strict",
        "IFEval, instructions, strict",
        "share",
        "Share of instructions kept: mean over prompts, weighted by their instructions.",
    ),
    _info(
        "ifeval_inst_loose",
        "IFEval, instructions, loose",
        "share",
        f"Share of instructions kept {_LOOSE}: mean over prompts, weighted by their instructions.",
    ),
)


@dataclass(frozen=True)
class Checked:
    """Verdicts on one answer, in the order of the example's instructions."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


@contextmanager
def _no_download() -> Iterator[None]:
    """Make lm-eval's import skip its download of Punkt, which only local rank 0 performs."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "-1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


@cache
def _checkers() -> Any:
    with _no_download():
        from lm_eval.tasks.ifeval import utils  # type: ignore[import-untyped]
    # It logs the whole answer as an error wherever no language can be told.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return utils


def _known() -> dict[str, Any]:
    registry: dict[str, Any] = _checkers().instructions_registry.INSTRUCTION_DICT
    return registry


@contextmanager
def _repeatable() -> Iterator[None]:
    """Pin the two sources of chance in the checkers, and give their state back afterwards.

    Language detection samples, and an argument that a checker does not accept (in IFEval's own
    data, ``letter`` "#" and "!") is replaced by a random one.
    """
    import random

    from langdetect import DetectorFactory  # type: ignore[import-untyped]

    state, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


@cache
def _has_punkt() -> bool:
    import nltk  # type: ignore[import-untyped]

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def unavailable(example: Example) -> str | None:
    """Return why answers to ``example`` cannot be checked here, or None where they can."""
    if not example.instructions:
        return NO_INSTRUCTION
    needing = sorted({i.id for i in example.instructions} & NEED_PUNKT)
    if needing and not _has_punkt():
        return f"{', '.join(needing)} {NO_PUNKT}"
    return None


def check(example: Example, text: str) -> Checked:
    """Return which of the example's instructions ``text`` keeps.

    The verdicts are those of lm-eval's functions, unchanged. An empty answer keeps nothing; one
    whose language cannot be told is taken to be in the language asked for.

    Source: Zhou et al. (2023), "Instruction-Following Evaluation for Large Language Models",
    arXiv 2311.07911, sections 2.2 and 3.
    """
    utils = _checkers()
    given = utils.InputExample(
        key=0,
        instruction_id_list=[i.id for i in example.instructions],
        prompt=example.messages[-1].content,
        kwargs=[i.kwargs for i in example.instructions],
    )
    with _repeatable():
        strict = utils.test_instruction_following_strict(given, text)
    with _repeatable():
        loose = utils.test_instruction_following_loose(given, text)
    return Checked(tuple(strict.follow_instruction_list), tuple(loose.follow_instruction_list))


def _check_arguments(instruction: Instruction) -> None:
    if instruction.id not in _known():
        raise unknown_name("instruction", instruction.id, _known())
    expected = set(_known()[instruction.id](instruction.id).get_instruction_args_keys())
    given = {key for key, value in instruction.kwargs.items() if value}
    if given != expected:
        raise InputError(
            f"instruction '{instruction.id}' takes {sorted(expected) or 'no arguments'}, given "
            f"{instruction.kwargs}; an argument that is absent, empty or 0 would be drawn at random"
        )


def check_instructions(examples: Iterable[Example]) -> None:
    """Refuse instructions that no checker understands, before anything is generated.

    Raises:
        InputError: an unknown instruction id (the known ones are listed), missing, unknown or
            unusable arguments; the example is named.
    """
    for example in examples:
        try:
            for instruction in example.instructions:
                _check_arguments(instruction)
            if example.instructions:
                check(example, "")
        except (InputError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"example '{example.id}': {error}") from error


def _scores(example: Example, answer: Generation) -> list[Score]:
    if reason := unavailable(example):
        return [answer_score(answer, info.key, None, reason=reason) for info in IFEVAL_INFO]
    found = check(example, answer.text)
    n = len(found.strict)
    return [
        answer_score(answer, "ifeval_prompt_strict", float(all(found.strict))),
        answer_score(answer, "ifeval_prompt_loose", float(all(found.loose))),
        answer_score(answer, "ifeval_inst_strict", sum(found.strict) / n, weight=n),
        answer_score(answer, "ifeval_inst_loose", sum(found.loose) / n, weight=n),
    ]


class IFEval:
    """IFEval's four accuracies: by prompt and by instruction, strict and loose."""

    info = IFEVAL_INFO

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Refuse instructions that no checker understands, and a suite without any.

        Raises:
            InputError: as of `check_instructions`.
        """
        if not any(example.instructions for example in examples):
            raise InputError(
                "no example has an instruction to check. Name the fields that hold them: "
                "fields.instructions, and fields.arguments where ids and arguments stand apart, "
                "as IFEval's own instruction_id_list and kwargs."
            )
        check_instructions(examples)

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return four scores for each answer; None where the example cannot be checked.

        Raises:
            InputError: an instruction that no checker understands.
        """
        check_instructions(examples)
        return [
            score
            for example, answer in by_answer(examples, generations)
            for score in _scores(example, answer)
        ]
