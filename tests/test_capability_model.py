"""The model that lm-eval sees: encoding, windows and arguments; and engines that read and stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from capability_records import LikingEngine, held
from suite_records import make_loadable
from tiny_checkpoints import save_llama

from harness.capability.model import EngineLM
from harness.engines import RankedEngine, Request
from harness.engines.openai import chat_body
from harness.engines.settings import EngineSettings
from harness.engines.transformers import TransformersEngine
from harness.engines.vllm import sampling_params
from harness.errors import EngineError, InputError
from harness.types import Dtype, FinishReason, Loadable, Message, Role, Sampling


@pytest.fixture
def checkpoint(tokenizer_folder: Path) -> Loadable:
    return make_loadable("tiny", tokenizer_folder)


def model(checkpoint: Loadable, length: int = 40) -> EngineLM:
    engine = LikingEngine(lambda ids: str(list(ids)), lambda context, end: -1.0 * len(end))
    held(engine, checkpoint)
    return EngineLM(engine, checkpoint, max_model_len=length, suite="s", seed=0)


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def ids(text: str) -> list[int]:
    """Return the tokens of the tests' tokenizer: six special ones, then the alphabet's order."""
    from tokenizers import pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    shown = "".join(piece for piece, _ in splitter.pre_tokenize_str(text))
    return [6 + symbols.index(symbol) for symbol in shown]


def read_of(lm: EngineLM) -> list[tuple[list[int], int]]:
    engine: Any = lm.engine
    found: list[tuple[list[int], int]] = engine.read
    return found


def test_spaces_go_to_the_continuation_and_special_tokens_come_once(checkpoint: Loadable) -> None:
    lm = model(checkpoint)
    own = lm.tokenizer("a b")["input_ids"]
    lead = own[: own.index(ids("a")[0])]
    lm.loglikelihood([asked("ab ", "c")], disable_tqdm=True)
    assert read_of(lm) == [([*lead, *ids("ab c")], len(lead) + 2)]
    assert lm.tok_encode("<s>ab") == [1, *ids("ab")]
    assert lm.tok_encode(["<s>a", "b"]) == [[1, *ids("a")], [*lead, *ids("b")]]
    assert lm.tok_encode("") == []


def test_beginning_of_sequence_is_added_as_the_tokenizer_does_and_never_twice(
    checkpoint: Loadable,
) -> None:
    from tokenizers.processors import TemplateProcessing

    lm = model(checkpoint)
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert lm.tok_encode("ab") == [1, *ids("ab")]
    assert lm.tok_encode("<s>ab") == [1, *ids("ab")]
    assert lm.tok_encode("ab", add_special_tokens=False) == ids("ab")
    lm.loglikelihood([asked("a", "b"), asked("<s>a", "b")], disable_tqdm=True)
    assert read_of(lm) == [([1, *ids("ab")], 2)] * 2
    text = lm.apply_chat_template([{"role": "user", "content": "a"}])
    assert text.startswith("<s><|user|>a")
    assert lm.tok_encode(text).count(1) == 1


def test_empty_context_is_read_after_the_beginning(checkpoint: Loadable) -> None:
    lm = model(checkpoint)
    lm.loglikelihood([asked("", "xy")], disable_tqdm=True)
    assert read_of(lm) == [([1, *ids("xy")], 1)]


def test_results_keep_their_order_and_equal_beginnings_stand_together(
    checkpoint: Loadable,
) -> None:
    lm = model(checkpoint)
    pairs = [("m", "1"), ("zz", "22"), ("m", "333"), ("zz", "1"), ("m", "22")]
    found = lm.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    engine: Any = lm.engine
    for (_, end), (value, greedy) in zip(pairs, found, strict=True):
        assert value == pytest.approx(engine.likes("", str(ids(end))))
        assert greedy == (engine.likes("", str(ids(end))) > -1)
    contexts = [tuple(sequence[:start]) for sequence, start in read_of(lm)]
    assert sorted(contexts) == contexts
    assert len(set(contexts)) == 2


def test_rolling_windows_read_every_token_once(checkpoint: Loadable) -> None:
    lm = model(checkpoint, length=12)
    text = "abcdefghijklmnopqrstuvwxyz"
    whole = lm.tok_encode(text)
    (total,) = lm.loglikelihood_rolling([asked(text)], disable_tqdm=True)
    ends = sorted((sequence[start:] for sequence, start in read_of(lm)), key=len, reverse=True)
    assert sorted(token for end in ends for token in end) == sorted(whole)
    engine: Any = lm.engine
    assert total == pytest.approx(sum(engine.likes("", str(end)) for end in ends))
    assert max(len(sequence) for sequence, _ in read_of(lm)) <= 11


def test_continuation_longer_than_everything_is_read_from_its_second_token(
    checkpoint: Loadable,
) -> None:
    lm = model(checkpoint, length=6)
    lm.loglikelihood([asked("a", "bcdefgh")], disable_tqdm=True)
    assert read_of(lm) == [(ids("defgh"), 1)]
    assert lm.cut == 1


def test_generation_arguments_that_no_engine_keeps_are_refused(checkpoint: Loadable) -> None:
    lm = model(checkpoint)
    with pytest.raises(InputError, match="generates with top_k, which is not offered"):
        lm.generate_until([asked("a", {"until": ["x"], "top_k": 5})])


def test_answers_are_drawn_where_a_task_samples(checkpoint: Loadable) -> None:
    lm = model(checkpoint, length=300)
    arguments = {"until": "x", "do_sample": True, "temperature": 0.7, "max_gen_toks": 9}
    lm.generate_until([asked("a", arguments), asked("b", arguments)])
    engine: Any = lm.engine
    assert {r.sampling for r in engine.asked} == {
        Sampling(temperature=0.7, max_tokens=9, stop=("x", "</s>"))
    }
    assert len({r.seed for r in engine.asked}) == 2


def test_request_without_an_answer_is_an_error(checkpoint: Loadable) -> None:
    from harness.engines import Failure

    lm = model(checkpoint)
    engine: Any = lm.engine
    engine.generate = lambda requests: iter([Failure(key=requests[0].key, reason="too long")])
    with pytest.raises(EngineError, match="s/0/0 got no answer: too long"):
        lm.generate_until([asked("a", {"until": ["x"]})])


# -- engines -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_engine(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> Iterator[TransformersEngine]:
    wide = {"initializer_range": 0.4, "tie_word_embeddings": False}
    folder = save_llama(tmp_path_factory.mktemp("llama") / "model", tokenizer_folder, 3, **wide)
    engine = TransformersEngine(EngineSettings(max_model_len=256, max_num_seqs=4), 0)
    engine.load(make_loadable("tiny", folder, dtype=Dtype.FLOAT32))
    yield engine
    engine.close()


def test_transformers_readings_are_those_of_a_whole_pass(
    transformers_engine: TransformersEngine,
) -> None:
    import torch

    assert isinstance(transformers_engine, RankedEngine)
    sequences = [[1, 40, 41, 42, 43], [1, *range(60, 90)], [1, 7]]
    with torch.inference_mode():
        greedy = transformers_engine._model(torch.tensor([sequences[0]])).logits[0, -1].argmax()
    sequences.append([*sequences[0], int(greedy)])
    starts = [2, 20, 1, 5]
    found = transformers_engine.token_readings(sequences, starts)
    for sequence, start, reading in zip(sequences, starts, found, strict=True):
        with torch.inference_mode():
            logits = transformers_engine._model(torch.tensor([sequence])).logits[0].double()
        log_p = logits.log_softmax(-1)
        expected = [float(log_p[i - 1, sequence[i]]) for i in range(start, len(sequence))]
        best = [int(log_p[i - 1].argmax()) == sequence[i] for i in range(start, len(sequence))]
        assert reading.logprobs == pytest.approx(expected, abs=1e-4)
        assert list(reading.likeliest) == best
    assert found[-1].likeliest == (True,)


def greedy_request(limit: int = 24, **sampling: Any) -> Request:
    given = Sampling(temperature=0.0, max_tokens=limit, **sampling)
    return Request(key="s\ne\n0", prompt=(1, 40, 41), sampling=given, seed=0)


def test_transformers_answer_stops_at_the_first_text(
    transformers_engine: TransformersEngine,
) -> None:
    (free,) = transformers_engine.generate([greedy_request(stop=("\x00 never",))])
    text = free.text  # type: ignore[union-attr]
    assert len(text) > 12
    stop = text[6:8]
    cut = text[: text.index(stop)]
    (found,) = transformers_engine.generate([greedy_request(stop=("\x00 never", stop))])
    assert found.text == cut  # type: ignore[union-attr]
    assert found.finish_reason is FinishReason.STOP  # type: ignore[union-attr]
    assert found.tokens < free.tokens  # type: ignore[union-attr]
    assert found.token_ids == free.token_ids[: found.tokens]  # type: ignore[union-attr, index]


def test_stop_texts_reach_vllm_and_servers_and_leave_old_requests_as_they_were() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")
    stopping = greedy_request(stop=("\n\n", "</s>"))
    params = sampling_params(stopping, own_top_p=False)
    assert params.stop == ["\n\n", "</s>"]
    assert not params.skip_special_tokens
    assert not params.include_stop_str_in_output
    plain = sampling_params(greedy_request(), own_top_p=False)
    assert plain.stop == []
    assert plain.skip_special_tokens
    messages = (Message(role=Role.USER, content="a"),)
    body = chat_body(stopping.model_copy(update={"messages": messages}), "m", 0)
    assert body["stop"] == ["\n\n", "</s>"]
    assert "stop" not in chat_body(
        greedy_request().model_copy(update={"messages": messages}), "m", 0
    )


def test_sampling_without_stop_is_dumped_as_before() -> None:
    assert "stop" not in Sampling(temperature=0.0, max_tokens=1).model_dump(mode="json")
    stopping = Sampling(temperature=0.0, max_tokens=1, stop=["a"])
    assert stopping.model_dump(mode="json")["stop"] == ["a"]
    assert Sampling.model_validate_json(stopping.model_dump_json()) == stopping
    with pytest.raises(ValueError, match="stop"):
        Sampling(temperature=0.0, max_tokens=1, stop=("",))
