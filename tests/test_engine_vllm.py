"""The real vLLM engine on tiny models: against transformers, after reloads, faults and deaths."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from tiny_checkpoints import save_llama, save_lora, save_tokenizer

from harness.adapters import prepare
from harness.canary import CANARIES
from harness.engines import Completion, Request
from harness.engines.settings import EngineSettings
from harness.engines.workers import VllmWorkers
from harness.errors import EngineDiedError, EngineError
from harness.types import CheckpointSpec, Dtype, Loadable, Sampling

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra cpu or gpu)"
    ),
]

SHAPE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
SETTINGS = EngineSettings(max_model_len=256, max_num_seqs=16, kv_cache_gib=0.25)
GREEDY = Sampling(temperature=0.0, max_tokens=24)
WARM = Sampling(temperature=0.8, top_p=0.9, max_tokens=24)

Reading = tuple[list[list[float]], list[Completion]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models a to c of one shape, two LoRAs on a, and a broken copy of b."""
    root = tmp_path_factory.mktemp("models")
    save_tokenizer(root / "tokenizer")
    for seed, name in enumerate("abc"):
        save_llama(root / name, root / "tokenizer", seed=seed, **SHAPE)
    for seed, name in enumerate(("lora-1", "lora-2")):
        save_lora(root / name, root / "a", seed=seed, target_modules=["q_proj", "down_proj"])
    return root


@pytest.fixture(autouse=True)
def cache(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBPO_CACHE", str(folders / "cache"))


def checkpoint(folders: Path, name: str, dtype: Dtype = Dtype.FLOAT32, **fields: bool) -> Loadable:
    return prepare(CheckpointSpec(name=name, source=str(folders / name), dtype=dtype, **fields))


def sequences() -> list[list[int]]:
    return [[1, *(6 + b for b in answer.encode()[:60])] for _, answer in CANARIES]


def requests(count: int = 12) -> list[Request]:
    rng = random.Random(5)
    return [
        Request(
            key=f"s\ne{i}\n0",
            prompt=(1, *(rng.randrange(6, 262) for _ in range(5 + i))),
            sampling=WARM if i % 2 else GREEDY,
            seed=i,
        )
        for i in range(count)
    ]


def read(engine: VllmWorkers) -> Reading:
    found = sorted(engine.generate(requests()), key=lambda c: c.key)
    return engine.prompt_logprobs(sequences()), found


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmWorkers]:
    with closing(VllmWorkers(SETTINGS, 0)) as made:
        yield made


def fresh(held: Loadable, settings: EngineSettings = SETTINGS) -> Reading:
    with closing(VllmWorkers(settings, 0)) as made:
        assert made.load(held)
        return read(made)


def test_tokens_and_statistics_are_those_of_transformers(
    folders: Path, engine: VllmWorkers
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    engine.load(checkpoint(folders, "a"))
    model = AutoModelForCausalLM.from_pretrained(folders / "a", dtype=torch.float32).eval()
    for request, found in zip(requests(), sorted_like_requests(engine), strict=True):
        assert found.token_ids is not None
        ids = torch.tensor([[*request.prompt, *found.token_ids]])
        with torch.inference_mode():
            logits = model(ids).logits[0, len(request.prompt) - 1 : -1].double()
        log_p = logits.log_softmax(-1)
        taken = log_p.gather(-1, torch.tensor(found.token_ids)[:, None])[:, 0]
        seen = found.statistics
        assert seen.logprobs == pytest.approx(taken.tolist(), abs=1e-3)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert seen.entropies == pytest.approx(entropy.tolist(), abs=1e-3)
        top = torch.distributions.Categorical(logits=logits.topk(20, -1).values).entropy()
        assert seen.entropies_top20 == pytest.approx(top.tolist(), abs=1e-3)
        assert found.tokens == len(found.token_ids) == len(seen.logprobs)
        assert found.prompt_tokens == len(request.prompt)
        if request.sampling.temperature == 0:
            assert list(found.token_ids) == logits.argmax(-1).tolist()


def sorted_like_requests(engine: VllmWorkers) -> list[Completion]:
    by_key = {c.key: c for c in engine.generate(requests())}
    return [by_key[r.key] for r in requests()]


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_after_every_reload_the_engine_is_a_fresh_one(folders: Path, dtype: Dtype) -> None:
    held = {name: checkpoint(folders, name, dtype) for name in "ab"}
    expected = {"b": fresh(held["b"])}
    with closing(VllmWorkers(SETTINGS, 0)) as made:
        assert made.load(held["a"])
        expected["a"] = read(made)
        assert expected["a"] != expected["b"]
        for name in "bbaab":
            made.load(held[name])
            assert read(made) == expected[name], name


def test_failed_reload_leaves_nothing_behind(folders: Path, engine: VllmWorkers) -> None:
    from safetensors.torch import load_file, save_file

    good = checkpoint(folders, "b")
    engine.load(good)
    expected = read(engine)
    for fault in ("shape", "truncated"):
        engine.load(checkpoint(folders, "a"))
        broken = folders / f"broken-{fault}"
        save_llama(broken, folders / "tokenizer", seed=7, **SHAPE)
        taken = checkpoint(folders, broken.name)
        file = broken / "model.safetensors"
        if fault == "shape":
            tensors = load_file(file)
            tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
            save_file(tensors, file, metadata={"format": "pt"})
        else:
            file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(EngineError, match=f"refused the weights of '{broken.name}'"):
            engine.load(taken)
        assert engine.load(good), "a fresh engine is started after a failed reload"
        assert read(engine) == expected


def test_killed_engine_says_so_and_is_started_again(folders: Path, engine: VllmWorkers) -> None:
    held = checkpoint(folders, "c")
    engine.load(held)
    expected = read(engine)
    answers = engine.generate([*requests(), *long_requests()])
    next(answers)
    os.kill(engine.workers[0].process.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="SIGKILL"):
        list(answers)
    assert engine.workers == []
    assert engine.load(held)
    assert read(engine) == expected


def long_requests() -> list[Request]:
    endless = Sampling(temperature=1.0, max_tokens=200)
    return [
        Request(key=f"s\nlong{i}\n0", prompt=(1, 7), sampling=endless, seed=i) for i in range(64)
    ]


def test_caller_that_stops_listening_leaves_no_process(folders: Path) -> None:
    with closing(VllmWorkers(SETTINGS, 0)) as made:
        made.load(checkpoint(folders, "a"))
        process = made.workers[0].process
        answers = made.generate(long_requests())
        next(answers)
        answers.close()
        assert process.poll() is not None
        assert made.workers == []


def test_two_engines_side_by_side_answer_as_one(folders: Path, engine: VllmWorkers) -> None:
    held = checkpoint(folders, "a")
    engine.load(held)
    alone = read(engine)
    both = SETTINGS.model_copy(update={"data_parallel_size": 2})
    with closing(VllmWorkers(both, 0)) as made:
        made.load(held)
        assert len({worker.process.pid for worker in made.workers}) == 2
        logprobs, answers = read(made)
    assert [a.token_ids for a in answers] == [a.token_ids for a in alone[1]]
    for mine, theirs in zip(logprobs, alone[0], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_unmerged_loras_answer_as_merged_ones_in_a_shuffled_order(
    folders: Path, engine: VllmWorkers
) -> None:
    names = ("lora-1", "lora-2")
    expected = {}
    for name in names:
        engine.load(checkpoint(folders, name))
        expected[name] = read(engine)
    settings = SETTINGS.model_copy(update={"max_loras": len(names), "max_lora_rank": 8})
    with closing(VllmWorkers(settings, 0)) as made:
        for name in ("lora-2", "lora-1", "lora-1", "lora-2"):
            held = checkpoint(folders, name, merge=False)
            assert held.lora is not None
            made.load(held)
            logprobs, answers = read(made)
            assert_close(logprobs, expected[name][0])
            assert [a.token_ids for a in answers] == [a.token_ids for a in expected[name][1]]
        assert expected["lora-1"][0] != expected["lora-2"][0]


def assert_close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)


def test_deterministic_answers_do_not_depend_on_their_company(folders: Path) -> None:
    settings = SETTINGS.model_copy(update={"deterministic": True})
    with closing(VllmWorkers(settings, 0)) as made:
        made.load(checkpoint(folders, "b", Dtype.BFLOAT16))
        together = {c.key: c for c in made.generate(requests(6))}
        for request in reversed(requests(6)):
            assert list(made.generate([request])) == [together[request.key]]
