"""What judging may cost: requests, tokens or money, asked before each request.

A request reserves what it can cost at most, as far as that can be estimated, and afterwards counts
what the server says it did; so a cap holds also where many requests are under way together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Literal

from pydantic import Field, ValidationError

from harness.errors import InputError, TbpoError
from harness.files import packaged
from harness.suites import read_yaml, validation_text
from harness.types import Message, Record

PRICES = ("judges", "prices.yaml")

CHARACTERS_A_TOKEN = 3.0
"""An estimate on the safe side; English prose has more than four."""

TOKENS_A_MESSAGE = 8
"""What a chat template adds to a message, at most."""


class BudgetError(TbpoError):
    """The budget is spent; what was judged is in the cache."""

    exit_code = 5


class Tokens(Record):
    """Tokens of a request: what is sent, and what is replied."""

    input: int = Field(default=0, ge=0)
    output: int = Field(default=0, ge=0)

    @property
    def total(self) -> int:
        """Both together."""
        return self.input + self.output


NONE = Tokens()


class Price(Record):
    """Price of the models whose name fits a pattern, per ``per_tokens`` tokens."""

    pattern: str
    input: float = Field(ge=0.0)
    output: float = Field(ge=0.0)


class PriceTable(Record):
    """Prices by model, and the day they are of."""

    date: date
    note: str
    currency: Literal["USD"]
    per_tokens: int = Field(ge=1)
    models: tuple[Price, ...]

    def cost(self, model: str, tokens: Tokens) -> float | None:
        """Return the cost in USD; None where no pattern fits the model's name."""
        for price in self.models:
            if fnmatchcase(model, price.pattern):
                sides = tokens.input * price.input + tokens.output * price.output
                return sides / self.per_tokens
        return None


def load_prices(path: Path | None = None) -> PriceTable:
    """Return a price table; the packaged one where no path is given.

    Raises:
        InputError: the file cannot be read or is of another form.
    """
    path = path or packaged(*PRICES)
    try:
        return PriceTable.model_validate(read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error


def estimated_tokens(messages: Sequence[Message]) -> int:
    """Return about how many tokens a chat has; rather too many than too few."""
    characters = sum(len(message.content) for message in messages)
    return int(characters / CHARACTERS_A_TOKEN) + 1 + TOKENS_A_MESSAGE * len(messages)


class Limits(Record):
    """Caps on what judging may use; None is no cap.

    Attributes:
        requests: a server's failures (429, 5xx, time-outs) are not counted, new tries of
            unreadable replies are.
        tokens: sent and replied together.
        usd: by the price table.
    """

    requests: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    usd: float | None = Field(default=None, ge=0.0)


class Spent(Record):
    """What was used so far.

    Attributes:
        usd: None where a model's price is not known.
        estimated: requests whose tokens the server did not tell, counted by the estimate.
    """

    requests: int
    tokens: Tokens
    usd: float | None
    estimated: int


class Budget:
    """Limits shared by all judges of a run; safe to use from several threads.

    Args:
        prices: the packaged table where none is given.
    """

    def __init__(self, limits: Limits | None = None, prices: PriceTable | None = None) -> None:
        self.limits = limits or Limits()
        self.prices = prices or load_prices()
        self._lock = Lock()
        self._requests = 0
        self._estimated = 0
        self._tokens: dict[str, Tokens] = {}

    def check(self, model: str) -> None:
        """Refuse a cap that cannot be kept.

        Raises:
            InputError: there is a cap in USD and no price for the model.
        """
        if self.limits.usd is not None and self.prices.cost(model, NONE) is None:
            raise InputError(
                f"a budget in USD cannot be kept: no price is known for the model '{model}'. Add "
                "it to a price table, or cap requests or tokens."
            )

    @property
    def spent(self) -> Spent:
        """What was used, with what is reserved for requests under way."""
        with self._lock:
            return Spent(
                requests=self._requests,
                tokens=Tokens(
                    input=sum(t.input for t in self._tokens.values()),
                    output=sum(t.output for t in self._tokens.values()),
                ),
                usd=self._usd(self._tokens),
                estimated=self._estimated,
            )

    def _usd(self, tokens: dict[str, Tokens]) -> float | None:
        total = 0.0
        for model, used in tokens.items():
            cost = self.prices.cost(model, used)
            if cost is None:
                return None
            total += cost
        return total

    def reserve(self, model: str, most: Tokens) -> bool:
        """Set aside what a request may use; False where that would break a limit."""
        with self._lock:
            tokens = self._tokens | {model: _plus(self._tokens.get(model, NONE), most)}
            usd, limits = self._usd(tokens), self.limits
            fits = (
                (limits.requests is None or self._requests < limits.requests)
                and (limits.tokens is None or sum(map(_total, tokens.values())) <= limits.tokens)
                and (limits.usd is None or (usd is not None and usd <= limits.usd))
            )
            if fits:
                self._requests += 1
                self._tokens = tokens
            return fits

    def settle(self, model: str, reserved: Tokens, used: Tokens | None) -> None:
        """Replace what was reserved by what was used; None keeps the estimate."""
        with self._lock:
            if used is None:
                self._estimated += 1
                return
            held = self._tokens[model]
            self._tokens[model] = Tokens(
                input=held.input - reserved.input + used.input,
                output=held.output - reserved.output + used.output,
            )

    def error(self, unasked: int) -> BudgetError:
        """Return the error that says what was spent and how to go on."""
        spent, caps = self.spent, self.limits.model_dump(exclude_none=True)
        limits = ", ".join(f"{value:g} {name}" for name, value in caps.items())
        money = "at unknown prices" if spent.usd is None else f"about {spent.usd:.4f} USD"
        return BudgetError(
            f"the budget of the judges ({limits}) is spent: {spent.requests} requests, "
            f"{spent.tokens.total} tokens, {money}. {unasked} questions were not asked. What was "
            "judged is in the cache: run the same command with a larger budget to go on."
        )


def _plus(a: Tokens, b: Tokens) -> Tokens:
    return Tokens(input=a.input + b.input, output=a.output + b.output)


def _total(tokens: Tokens) -> int:
    return tokens.total
