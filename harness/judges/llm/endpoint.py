"""A judge behind an OpenAI-compatible API: ``POST /chat/completions``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from harness.adapters.endpoint import Served, api_key, look_up, redacted
from harness.engines.http import Client, NoReplyError, RefusedError, stream
from harness.engines.openai import PATH
from harness.engines.settings import EndpointSettings
from harness.judges.llm.budget import NONE, Budget, Tokens, estimated_tokens
from harness.judges.llm.forms import Form, LimitName, chat_body, forms, wants_other_limit
from harness.judges.llm.questions import Question, Reading
from harness.judges.llm.replies import Reply, read_reply, read_verdict
from harness.types import JudgeSpec

log = logging.getLogger(__name__)

NOT_UNDERSTOOD = frozenset({400, 422})
"""How servers refuse a field that they do not know."""

CUT = (
    "; the last one ended before its answer: raise the judge's max_tokens, of which reasoning "
    "takes its part"
)


class AskEndpoint:
    """Asks a server, with patience for its failures and for replies that cannot be read.

    Args:
        rng: chance in the waits between tries; decides no verdict.
        budget: asked before each request.
    """

    def __init__(
        self,
        spec: JudgeSpec,
        settings: EndpointSettings,
        rng: np.random.Generator,
        budget: Budget | None = None,
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.budget = budget or Budget()
        self._rng = rng
        self._form: dict[str, Form] = {}
        self._limit = LimitName.MAX_TOKENS

    @cached_property
    def served(self) -> Served:
        """What the server says of the model.

        Raises:
            CheckpointError: no such server, key or model.
        """
        return look_up(self.spec.checkpoint)

    @property
    def model(self) -> str:
        """Name under which the model is served."""
        return self.served.model

    @property
    def identity(self) -> Mapping[str, Any]:
        """The server and the model, as far as they are told."""
        return {"kind": "openai", "served": self.served.sha256}

    @cached_property
    def _key(self) -> str | None:
        return api_key(self.spec.checkpoint)

    def ask(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """Yield one reading a question, as they come; where there is no verdict, with why.

        Raises:
            BudgetError: the budget is spent; what was under way has been read.
            EngineError: the server refuses the key, the model or the address.
        """
        self.budget.check(self.model)
        client = Client(self.served.url, self._key, self.settings, self._rng)
        unasked = 0
        for reading in stream(questions, client, partial(self._reading, client)):
            if reading is None:
                unasked += 1
            else:
                yield reading
        if unasked:
            raise self.budget.error(unasked)

    async def _reading(self, client: Client, question: Question) -> Reading | None:
        """Return what came of a question; None where the budget forbids to ask it (again)."""
        said, cut = None, False
        for attempt in range(1 + self.spec.retries):
            most = self._most(question)
            if not self.budget.reserve(self.model, most):
                return None
            try:
                reply = await self._counted(client, question, attempt, most)
            except (NoReplyError, RefusedError) as error:
                return Reading(
                    key=question.key,
                    verdict=None,
                    attempts=attempt + 1,
                    reason=str(error),
                    unanswered=isinstance(error, NoReplyError),
                )
            said, cut = redacted(reply.text, self._key), reply.cut
            verdict = read_verdict(question.prompt, reply)
            if verdict is not None:
                return Reading(key=question.key, verdict=verdict, reply=said, attempts=attempt + 1)
        asked = 1 + self.spec.retries
        reason = f"no verdict could be read from {asked} replies{CUT if cut else ''}"
        return Reading(key=question.key, verdict=None, reply=said, attempts=asked, reason=reason)

    def _most(self, question: Question) -> Tokens:
        longest = self.spec.max_tokens or question.prompt.max_tokens
        return Tokens(input=estimated_tokens(question.messages), output=longest)

    async def _counted(
        self, client: Client, question: Question, attempt: int, most: Tokens
    ) -> Reply:
        used: Tokens | None = None
        try:
            reply = await self._reply(client, question, attempt)
            used = reply.used
            return reply
        except RefusedError:
            used = NONE
            raise
        finally:
            self.budget.settle(self.model, most, used)

    async def _reply(self, client: Client, question: Question, attempt: int) -> Reply:
        """Return the reply in the best form that the server takes.

        Raises:
            NoReplyError: none came in all tries.
            RefusedError: the server takes none of the forms, for this question at least.
        """
        refused: list[RefusedError] = []
        for form in self._forms(question):
            try:
                reply = await self._posted(client, question, form, attempt)
            except RefusedError as error:
                if error.status not in NOT_UNDERSTOOD:
                    raise
                refused.append(error)
            else:
                self._remember(question, form, refused)
                return reply
        raise refused[-1]  # of the plainest form: what is left to be refused is the question

    async def _posted(self, client: Client, question: Question, form: Form, attempt: int) -> Reply:
        """Return the reply in one form, the limit under the name that the server takes.

        Both names mean one limit and the server allows one of them, so that neither is part of
        the judge's identity.
        """
        top, limit = self.settings.top_logprobs, self._limit
        asked = partial(chat_body, question, form, self.spec, self.model, attempt, top)
        try:
            return await client.post(PATH, asked(limit), read_reply)
        except RefusedError as error:
            named = limit is LimitName.MAX_TOKENS and error.status in NOT_UNDERSTOOD
            if not (named and wants_other_limit(str(error))):
                raise
            self._rename_limit(error)
        return await client.post(PATH, asked(self._limit), read_reply)

    def _rename_limit(self, refused: RefusedError) -> None:
        if self._limit is LimitName.MAX_TOKENS:
            self._limit = LimitName.MAX_COMPLETION_TOKENS
            log.warning("judge '%s' is sent %s, for: %s", self.spec.name, self._limit, refused)

    def _forms(self, question: Question) -> tuple[Form, ...]:
        known = self._form.get(question.prompt.manner.kind)
        # A form that was taken once is the right one: what is refused now is the question.
        return (known,) if known else forms(question, self.served, logprobs=self._wants_logprobs)

    @property
    def _wants_logprobs(self) -> bool:
        return self.spec.logprobs and self.settings.top_logprobs > 0

    def _remember(self, question: Question, form: Form, refused: Sequence[RefusedError]) -> None:
        before = self._form.setdefault(question.prompt.manner.kind, form)
        if refused and before is form:
            log.warning("judge '%s' is asked by %s, for: %s", self.spec.name, form, refused[0])

    def close(self) -> None:
        """Nothing is held."""
