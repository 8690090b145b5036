"""Engine for checkpoints behind an OpenAI-compatible endpoint: ``POST /chat/completions``.

The server renders the chat, samples and counts. Whether it applied the temperature and the seed
it was sent cannot be seen from here; the checkpoint's notes say so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from harness.adapters.endpoint import Served, api_key, look_up
from harness.engines import Completion, Failure, Request, TokenStatistics
from harness.engines.distribution import TOP, top_entropy
from harness.engines.http import Client, NoReplyError, RefusedError, UnusableError, stream
from harness.engines.settings import EndpointSettings
from harness.errors import CheckpointError, EngineError
from harness.types import FinishReason, Form, Loadable

log = logging.getLogger(__name__)

Shape = TypeVar("Shape", bound=BaseModel)

PATH = "/chat/completions"
UNKNOWN_LOGPROB = -9999.0
"""What vLLM's server sends for a token whose log-probability it does not know."""

BROKEN_OFF = frozenset({None, "", "abort", "error"})
"""Ends that are the server's, such as vLLM's ``abort`` when it is shut down: asking again may help.
Others are decided by the request, by the model or by a filter, and would come again."""


class _Likely(BaseModel):
    logprob: float


class _Position(_Likely):
    top_logprobs: list[_Likely] | None = None


class _Logprobs(BaseModel):
    content: list[_Position] | None = None


class _Message(BaseModel):
    content: str | None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def chat_body(request: Request, model: str, top_logprobs: int) -> dict[str, Any]:
    """Return the body that asks for one answer; 0 ``top_logprobs`` asks for no log-probability."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role.value, "content": m.content} for m in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": request.seed,
        "n": 1,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body | ({"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {})


def entropy_of_likeliest(logprobs: Sequence[float]) -> float:
    """Return the entropy, nats, of the 20 likeliest of some tokens, renormalised over the 20.

    Args:
        logprobs: log-probabilities, nats, of 20 tokens or more, in any order.
    """
    return top_entropy(np.asarray(logprobs, dtype=np.float64))


def token_statistics(logprobs: _Logprobs | None, tokens: int | None) -> TokenStatistics:
    """Return what a reply says of its tokens; empty unless it says it of every token.

    ``entropies_top20`` is of the list as the server gives it. vLLM's puts the token that was
    taken first and cuts to 20: a token from beyond the 20 likeliest takes the place of the 20th.
    """
    places = (logprobs.content if logprobs else None) or []
    taken = [place.logprob for place in places]
    if tokens not in (None, len(taken)) or not all(UNKNOWN_LOGPROB < x < math.inf for x in taken):
        return TokenStatistics()
    return TokenStatistics(
        logprobs=tuple(min(0.0, x) for x in taken), entropies_top20=_entropies(places)
    )


def _entropies(places: Sequence[_Position]) -> tuple[float, ...]:
    lists = [[x.logprob for x in place.top_logprobs or []] for place in places]
    if any(len(x) < TOP or not np.isfinite(x).all() for x in lists):
        return ()
    return tuple(entropy_of_likeliest(x) for x in lists)


def parse_body(shape: type[Shape], body: bytes) -> Shape:
    """Return a reply's body in the shape of a chat completion.

    Raises:
        UnusableError: it is no JSON, or not of that shape.
    """
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UnusableError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def read_reply(key: str, body: bytes) -> Completion | Failure:
    """Return the answer that a reply's body holds; a filtered one, or a call, is a failure.

    Raises:
        UnusableError: it is no JSON, not of the shape of a chat completion, or not ended.
    """
    reply = parse_body(_Reply, body)
    choice, usage = reply.choices[0], reply.usage or _Usage()
    if choice.finish_reason not in tuple(FinishReason):
        reason = f"the server ended the answer with '{choice.finish_reason}'"
        if choice.finish_reason in BROKEN_OFF:
            raise UnusableError(reason)
        return Failure(key=key, reason=reason, final=True)
    ended = FinishReason(choice.finish_reason)
    return Completion(
        key=key,
        text=_text(choice.message, ended),
        finish_reason=ended,
        tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens or None,
        statistics=token_statistics(choice.logprobs, usage.completion_tokens),
    )


def _text(message: _Message, ended: FinishReason) -> str:
    """Return what the model said: the content, else the words of its refusal.

    Raises:
        UnusableError: neither, though the answer was not cut. Cut before it began (in reasoning
            that the server takes out), it is empty.
    """
    if said := message.content or message.refusal:
        return said
    if message.content is None and ended is not FinishReason.LENGTH:
        raise UnusableError("choices.0.message.content: null, though the answer was not cut")
    return ""


class OpenAIEngine:
    """Asks one endpoint at a time; holds no weights and starts nothing.

    Args:
        rng: chance in the waits between tries; decides no answer, and is drawn from the system
            where it is not given, so that clients of one server do not keep step.
    """

    def __init__(self, settings: EndpointSettings, rng: np.random.Generator | None = None) -> None:
        self.settings = settings
        self._rng = rng or np.random.default_rng()
        self._served: Served | None = None
        self._key: str | None = None
        self._top_logprobs = settings.top_logprobs

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name, and what the server is trusted with; the server is in the checkpoint's hash.

        No setting is in it: they decide when and how often is asked, not what is answered.
        """
        return {"name": "openai", "applied by the server, unchecked": "temperature, seed"}

    def load(self, checkpoint: Loadable) -> bool:
        """Ask ``checkpoint``'s server from now on; False, for nothing is started.

        Raises:
            EngineError: the server does not answer, or no longer serves what it did when the
                checkpoint was prepared.
        """
        self.close()
        if checkpoint.form is not Form.ENDPOINT:
            raise EngineError(f"'{checkpoint.spec.name}' is no endpoint; it needs another engine.")
        try:
            served, self._key = look_up(checkpoint.spec), api_key(checkpoint.spec)
        except CheckpointError as error:
            raise EngineError(str(error)) from error
        if served.sha256 != checkpoint.weights_sha256:
            raise EngineError(
                f"'{checkpoint.spec.name}': {served.url} serves another model as "
                f"'{served.model}', or by another version of the server, than when this run "
                "began. Restart the server as it was, or begin a new run."
            )
        self._served = served
        return False

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion | Failure]:
        """Yield one reply a request, as they finish; what has no usable reply fails, with why.

        Raises:
            EngineError: the server refuses the key, the model or the address.
        """
        if self._served is None:
            raise EngineError("no endpoint is held; load a checkpoint first.")
        client = Client(self._served.url, self._key, self.settings, self._rng)
        yield from stream(requests, client, partial(self._reply, client, self._served.model))

    async def _reply(self, client: Client, model: str, request: Request) -> Completion | Failure:
        try:
            return await self._ask(client, model, request)
        except NoReplyError as error:
            return Failure(key=request.key, reason=str(error))
        except RefusedError as error:
            return Failure(key=request.key, reason=str(error), final=True)

    async def _ask(self, client: Client, model: str, request: Request) -> Completion | Failure:
        top, read = self._top_logprobs, partial(read_reply, request.key)
        try:
            return await client.post(PATH, chat_body(request, model, top), read)
        except RefusedError as error:
            if top == 0 or error.status not in (400, 422):
                raise
            found = await client.post(PATH, chat_body(request, model, 0), read)
            self._do_without_logprobs(str(error))
            return found

    def _do_without_logprobs(self, reason: str) -> None:
        if self._top_logprobs:
            log.warning("the server gives no log-probabilities (%s); asking without them", reason)
        self._top_logprobs = 0

    def close(self) -> None:
        """Forget the server and the key."""
        self._served = self._key = None
        self._top_logprobs = self.settings.top_logprobs
