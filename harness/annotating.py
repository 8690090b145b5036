"""Recorded answers judged against recorded answers: AlpacaEval's ``annotations.json``.

Our judge is asked about each pair in both orders, either straight away or by AlpacaEval's own
package, which then pairs the answers, takes our judge for its annotator and computes its metrics.
Source: Li et al. (2023), AlpacaEval, https://github.com/tatsu-lab/alpaca_eval.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from harness.errors import InputError
from harness.files import write_atomic
from harness.judges import AnswerPair, Judge
from harness.judging import llm_judge, make_budget
from harness.pairing import Lacking, Source, instruction_text, make_pairs, match, read_answers
from harness.types import JudgeSpec, Judgment, Record
from harness.types.records import unset

DRAW = 1.5
"""AlpacaEval's preference between equal answers; it asks no judge about them."""


class Via(StrEnum):
    """Who pairs the answers and asks the judge."""

    OWN = "own"
    ALPACA_EVAL = "alpaca-eval"


class Annotation(Record):
    """A row of ``annotations.json``: ``output_1`` is the reference's answer.

    Attributes:
        annotator: the judge's name.
        preference: in [1, 2]: 1 where the first answer is better, 2 where the second is; None
            where the judge gave no verdict that could be read.
        raw_completion: the judge's replies, by the order in which it saw the answers.
    """

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    annotator: str
    preference: float | None = Field(ge=1.0, le=2.0)
    raw_completion: dict[str, str | None] | None = Field(default=None, exclude_if=unset)
    dataset: str | None = Field(default=None, exclude_if=unset)


class Official(Record):
    """What the alpaca-eval package computes; rates in percent, None where it has no verdict."""

    version: str
    win_rate: float | None
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float | None
    avg_length: int


class Annotated(Record):
    """Annotations of one model's answers by one judge.

    Attributes:
        identity: the judge's.
        equal: pairs of equal answers, which tie unasked.
        unanswered: pairs without a verdict because no usable reply came: asking again may help.
        reason: why the first of them is unanswered.
    """

    judge: str
    identity: str
    candidate: str
    baseline: str
    annotations: tuple[Annotation, ...]
    lacking: Lacking
    equal: int
    unanswered: int
    reason: str | None
    official: Official | None

    @property
    def decided(self) -> int:
        """Pairs with a verdict."""
        return sum(row.preference is not None for row in self.annotations)


def annotate(
    spec: JudgeSpec,
    outputs: Source,
    reference: Source,
    suite: str,
    *,
    via: Via,
    limit: int | None,
    engine: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    budget: Mapping[str, Any],
    prices: Path | None,
) -> Annotated:
    """Have a judge compare recorded answers with recorded reference answers to the same prompts.

    Args:
        outputs: answers of the model on trial.
        suite: whose prompt the judge gets, ``SUITE`` or ``SUITE/SUBSET``.
        limit: only the first so many pairs.

    Raises:
        InputError: a file, the judge or a setting cannot be used, no prompt is in both files, or
            the alpaca-eval package is wanted and not installed.
        EngineError: the judge cannot be asked; verdicts stay cached.
        BudgetError: the budget is spent; verdicts stay cached.
    """
    package = alpaca_eval_package() if via is Via.ALPACA_EVAL else None
    ours, theirs = read_answers(outputs), read_answers(reference)
    matched, lacking = match(ours, theirs)
    pairs = make_pairs(matched[:limit], suite, ours.name, theirs.name)
    judge = llm_judge(spec, engine, endpoint, make_budget(budget, prices), own_length=True)
    try:
        asked = _Asked(judge)
        official = None if package is None else _officially(package, asked, pairs)
        found = official or Verdicts(asked.preferences(pairs), None)
        identity = judge.info.identity
    finally:
        judge.close()
    datasets = theirs.datasets | ours.datasets
    waiting = [judgment for judgment in asked.judgments.values() if judgment.unanswered]
    return Annotated(
        judge=spec.name,
        identity=identity,
        candidate=ours.name,
        baseline=theirs.name,
        annotations=tuple(_annotation(pair, spec.name, found, asked, datasets) for pair in pairs),
        lacking=lacking,
        equal=len(pairs) - len(asked.judgments),
        unanswered=len(waiting),
        reason=waiting[0].reason if waiting else None,
        official=found.official,
    )


def write_annotations(path: Path, found: Annotated) -> None:
    """Write annotations in the form that AlpacaEval's package and ``tbpo winrate`` read.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [row.model_dump(mode="json") for row in found.annotations]
    try:
        write_atomic(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"--output {path} cannot be written: {error.strerror}") from error


# Verdicts.


class Verdicts(NamedTuple):
    """AlpacaEval's preference by example, and what its package computes from all, if asked."""

    preferences: Mapping[str, float | None]
    official: Official | None


class _Asked:
    """A judge, and its judgments so far by example."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.judgments: dict[str, Judgment] = {}

    def preferences(self, pairs: Sequence[AnswerPair]) -> dict[str, float | None]:
        """Return AlpacaEval's preference by example; equal answers tie unasked."""
        unlike = [pair for pair in pairs if pair.candidate_text != pair.baseline_text]
        new = {judgment.example_id: judgment for judgment in self.judge.compare(unlike)}
        self.judgments |= new
        equal: dict[str, float | None] = {pair.example.id: DRAW for pair in pairs}
        return equal | {name: _preference(judgment) for name, judgment in new.items()}


def _preference(judgment: Judgment) -> float | None:
    return None if judgment.preference is None else 1.0 + judgment.preference


def _annotation(
    pair: AnswerPair, annotator: str, found: Verdicts, asked: _Asked, datasets: Mapping[str, str]
) -> Annotation:
    instruction = instruction_text(pair.example.messages)
    judgment = asked.judgments.get(pair.example.id)
    replies = {o.shown.value: o.reply for o in judgment.orders} if judgment else None
    return Annotation(
        instruction=instruction,
        output_1=pair.baseline_text,
        output_2=pair.candidate_text,
        generator_1=pair.baseline,
        generator_2=pair.candidate,
        annotator=annotator,
        preference=found.preferences[pair.example.id],
        raw_completion=replies,
        dataset=datasets.get(instruction),
    )


# AlpacaEval's own package.

PACKAGE = "alpaca_eval"
DOTENV_OFF = "PYTHON_DOTENV_DISABLED"
"""Keeps python-dotenv from reading a ``.env`` file."""

KEY = "example_id"
"""Column that names a pair. The package fills prompts field by field, so that braces in an answer
would be filled in turn: it is given the pair's name alone, and the judge has prompts of its own."""

ANNOTATOR = {
    "fn_completion_parser": "json_parser",
    "completion_parser_kwargs": {"annotation_key": "preference"},
    # The judge sees each pair in both orders itself.
    "is_randomize_output_order": False,
}


def alpaca_eval_package() -> Any:
    """Return the imported alpaca-eval package.

    Raises:
        InputError: it, or something it needs, is not installed.
    """
    with _undisturbed():
        try:
            return import_module(PACKAGE)
        except ImportError as error:
            raise InputError(
                f"the alpaca-eval package cannot be imported ({error}): "
                "pip install alpaca-eval==0.6.6"
            ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the package's hands off this process: it opens the root logger and reads ``.env``.

    A key found there would go to the judge's server without the user having set it here.
    """
    root, before = logging.getLogger(), os.environ.get(DOTENV_OFF)
    level = root.level
    os.environ[DOTENV_OFF] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        os.environ.pop(DOTENV_OFF)
        if before is not None:
            os.environ[DOTENV_OFF] = before


def _officially(package: Any, asked: _Asked, pairs: Sequence[AnswerPair]) -> Verdicts:
    """Let the package evaluate the answers with our judge as its annotator.

    The package's cache is off: its key does not hold the judge's model, as our own does. The
    metric is the plain win rate, as the length-controlled one downloads two files.
    """
    by_name = {pair.example.id: pair for pair in pairs}

    def completions(prompts: Sequence[str]) -> dict[str, list[str]]:
        found = asked.preferences([by_name[name] for name in prompts])
        return {"completions": [json.dumps({"preference": found[name]}) for name in prompts]}

    def metric(rows: Iterable[Mapping[str, Any]]) -> Any:
        # The package fails on a column of None alone; NaN means the same to it.
        values = (_number(row["preference"]) for row in rows)
        return package.metrics.get_winrate(
            [{"preference": math.nan if value is None else value} for value in values]
        )

    candidate, annotator = pairs[0].candidate, asked.judge.info.name
    with tempfile.TemporaryDirectory() as folder, _undisturbed():
        board, rows = package.evaluate(
            model_outputs=[_output(p, p.candidate, p.candidate_text) for p in pairs],
            reference_outputs=[_output(p, p.baseline, p.baseline_text) for p in pairs],
            annotators_config=_write_config(Path(folder), annotator),
            name=candidate,
            output_path=None,
            precomputed_leaderboard=None,
            is_return_instead_of_print=True,
            fn_metric=metric,
            sort_by="win_rate",
            is_cache_leaderboard=False,
            annotation_kwargs={"chunksize": None},
            caching_path=None,
            input_keys=("instruction", KEY),
            fn_completions=completions,
        )
    metrics = board.loc[candidate].to_dict()
    fields = {name: _number(metrics[name]) for name in Official.model_fields if name in metrics}
    official = Official.model_validate({"version": package.__version__, **fields})
    return Verdicts({row[KEY]: _number(row["preference"]) for row in rows}, official)


def _output(pair: AnswerPair, generator: str, text: str) -> dict[str, str]:
    instruction = instruction_text(pair.example.messages)
    about = {"instruction": instruction, KEY: pair.example.id}
    return about | {"output": text, "generator": generator}


def _write_config(folder: Path, annotator: str) -> str:
    """Write the package's description of our judge; return its place."""
    place, template = folder / annotator, "pair.txt"
    place.mkdir()
    (place / template).write_text(f"{{{KEY}}}", encoding="utf-8")
    config = {annotator: {"prompt_template": f"{annotator}/{template}", **ANNOTATOR}}
    # YAML reads JSON.
    (place / "configs.yaml").write_text(json.dumps(config), encoding="utf-8")
    return str(place)


def _number(value: Any) -> float | None:
    """Return a number of a data frame; None where it is NaN or missing."""
    return None if value is None or math.isnan(value) else float(value)
