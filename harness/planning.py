"""What a run will take, said before it starts: requests, tokens, time, money, and what it can find.

Tokens of answers are a limit, not a forecast: an answer may end before its limit. Time is known
only where this machine has sampled from such a checkpoint before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.capability.stage import PlannedTasks
from harness.groups import EngineGroup, speed_of
from harness.judges import AnswerPair
from harness.judges.llm import LlmJudge
from harness.plan import Plan, RunConfig, make_plan, rendered
from harness.prompts import Prompts
from harness.requests import make_pairs
from harness.speeds import speed
from harness.stats.power import Design, Planned, WinRateDesign, minimum_detectable_difference
from harness.stats.power import minimum_detectable_win_rate as detectable_win_rate
from harness.suites import Suite
from harness.types import Loadable, Record

CHARACTERS_A_TOKEN = 4
"""Of English prose, about: turns an answer's token limit into a text of that length."""

LARGEST_SD = 0.5
"""Standard deviation of a share near one half: the cautious choice."""

UNRELATED = 2**0.5
"""Factor on it for the paired difference of two checkpoints whose outcomes are unrelated."""


class SuiteForecast(Record):
    """What one suite will take of all checkpoints, and what it can find.

    Attributes:
        requests: answers that are asked for.
        prompt_tokens: None where a checkpoint's prompts are rendered elsewhere.
        answer_tokens: at most.
        win_rate: smallest distance of a win rate from 1/2 that the suite finds with the stated
            power; None for a suite of one prompt.
        difference: smallest paired difference of two shares near one half; its ``difference`` is
            None where that would be above 1, which cannot occur.
    """

    suite: str
    prompts: int
    samples: int
    requests: int
    prompt_tokens: int | None
    answer_tokens: int
    win_rate: Planned | None
    difference: Planned | None


class EngineForecast(Record):
    """What one engine will take.

    Attributes:
        tokens_per_second: as measured when such a checkpoint was last sampled here.
        seconds: of generation, at most; None where no speed is known.
    """

    engine: str
    checkpoints: tuple[str, ...]
    answer_tokens: int
    tokens_per_second: float | None
    seconds: float | None


class JudgeForecast(Record):
    """What one language model as a judge will take, retries aside.

    Attributes:
        requests: each pair is asked in both orders; what the cache holds is not known before the
            answers are.
        seconds: as measured when the judge was last asked from here.
        usd: at list prices, for replies as long as they may become; None where no price is known,
            or none is paid.
        paid: whether an API is asked, which may cost something.
    """

    judge: str
    model: str
    pairs: int
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float | None
    usd: float | None
    paid: bool


class RunForecast(Record):
    """What a run will take.

    Attributes:
        prices: day and note of the price table.
    """

    suites: tuple[SuiteForecast, ...]
    engines: tuple[EngineForecast, ...]
    judges: tuple[JudgeForecast, ...]
    prices: str

    @property
    def seconds(self) -> float | None:
        """Seconds of generation and judging, at most; None where a part is not known."""
        parts = [e.seconds for e in self.engines] + [j.seconds for j in self.judges]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    @property
    def usd(self) -> float | None:
        """Cost of all judges whose price is known; None where none is."""
        known = [judge.usd for judge in self.judges if judge.usd is not None]
        return sum(known) if known else None

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Judges that may cost something, nobody knows how much."""
        return tuple(judge.judge for judge in self.judges if judge.paid and judge.usd is None)


def forecast(config: RunConfig) -> RunForecast:
    """Return what a run will take. Everything is loaded and checked; nothing is computed.

    Raises:
        InputError: what a run would refuse.
    """
    plan = make_plan(config)
    prompts = rendered(plan)
    prices = plan.budget.prices
    return RunForecast(
        suites=(
            *(_suite(plan, suite, prompts) for suite in plan.suites),
            *map(_tasks, plan.tasks),
        ),
        engines=tuple(_engine(plan, group) for group in plan.groups),
        judges=tuple(_judges(plan)),
        prices=f"{prices.currency} as of {prices.date}; {prices.note}",
    )


def _suite(plan: Plan, suite: Suite, prompts: Mapping[str, Prompts]) -> SuiteForecast:
    asked, samples = len(suite.examples), suite.spec.samples
    units = len({example.unit or example.id for example in suite.examples})
    requests = asked * samples * len(plan.checkpoints)
    return SuiteForecast(
        suite=suite.spec.name,
        prompts=asked,
        samples=samples,
        requests=requests,
        prompt_tokens=_prompt_tokens(plan.checkpoints, suite, prompts),
        answer_tokens=requests * suite.spec.max_tokens,
        win_rate=detectable_win_rate(WinRateDesign(prompts=units)) if units > 1 else None,
        difference=_difference(units) if units > 1 else None,
    )


def _tasks(planned: PlannedTasks) -> SuiteForecast:
    """Return what is known of a suite that lm-eval runs: neither its requests nor its tokens."""
    asked = len(planned.examples)
    return SuiteForecast(
        suite=planned.name,
        prompts=asked,
        samples=0,
        requests=0,
        prompt_tokens=None,
        answer_tokens=0,
        win_rate=None,
        difference=_difference(asked) if asked > 1 else None,
    )


def _difference(prompts: int) -> Planned:
    found = minimum_detectable_difference(Design(prompts=prompts, sd=LARGEST_SD * UNRELATED))
    possible = found.difference is not None and found.difference <= 1
    return found if possible else found.model_copy(update={"difference": None})


def _prompt_tokens(
    checkpoints: Sequence[Loadable], suite: Suite, prompts: Mapping[str, Prompts]
) -> int | None:
    names = [checkpoint.spec.name for checkpoint in checkpoints]
    if any(name not in prompts for name in names):
        return None
    ids = (prompts[name][suite.spec.name].values() for name in names)
    return suite.spec.samples * sum(len(prompt) for of in ids for prompt in of)


def _engine(plan: Plan, group: EngineGroup) -> EngineForecast:
    each = sum(
        len(suite.examples) * suite.spec.samples * suite.spec.max_tokens for suite in plan.suites
    )
    tokens = each * len(group.checkpoints)
    found = speed(**speed_of(group, group.checkpoints[0]))
    return EngineForecast(
        engine=group.engine,
        checkpoints=tuple(c.spec.name for c in group.checkpoints),
        answer_tokens=tokens,
        tokens_per_second=found,
        # Nobody knows how long lm-eval's tasks take.
        seconds=tokens / found if found and not plan.tasks else None,
    )


def _judges(plan: Plan) -> Iterator[JudgeForecast]:
    for name, judge in plan.judges.items():
        if isinstance(judge, LlmJudge):
            pairs = [
                p for s in plan.suites if name in s.spec.judges for p in _pairs(plan, s, judge)
            ]
            yield _judge(plan, judge, pairs)


def _pairs(plan: Plan, suite: Suite, judge: LlmJudge) -> list[AnswerPair]:
    """Return the suite's pairs, with answers as long as they may become."""
    name, length = suite.spec.name, suite.spec.max_tokens * CHARACTERS_A_TOKEN
    texts = {
        # Texts must differ, for equal questions are asked once.
        (name, checkpoint.spec.name, example.id): checkpoint.spec.name.ljust(length, "x")
        for checkpoint in plan.checkpoints
        for example in suite.examples
    }
    return make_pairs(suite, plan.checkpoints, texts, judge)


def _judge(plan: Plan, judge: LlmJudge, pairs: Sequence[AnswerPair]) -> JudgeForecast:
    found = judge.forecast(pairs, plan.budget.prices)
    asked = speed(**judge.speed_of)
    return JudgeForecast(
        judge=judge.spec.name,
        model=judge.transport.model,
        pairs=len(pairs),
        requests=found.requests,
        input_tokens=found.most.input,
        output_tokens=found.most.output,
        seconds=found.requests / asked if asked else None,
        usd=found.usd,
        paid=judge.spec.asks_an_api,
    )
