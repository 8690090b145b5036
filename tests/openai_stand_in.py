"""A server that speaks OpenAI's API and fails as it is told: for tests of what asks it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import numpy as np

MODEL = "tiny"
ENTROPY = 1.5
"""Rough spread of the log-probabilities that the stand-in lists, nats."""


class Fault(StrEnum):
    """What is sent in place of an answer; LATER is a 429 that says when to come back."""

    BUSY = "429"
    LATER = "429 with Retry-After"
    ERROR = "500"
    HANG = "no reply"
    GARBAGE = "no JSON"
    TRUNCATED = "cut off"
    SHAPE = "no choices"
    DROP = "connection closed"


Plan = Callable[[], Fault | None]


def seeded(seed: int, share: float, faults: tuple[Fault, ...] = tuple(Fault)) -> Plan:
    """Return a plan that fails each request with probability ``share``, in order of arrival."""
    rng = np.random.default_rng(seed)
    return lambda: faults[rng.integers(len(faults))] if rng.random() < share else None


def always(fault: Fault) -> Plan:
    return lambda: fault


def answer_text(content: str) -> str:
    return f"answer to {content}"


def likeliest(count: int) -> list[float]:
    """Return log-probabilities of the ``count`` likeliest of 40 tokens."""
    raw = -np.arange(40) / (2 * ENTROPY)
    return [float(x) for x in (raw - np.logaddexp.reduce(raw))[:count]]


class StandIn:
    """The server's state: what it was asked, and how it behaves.

    Attributes:
        plan: asked once a request for the fault to commit.
        busy_s: seconds that an answer takes.
        key: bearer token that is wanted, if any.
        version: of the server, told at ``/version``.
        refuse_logprobs: answer 400 to who asks for log-probabilities.
        change: edits a reply before it is sent.
        asked: requests by content of the last message; ``faults``: those committed.
        most: most requests that were worked on together.
    """

    def __init__(self) -> None:
        self.plan: Plan = lambda: None
        self.busy_s = 0.0
        self.key: str | None = None
        self.models: list[dict[str, Any]] = [{"id": MODEL, "object": "model", "created": 1}]
        self.status: dict[str, int] = {}
        self.version = "9.9"
        self.refuse_logprobs = False
        self.change: Callable[[dict[str, Any]], object] = lambda reply: None
        self.asked: Counter[str] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.most = 0
        self.port = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def take(self, body: dict[str, Any]) -> Fault | None:
        with self._lock:
            self.bodies.append(body)
            self.asked[body["messages"][-1]["content"]] += 1
            fault = self.plan()
            if fault:
                self.faults[fault] += 1
            return fault

    @contextmanager
    def working(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.busy_s)
        with self._lock:
            self._now -= 1
        yield

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = answer_text(body["messages"][-1]["content"])
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        if body.get("logprobs"):
            top = [{"token": str(i), "logprob": x} for i, x in enumerate(likeliest(20))]
            place = {"token": "0", "logprob": top[0]["logprob"], "top_logprobs": top}
            choice["logprobs"] = {"content": [place] * 3}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        found = {"object": "chat.completion", "choices": [choice], "usage": usage}
        self.change(found)
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, body: object, *, length: int = 0, **headers: str) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length or len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def refused(self, path: str) -> bool:
        """Answer with the status that is set for ``path``, or to a wrong key."""
        given = self.headers.get("Authorization", "")
        status = self.state.status.get(path)
        if status is None and self.state.key and given != f"Bearer {self.state.key}":
            status = 401
        if status is not None:
            self.send(status, {"error": {"message": f"told to say {status} to '{given}'"}})
        return status is not None

    def do_GET(self) -> None:
        self.state.paths.append(self.path)
        if self.refused(self.path):
            return
        if self.path == "/version":
            self.send(200, {"version": self.state.version})
        else:
            self.send(200, {"object": "list", "data": self.state.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused(self.path):
            return
        fault = self.state.take(body)
        with self.state.working():
            if fault:
                self.fail(fault)
            elif self.state.refuse_logprobs and body.get("logprobs"):
                self.send(400, {"error": {"message": "logprobs are not supported"}})
            else:
                self.send(200, self.state.reply(body))

    def fail(self, fault: Fault) -> None:
        match fault:
            case Fault.BUSY:
                self.send(429, {"error": {"message": "too many requests"}})
            case Fault.LATER:
                self.send(429, "later", Retry_After="0.05")
            case Fault.ERROR:
                self.send(500, {"error": {"message": "out of memory"}})
            case Fault.HANG:
                self.connection.recv(1)  # returns when the client hangs up
                self.close_connection = True
            case Fault.GARBAGE:
                self.send(200, "<html>busy</html>")
            case Fault.TRUNCATED:
                self.send(200, '{"choices": [{"mess', length=500)
                self.close_connection = True
            case Fault.SHAPE:
                self.send(200, {"choices": []})
            case Fault.DROP:
                self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that hang up are what is tested."""


State = TypeVar("State", bound=StandIn)


@contextmanager
def serving(state: State, handler: type[_Handler]) -> Iterator[State]:
    """Serve ``state`` on 127.0.0.1, on a free port, until the block ends."""
    server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"state": state}))
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve a stand-in until the block ends."""
    with serving(StandIn(), _Handler) as state:
        yield state
