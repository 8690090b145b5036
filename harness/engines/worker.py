"""The process that holds a vLLM engine: commands in, replies out, one JSON object a line.

Started by :mod:`harness.engines.workers` with the environment that vLLM wants; it ends with its
parent. What vLLM prints goes to the standard error, never among the replies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from harness.engines import Request
from harness.engines.settings import EngineSettings
from harness.errors import EngineDiedError, EngineError, InputError, TbpoError
from harness.types import Loadable

if TYPE_CHECKING:
    from harness.engines.vllm import VllmEngine

KINDS = {kind.__name__: kind for kind in (EngineDiedError, EngineError, InputError)}
"""Errors that keep their class on the way to the parent."""


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent ends; elsewhere a broken pipe does."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def error_reply(error: Exception) -> dict[str, Any]:
    """Return an error as the parent is to raise it; what was not foreseen counts as a death."""
    if isinstance(error, TbpoError):
        name = next((n for n, kind in KINDS.items() if type(error) is kind), "EngineError")
        return {"error": name, "message": str(error)}
    return {"error": "EngineDiedError", "message": f"{type(error).__name__}: {error}"}


def answer(engine: VllmEngine, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Carry out one command; yield its replies, the last of which has ``done``."""
    match command["do"]:
        case "load":
            yield {"done": engine.load(Loadable.model_validate(command["checkpoint"]))}
        case "prompt_logprobs":
            yield {"done": engine.prompt_logprobs(command["sequences"])}
        case "token_readings":
            found = engine.token_readings(command["sequences"], command["starts"])
            yield {"done": [reading.model_dump(mode="json") for reading in found]}
        case "generate":
            requests = [Request.model_validate(r) for r in command["requests"]]
            for reply in engine.generate(requests):
                yield {"reply": reply.model_dump(mode="json")}
            yield {"done": None}
        case unknown:
            raise EngineError(f"unknown command '{unknown}'")


def serve(engine: VllmEngine, stream: TextIO) -> None:
    """Answer commands until the parent closes the stream."""
    for line in stream:
        try:
            for reply in answer(engine, json.loads(line)):
                _send(stream, reply)
        except BrokenPipeError:
            break
        except Exception as error:
            _send(stream, error_reply(error))
    engine.close()


def _send(stream: TextIO, reply: dict[str, Any]) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()


def close_in_children(descriptor: int) -> None:
    """Keep the link out of processes forked from here, else it stays open while one lives.

    They get the null device in its place: its number stays taken, so that whatever closes it
    there closes nothing else.
    """

    def replace() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        os.close(null)

    os.register_at_fork(after_in_child=replace)


def main() -> None:
    """Hold an engine for the parent that gave the descriptor, settings and seed."""
    end_with_parent()
    descriptor, settings, seed = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    close_in_children(descriptor)
    from harness.engines.environment import hide_mismatched_builds
    from harness.engines.vllm import VllmEngine

    hide_mismatched_builds()
    engine = VllmEngine(EngineSettings.model_validate_json(settings), seed)
    with socket.socket(fileno=descriptor) as link:
        serve(engine, link.makefile("rw", encoding="utf-8"))


if __name__ == "__main__":
    main()
