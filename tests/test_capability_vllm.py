"""Readings, stop texts and whole evaluations on real vLLM, against transformers and lm-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from metric_records import SHARED
from tiny_checkpoints import save_llama, save_lora, save_tokenizer

from harness.adapters import prepare
from harness.capability import AVERAGE, evaluate, load_capability_suite
from harness.engines import Request
from harness.engines.environment import engine_environment
from harness.engines.settings import EngineSettings
from harness.engines.workers import VllmWorkers
from harness.errors import InputError
from harness.types import CheckpointSpec, Dtype, FinishReason, Loadable, Sampling, Score

pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")
pytestmark = [pytest.mark.slow, pytest.mark.engine]

DATA = SHARED / "lm_eval_tasks"
SHAPE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
WIDE = {"initializer_range": 0.4, "tie_word_embeddings": False}
SETTINGS = EngineSettings(max_model_len=512, max_num_seqs=16, kv_cache_gib=0.25)
LENGTH, LIMIT = 2048, 40
SHOTS = 2
"""In place of up to 25, so that lm-eval's own model, which computes every beginning again for
every choice, takes minutes on two cores."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models a and b of one shape, and a LoRA on a."""
    root = tmp_path_factory.mktemp("models")
    save_tokenizer(root / "tokenizer")
    for seed, name in enumerate("ab"):
        save_llama(root / name, root / "tokenizer", seed=seed, **SHAPE, **WIDE)
    save_lora(root / "lora", root / "a", seed=0, target_modules=["q_proj"])
    return root


def checkpoint(folders: Path, name: str, **fields: Any) -> Loadable:
    source = str(folders / name)
    return prepare(CheckpointSpec(name=name, source=source, dtype=Dtype.FLOAT32, **fields))


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmWorkers]:
    with closing(VllmWorkers(SETTINGS, 0)) as made:
        yield made


def sequences() -> tuple[list[list[int]], list[int]]:
    """Return sequences with shared beginnings of several cache blocks, and where they part.

    The second beginning is followed by one end twice, and by two ends that share a block.
    """
    first = [1, *(6 + i * i % 250 for i in range(300))]
    second = [1, *(6 + i * 7 % 250 for i in range(200))]
    shared_end = [6 + i % 99 for i in range(150)]
    ends = [[7, 8, 9], [10], [11, 12, 13, 14]]
    made = [[*first, *end] for end in ends]
    starts = [len(first)] * len(ends)
    for end in ([*shared_end, 20], [*shared_end, 20], [*shared_end, 30, 40]):
        made.append([*second, *end])
        starts.append(len(second))
    return [*made, [1, 50], [1, *range(60, 80)]], [*starts, 1, 10]


def test_readings_are_those_of_transformers_whatever_was_cached(
    folders: Path, engine: VllmWorkers
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for name in "aba":
        engine.load(checkpoint(folders, name))
        model: Any = AutoModelForCausalLM.from_pretrained(folders / name, dtype=torch.float32)
        given, starts = sequences()
        with torch.inference_mode():
            logits = model(torch.tensor([given[0]])).logits[0]
        given.append([*given[0], int(logits[-1].argmax())])
        starts.append(len(given[0]))
        found = engine.token_readings(given, starts)
        assert engine.token_readings(given, starts) == found
        for ids, start, reading in zip(given, starts, found, strict=True):
            with torch.inference_mode():
                log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = [float(log_p[i - 1, ids[i]]) for i in range(start, len(ids))]
            best = [int(log_p[i - 1].argmax()) == ids[i] for i in range(start, len(ids))]
            assert reading.logprobs == pytest.approx(expected, abs=1e-3)
            assert list(reading.likeliest) == best
        assert found[-1].likeliest == (True,)


@pytest.mark.long
def test_two_workers_read_as_one(folders: Path, engine: VllmWorkers) -> None:
    held = checkpoint(folders, "a")
    engine.load(held)
    given, starts = sequences()
    alone = engine.token_readings(given, starts)
    both = SETTINGS.model_copy(update={"data_parallel_size": 2})
    with closing(VllmWorkers(both, 0)) as made:
        made.load(held)
        found = made.token_readings(given, starts)
        few = made.token_readings(given[:1], starts[:1])
    for mine, theirs in zip([*found, *few], [*alone, alone[0]], strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert mine.likeliest == theirs.likeliest


def test_answer_stops_at_the_first_text(folders: Path, engine: VllmWorkers) -> None:
    engine.load(checkpoint(folders, "b"))

    def answer(*stop: str) -> Any:
        sampling = Sampling(temperature=0.0, max_tokens=40, stop=stop)
        request = Request(key="s\ne\n0", prompt=(1, 40, 41), sampling=sampling, seed=0)
        (found,) = engine.generate([request])
        return found

    free = answer("\x00 never")
    stop = free.text[6:8]
    found = answer("\x00 never", stop)
    assert found.text == free.text[: free.text.index(stop)]
    assert found.finish_reason is FinishReason.STOP
    assert len(found.token_ids) < len(free.token_ids)
    assert free.token_ids[: len(found.token_ids)] == found.token_ids
    assert len(found.statistics.logprobs) == len(found.token_ids)


@pytest.mark.long
def test_unmerged_lora_has_no_ranks(folders: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_loras": 1, "max_lora_rank": 8})
    with closing(VllmWorkers(settings, 0)) as made:
        made.load(checkpoint(folders, "lora", merge=False))
        with pytest.raises(InputError, match="leave out merge=false"):
            made.token_readings([[1, 7, 8]], [1])


# -- whole evaluations -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged suite with fewer shots."""
    if not DATA.is_dir():
        pytest.skip(f"the shared samples of lm-eval's tasks are not at {DATA}")
    packaged = Path(__file__).parents[1] / "suites" / "open_llm_leaderboard.yaml"
    suite = yaml.safe_load(packaged.read_text(encoding="utf-8"))
    for task in suite["tasks"]:
        task["shots"] = min(SHOTS, task["shots"])
    path = tmp_path_factory.mktemp("suite") / "reduced.yaml"
    path.write_text(yaml.safe_dump(suite), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model() -> Loadable:
    spec = CheckpointSpec(
        name="smollm2", source="embedded:smollm2-135m-instruct", dtype=Dtype.FLOAT32
    )
    return prepare(spec)


@pytest.fixture(scope="module")
def theirs(declared: Path, model: Loadable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What lm-eval's own vLLM model gives."""
    out = tmp_path_factory.mktemp("theirs") / "results.json"
    script = Path(__file__).with_name("lm_eval_vllm.py")
    arguments = [declared, DATA, model.folder, LENGTH, LIMIT, out]
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = os.environ | engine_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def ours(
    declared: Path, model: Loadable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Score], Path]:
    """What one engine start of ours gives."""
    out = tmp_path_factory.mktemp("ours")
    settings = EngineSettings(max_model_len=LENGTH, kv_cache_gib=1.0)
    with closing(VllmWorkers(settings, 0)) as made:
        assert made.load(model)
        found = evaluate(
            made,
            model,
            load_capability_suite(declared),
            max_model_len=LENGTH,
            limit=LIMIT,
            data=DATA,
            out=out,
            seed=0,
        )
    return found.scores, out / model.spec.name


def logged(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = (folder / f"samples_{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.long
def test_every_document_is_read_as_lm_eval_reads_it(
    ours: tuple[list[Score], Path], theirs: Mapping[str, Any]
) -> None:
    folder = ours[1]
    documents = 0
    for task, expected in theirs["samples"].items():
        found = logged(folder, task)
        assert [row["doc_id"] for row in found] == [row["doc_id"] for row in expected]
        for mine, other in zip(found, expected, strict=True):
            for name in ("doc_hash", "prompt_hash", "target_hash", "filter"):
                assert mine[name] == other[name], (task, mine["doc_id"], name)
            for name in other["metrics"]:
                assert mine[name] == pytest.approx(other[name], abs=1e-4), (task, mine["doc_id"])
            check_replies(task, mine["resps"], other["resps"])
            documents += 1
    assert documents == 7 * LIMIT  # GSM8K's are logged once for each of two filters


def check_replies(task: str, mine: Any, other: Any) -> None:
    """Compare texts exactly, log-likelihoods within 1e-3; lm-eval writes numbers as text."""
    if task == "gsm8k":
        assert mine == other
        return
    for (own, own_greedy), (its, its_greedy) in zip(flat(mine), flat(other), strict=True):
        assert float(own) == pytest.approx(float(its), abs=1e-3)
        assert str(own_greedy) == str(its_greedy)


def flat(replies: Any) -> list[Any]:
    return [reply for (reply,) in replies]


@pytest.mark.long
def test_final_numbers_are_lm_evals(
    ours: tuple[list[Score], Path], theirs: Mapping[str, Any], declared: Path
) -> None:
    scores, folder = ours
    own = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
    for task, expected in theirs["results"].items():
        for name, value in expected.items():
            if isinstance(value, float) and not task.startswith("truthfulqa"):
                assert own[task][name] == value, (task, name)
            elif isinstance(value, float):
                assert own[task][name] == pytest.approx(value, abs=1e-4), (task, name)
    means = []
    for choice in load_capability_suite(declared).spec.tasks:
        values = [s.value for s in scores if s.metric == choice.name and s.value is not None]
        means.append(sum(values) / len(values))
        reported = theirs["results"][choice.task][f"{choice.metric},{choice.filter}"]
        assert means[-1] == pytest.approx(reported, abs=1e-4)
    average = [s for s in scores if s.metric == AVERAGE]
    weighted = sum(s.weight * (s.value or 0) for s in average) / sum(s.weight for s in average)
    assert weighted == pytest.approx(sum(means) / 6)
