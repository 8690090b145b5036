"""Local data of the six tasks, an engine that likes some answers, and a small suite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine

from harness.capability import CapabilitySpec, CapabilitySuite
from harness.engines import Completion, Request, TokenReading
from harness.engines.settings import EngineSettings
from harness.types import FinishReason, Loadable

ROWS = 8
TASKS: Mapping[str, dict[str, Any]] = {
    "arc_challenge": {"shots": 2, "metric": "acc_norm"},
    "hellaswag": {"shots": 2, "metric": "acc_norm"},
    "mmlu": {"shots": 2, "metric": "acc"},
    "truthfulqa_mc2": {"shots": 0, "metric": "acc", "key": "truthfulqa_mc2"},
    "winogrande": {"shots": 2, "metric": "acc"},
    "gsm8k": {"shots": 2, "metric": "exact_match", "filter": "strict-match"},
}
QUICK = ("arc_challenge", "truthfulqa_mc2", "winogrande", "gsm8k")
FILES = {
    "arc_challenge": "arc_challenge_test.jsonl",
    "hellaswag": "hellaswag_val.jsonl",
    "mmlu": "mmlu_test.jsonl",
    "truthfulqa_mc2": "truthfulqa.jsonl",
    "winogrande": "winogrande_dev.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
}


def declared(names: Iterable[str] = QUICK, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "lm_eval",
        "name": "general",
        "version": 1,
        "title": "General",
        "description": "d",
        "licence": "CC0-1.0",
        "tasks": [{"task": name, **TASKS[name]} for name in names],
    } | changes


def suite(names: Iterable[str] = QUICK, **changes: Any) -> CapabilitySuite:
    spec = CapabilitySpec.model_validate(declared(names, **changes))
    return CapabilitySuite(spec=spec, content_sha256="c")


def subjects() -> list[str]:
    """Return MMLU's subjects as lm-eval's own folder has them."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return sorted(p.stem.removeprefix("mmlu_") for p in folder.glob("mmlu_*.yaml"))


def arc(i: int) -> dict[str, Any]:
    choices = [{"label": label, "text": f"arc {i} {label}"} for label in "ABCD"]
    question = {"stem": f"Which arc {i}?", "choices": choices}
    return {"id": f"a{i}", "question": question, "answerKey": "ABCD"[i % 4]}


def hellaswag(i: int) -> dict[str, Any]:
    context = {"ctx_a": f"A man swings {i}.", "ctx_b": "then he"}
    endings = [f"ends {i} so {j}." for j in range(4)]
    return {"activity_label": "Swinging", **context, "endings": endings, "label": i % 4}


def mmlu(subject: str, i: int) -> dict[str, Any]:
    choices = [f"{subject} {i} {j}" for j in range(4)]
    asked = {"subject": subject, "question": f"{subject} question {i}?"}
    return {**asked, "choices": choices, "answer": "ABCD"[i % 4]}


def truthful(i: int) -> dict[str, Any]:
    return {
        "question": f"Is it {i}?",
        "mc2_targets": {f"yes {i}": 1, f"maybe {i}": 1, f"no {i}": 0},
    }


def winogrande(i: int) -> dict[str, Any]:
    sentence = f"Ann beat Eve {i} times because _ was better."
    return {"sentence": sentence, "option1": "Ann", "option2": "Eve", "answer": str(1 + i % 2)}


def gsm8k(i: int) -> dict[str, Any]:
    return {
        "question": f"What is {i} and {i}?",
        "answer": f"It is <<{i}+{i}={2 * i}>>.\n#### {2 * i}",
    }


MADE: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "arc_challenge": arc,
    "hellaswag": hellaswag,
    "truthfulqa_mc2": truthful,
    "winogrande": winogrande,
    "gsm8k": gsm8k,
}


def rows(task: str) -> list[dict[str, Any]]:
    if task == "mmlu":
        return [mmlu(subject, i) for subject in subjects() for i in range(4)]
    return [MADE[task](i) for i in range(ROWS)]


def write(path: Path, made: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def write_data(folder: Path, names: Iterable[str] = QUICK) -> Path:
    """Write the files of some tasks; GSM8K's solved examples lie in a file of their own."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write(folder / FILES[name], rows(name))
    write(folder / "gsm8k_train_fewshot.jsonl", [gsm8k(i) for i in range(100, 105)])
    return folder


class LikingEngine(FakeEngine):
    """Gives a text's end the log-probability that ``likes`` says, and answers as ``says`` does.

    Attributes:
        read: every sequence with its start; asked: every request.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        likes: Callable[[str, str], float],
        says: Callable[[str], str] = lambda prompt: "",
    ) -> None:
        super().__init__(EngineSettings(chunk=7), 0)
        self.decode, self.likes, self.says = decode, likes, says
        self.read: list[tuple[list[int], int]] = []
        self.asked: list[Request] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "liking"}

    def token_readings(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[TokenReading]:
        assert len(sequences) <= self.settings.chunk
        self.read += [(list(s), start) for s, start in zip(sequences, starts, strict=True)]
        return [self._reading(list(s), i) for s, i in zip(sequences, starts, strict=True)]

    def _reading(self, ids: list[int], start: int) -> TokenReading:
        count = len(ids) - start
        liked = self.likes(self.decode(ids[:start]), self.decode(ids[start:]))
        return TokenReading(
            logprobs=tuple([liked / count] * count), likeliest=tuple([liked > -1] * count)
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.asked += requests
        for request in reversed(requests):
            text = self.says(self.decode(request.prompt))
            yield Completion(key=request.key, text=text, finish_reason=FinishReason.STOP)


def log(share: float) -> float:
    return math.log(share)


def held(engine: FakeEngine, checkpoint: Loadable) -> FakeEngine:
    engine.held = checkpoint
    return engine
