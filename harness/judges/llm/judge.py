"""A language model that compares two answers, each pair in both orders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.files import cache_root, sha256_json
from harness.judges import AnswerPair, invalid, judge_identity, verdict
from harness.judges.llm.budget import PriceTable, Tokens, estimated_tokens
from harness.judges.llm.cache import VerdictCache
from harness.judges.llm.checks import read_check
from harness.judges.llm.prompts import PromptSet
from harness.judges.llm.questions import (
    MultiTurnPair,
    Question,
    Reading,
    Transport,
    question_messages,
)
from harness.judges.llm.verdicts import Choice
from harness.progress import bar
from harness.speeds import remember_speed
from harness.types import JudgeInfo, JudgeSpec, Judgment, OrderedVerdict, Outcome, Record, Shown

VERSION = 1
FOLDER = "judgments"
"""Folder of the cache that holds verdicts, a file a judge."""

OUTCOMES = {
    (Choice.FIRST, Shown.CANDIDATE_FIRST): Outcome.WIN,
    (Choice.SECOND, Shown.CANDIDATE_FIRST): Outcome.LOSS,
    (Choice.FIRST, Shown.BASELINE_FIRST): Outcome.LOSS,
    (Choice.SECOND, Shown.BASELINE_FIRST): Outcome.WIN,
}
"""What a choice means for the candidate; any other is a tie."""


class Forecast(Record):
    """What judging some pairs will take, retries aside.

    Attributes:
        cached: questions that were answered before.
        most: estimate of the tokens, on the safe side.
        usd: at list prices; None where the model's price is not known.
    """

    requests: int
    cached: int
    most: Tokens
    usd: float | None


class LlmJudge:
    """Asks a language model about each pair twice: the candidate's answer first, then second.

    The pair's preference is the mean over both orders. Its outcome is WIN or LOSS where both orders
    agree on it, TIE where they differ or tie, and INVALID where either has no verdict: one order
    alone would carry the judge's preference for a place.
    """

    def __init__(self, spec: JudgeSpec, transport: Transport, prompts: PromptSet) -> None:
        self.spec = spec
        self.transport = transport
        self.prompts = prompts

    @cached_property
    def _decides(self) -> dict[str, Any]:
        """What decides a verdict, the question aside."""
        given = self.spec.model_dump(include={"temperature", "max_tokens", "seed", "logprobs"})
        return {"version": VERSION, **given, "asked": dict(self.transport.identity)}

    @cached_property
    def info(self) -> JudgeInfo:
        """The judge's identity: model, server, parameters and prompts."""
        prompts = ", ".join(f"{p.name} v{p.version}" for p in self.prompts.prompts.values())
        decides = {**self._decides, "prompts": self.prompts.sha256, "retries": self.spec.retries}
        identity = judge_identity("llm", VERSION, decides)
        checked = read_check(identity)
        return JudgeInfo(
            name=self.spec.name,
            title=f"Language model {self.transport.model}",
            definition="A language model is shown the answers in both orders and says which is "
            "better by the prompt's criteria. An answer wins where both orders agree; where they "
            f"differ, the pair ties. Prompts: {prompts}.",
            agreement=checked.agreement if checked else None,
            measured_on=checked.measured_on if checked else None,
            identity=identity,
            by_rule=False,
        )

    @cached_property
    def cache(self) -> VerdictCache:
        """This judge's verdicts, whatever the run; a changed judge has another file."""
        return VerdictCache(cache_root() / FOLDER / f"{sha256_json(self._decides)[:16]}.jsonl")

    def compare(self, pairs: Sequence[AnswerPair]) -> list[Judgment]:
        """Return one judgment for each pair, in order.

        Verdicts are cached as they come, so that a stopped run goes on from them.

        Raises:
            BudgetError: the budget is spent.
            EngineError: the model cannot be asked.
        """
        asked = [{shown: self._question(pair, shown) for shown in Shown} for pair in pairs]
        readings = self._readings([question for both in asked for question in both.values()])
        return [
            pair_judgment(
                pair,
                self.spec.name,
                [ordered_verdict(readings[q.key], shown) for shown, q in both.items()],
            )
            for pair, both in zip(pairs, asked, strict=True)
        ]

    def _question(self, pair: AnswerPair, shown: Shown) -> Question:
        several = isinstance(pair, MultiTurnPair)
        prompt = self.prompts.choose(pair.suite, pair.example.subset, several_turns=several)
        messages = question_messages(prompt, pair, shown)
        said = [message.model_dump(mode="json") for message in messages]
        key = {"judge": self._decides, "prompt": prompt.sha256, "said": said, "order": shown}
        return Question(key=sha256_json(key), prompt=prompt, messages=messages)

    def _readings(self, questions: Sequence[Question]) -> Mapping[str, Reading]:
        """Return what came of each question, by key; what was answered before is not asked."""
        found = {q.key: known for q in questions if (known := self.cache.get(q.key))}
        missing = list({q.key: q for q in questions if q.key not in found}.values())
        if not missing:
            return found
        started = time.monotonic()
        with bar(len(missing), f"judge {self.spec.name}", "question") as shown:
            for reading in self.transport.ask(missing):
                self.cache.add(reading)
                found[reading.key] = reading
                shown.update()
        remember_speed(len(missing), time.monotonic() - started, **self.speed_of)
        return found

    @property
    def speed_of(self) -> dict[str, Any]:
        """What questions a second depend on, the questions aside."""
        return {"judge": self.transport.model, "source": self.spec.source}

    def forecast(self, pairs: Sequence[AnswerPair], prices: PriceTable) -> Forecast:
        """Return what ``compare`` would take, without asking."""
        asked = {q.key: q for pair in pairs for q in (self._question(pair, s) for s in Shown)}
        left = [q for q in asked.values() if self.cache.get(q.key) is None]
        most = Tokens(
            input=sum(estimated_tokens(q.messages) for q in left),
            output=sum(self.spec.max_tokens or q.prompt.max_tokens for q in left),
        )
        return Forecast(
            requests=len(left),
            cached=len(asked) - len(left),
            most=most,
            usd=prices.cost(self.transport.model, most) if self.spec.asks_an_api else None,
        )

    def close(self) -> None:
        """Give back what the judge holds."""
        self.transport.close()


def ordered_verdict(reading: Reading, shown: Shown) -> OrderedVerdict:
    """Return a reading as a verdict on the candidate."""
    found = reading.verdict
    first = shown is Shown.CANDIDATE_FIRST
    return OrderedVerdict(
        shown=shown,
        outcome=OUTCOMES.get((found.choice, shown), Outcome.TIE) if found else Outcome.INVALID,
        preference=(found.first if first else 1.0 - found.first) if found else None,
        reply=reading.reply,
        attempts=reading.attempts,
        reason=reading.reason,
        unanswered=reading.unanswered,
    )


def pair_judgment(pair: AnswerPair, judge: str, orders: Sequence[OrderedVerdict]) -> Judgment:
    """Return the judgment of a pair by the verdicts in both orders; see `LlmJudge` for the rule."""
    degrees = [order.preference for order in orders if order.preference is not None]
    if len(degrees) < len(orders):
        why = "; ".join(f"{o.shown.replace('_', ' ')}: {o.reason}" for o in orders if o.reason)
        found = invalid(pair, judge, why)
    else:
        outcomes = {order.outcome for order in orders}
        agreed = outcomes.pop() if len(outcomes) == 1 else Outcome.TIE
        found = verdict(pair, judge, agreed, sum(degrees) / len(degrees))
    return found.model_copy(update={"orders": tuple(orders)})
