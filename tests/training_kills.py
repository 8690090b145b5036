"""A run that is killed at given places, again and again: python training_kills.py < JSON.

The driver imports what training needs once. Each start of a run is a fork of it, a process of its
own, which ends itself by SIGKILL at its place, or trains to the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def kill_at(place: str, call: int) -> None:
    """Make the ``call``-th call of a function or method (module:name.name) end the process."""
    from importlib import import_module

    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    whole, calls = getattr(owner, name), []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, name, killed)


def start(keys: dict[str, Any], output: Path, kill: tuple[str, int] | None) -> int:
    """Train in a process of its own; return its exit code, -9 where it was killed."""
    from harness.training.recipe import load_recipe
    from harness.training.search import train

    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if kill is not None:
                kill_at(*kill)
            train(load_recipe(None, keys), output)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def found(output: Path) -> dict[str, bool]:
    """The checkpoints of a run, and whether each is whole."""
    folders = sorted((output / "checkpoints").glob("checkpoint-*"))
    return {folder.name: (folder / "complete.json").exists() for folder in folders}


def main() -> None:
    import torch

    from harness.engines.environment import hide_mismatched_builds

    hide_mismatched_builds()
    torch.set_num_threads(1)
    job = json.load(sys.stdin)
    whole, output = Path(job["whole"]), Path(job["output"])
    states = []
    for kill in job["kills"]:
        code = start(job["keys"], output, kill)
        states.append({"code": code, "checkpoints": found(output)})
    ends = [start(job["keys"], folder, None) for folder in (output, whole)]
    print(json.dumps({"states": states, "ends": ends}))


if __name__ == "__main__":
    main()
