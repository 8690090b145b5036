"""Asking an HTTP API with patience: many requests at a time, each until it has a usable reply.

Servers of models are overloaded, restart and break off; what they send is believed only after it
was read. Knows nothing of what is asked: engines and judges bring the body and the reader.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from harness.adapters.endpoint import headers, redacted
from harness.engines.settings import EndpointSettings
from harness.errors import EngineError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
J = TypeVar("J")

MAX_WAIT_S = 60.0
"""Longest wait before a new try, whatever the server asks for."""

PATIENCE = 4
"""Fewest requests in a row that must go without a reply before a server counts as down."""

AGAIN = frozenset({408, 429})
HOPELESS = frozenset({401, 403, 404})


class UnusableError(Exception):
    """A reply is not what was asked for; a reader raises it, and the server is asked again."""


class RefusedError(Exception):
    """The server understood and will not answer this request, however often it is asked."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class NoReplyError(Exception):
    """No usable reply came in all attempts; the message counts what came instead."""


class _TryAgainError(Exception):
    def __init__(self, kind: str, detail: str = "", retry_after: float = 0.0) -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after


def retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for; 0 where it says nothing usable.

    Source: RFC 9110, section 10.2.3: a number of seconds or a date.
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def wait_s(attempt: int, asked: float, backoff_s: float, rng: np.random.Generator) -> float:
    """Return the seconds to wait after try number ``attempt`` (from 1) failed.

    Back-off doubles with each try, times a factor drawn from [1, 2) so that requests which failed
    together do not return together; at least what the server ``asked`` for; at most MAX_WAIT_S.
    """
    own = backoff_s * 2.0 ** min(attempt - 1, 30) * (1.0 + rng.random())
    return min(max(own, asked), MAX_WAIT_S)


def _message(reply: httpx.Response) -> str:
    """Return what an error reply says: OpenAI's ``error.message``, else the body."""
    try:
        found = json.loads(reply.content)
        return str(found["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return reply.text


class Client:
    """One API, asked again where it fails; an asynchronous context manager.

    After several requests in a row without a usable reply (as many as are under way together, at
    least PATIENCE) the server counts as down, and what is still to be asked fails at once: the
    time that a dead server costs does not grow with the number of requests.

    Args:
        url: address that paths are put behind.
        key: bearer token, never written anywhere.
        rng: chance in the waits; decides no answer.
    """

    def __init__(
        self, url: str, key: str | None, settings: EndpointSettings, rng: np.random.Generator
    ) -> None:
        self.url = url
        self.settings = settings
        self._key = key
        self._rng = rng
        self._unanswered = 0
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        import httpx

        # The number of workers bounds the connections; a pool's own limit would only time out.
        self._http = httpx.AsyncClient(
            headers=headers(self._key),
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.aclose()
        self._http = None

    async def post(self, path: str, body: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        """Return what ``read`` makes of the reply to ``body``.

        Asked again, up to ``settings.attempts`` times in all: HTTP 408, 429 and 5xx, time-outs,
        lost connections, and replies for which ``read`` raises UnusableError.

        Raises:
            NoReplyError: none of the attempts gave a usable reply.
            RefusedError: another 4xx.
            EngineError: 401, 403, 404 or a redirection, which any other request would get too.
        """
        if self._unanswered >= max(PATIENCE, self.settings.concurrency):
            raise NoReplyError(
                f"not asked: the last {self._unanswered} requests got no usable reply from the "
                "server"
            )
        failed: list[_TryAgainError] = []
        while len(failed) < self.settings.attempts:
            if failed:
                await asyncio.sleep(self._wait(failed))
            try:
                return await self._answered(path, body, read)
            except _TryAgainError as error:
                failed.append(error)
        self._unanswered += 1
        raise NoReplyError(_summary(failed))

    def _wait(self, failed: Sequence[_TryAgainError]) -> float:
        asked = failed[-1].retry_after
        return wait_s(len(failed), asked, self.settings.backoff_s, self._rng)

    async def _answered(self, path: str, body: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        reply = await self._sent(path, body)
        self._check(reply)
        try:
            found = read(reply.content)
        except UnusableError as error:
            raise _TryAgainError("unusable body", str(error)) from error
        self._unanswered = 0
        return found

    async def _sent(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        import httpx

        assert self._http is not None
        limit = self.settings.timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._http.post(self.url + path, json=body)
        except TimeoutError as error:
            raise _TryAgainError(f"no reply within {limit:g} s") from error
        except httpx.HTTPError as error:
            raise _TryAgainError(
                f"connection failed ({type(error).__name__})", str(error)
            ) from error

    def _check(self, reply: httpx.Response) -> None:
        """Raise what a reply's status asks for, if anything."""
        status = reply.status_code
        if status < 300:
            return
        said = redacted(_message(reply), self._key)
        if status in AGAIN or status >= 500:
            asked = retry_after(reply.headers.get("Retry-After"), datetime.now(UTC))
            raise _TryAgainError(f"HTTP {status}", said, asked)
        if status in HOPELESS or status < 400:
            raise EngineError(
                f"{reply.request.url} answers HTTP {status} ({said}). Check the address, the "
                "model's name and the key."
            )
        self._unanswered = 0
        raise RefusedError(status, f"HTTP {status}: {said}")


def _summary(failed: Sequence[_TryAgainError]) -> str:
    counts = Counter(error.kind for error in failed)
    kinds = ", ".join(f"{n} x {kind}" for kind, n in counts.most_common())
    last = f"; last: {failed[-1].detail}" if failed[-1].detail else ""
    return f"no usable reply in {len(failed)} attempts: {kinds}{last}"


_END = object()


def stream(jobs: Sequence[J], client: Client, answer: Callable[[J], Awaitable[T]]) -> Iterator[T]:
    """Yield the answer to each job once, as they finish, ``client.settings.concurrency`` at a time.

    The work runs on an event loop in a thread of its own, so that it goes on while the caller is
    busy, also where the caller runs a loop itself. Closing the iterator cancels what is under way.

    Raises:
        Exception: what ``answer`` raised first; jobs without an answer have none.
    """
    found: SimpleQueue[Any] = SimpleQueue()
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="tbpo-http", daemon=True)
    thread.start()
    work = asyncio.run_coroutine_threadsafe(_answer_all(jobs, client, answer, found.put), loop)
    work.add_done_callback(lambda _: found.put(_END))
    try:
        while (reply := found.get()) is not _END:
            yield reply
        work.result()
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _answer_all(
    jobs: Sequence[J],
    client: Client,
    answer: Callable[[J], Awaitable[T]],
    give: Callable[[T], None],
) -> None:
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            give(await answer(job))

    try:
        async with client, asyncio.TaskGroup() as group:
            for _ in range(min(client.settings.concurrency, len(jobs))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
