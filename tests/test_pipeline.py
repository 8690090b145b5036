"""The pipeline on a fake engine: a run is whole, and stopped anywhere it ends the same."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fake_engine import FakeEngine, FakeReference, Killed
from suite_records import CHUNK, EXAMPLES, NAMES, SAMPLES, run_config, write_suite
from tiny_checkpoints import save_checkpoint

from harness import generation, pipeline, plan
from harness.adapters import prepare
from harness.engines import Completion, Failure, Request
from harness.errors import (
    CheckpointError,
    EngineDiedError,
    EngineError,
    InputError,
    RunFolderError,
)
from harness.groups import EngineGroup
from harness.pipeline import Work, run
from harness.reading import compare_run
from harness.store import GENERATIONS, JUDGMENTS, SCORES, RunFolder, read_run
from harness.types import BaseWeights, CheckpointSpec, Loadable, Status

FILES = ("examples.jsonl", "generations.jsonl", "judgments.jsonl", "scores.jsonl")


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch)


def install_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.forget()
    FakeReference.loads = []
    monkeypatch.setattr(EngineGroup, "make", lambda group, seed: FakeEngine(group.settings, seed))
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)
    monkeypatch.setattr(generation, "FLUSH", 3)
    # A stopped test process loses nothing that it wrote, so it need not wait for the disk.
    monkeypatch.setattr(os, "fsync", lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(given: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_fakes(monkeypatch)
        monkeypatch.setenv("TBPO_CACHE", str(folder / "cache"))
        return contents(run(run_config(given, folder / "run")))


def test_run_is_whole(given: Path, tmp_path: Path) -> None:
    folder = read_run(run(run_config(given, tmp_path / "run")))
    manifest = folder.manifest
    assert manifest.status == Status.COMPLETE
    found = folder.records(GENERATIONS)
    assert len(found) == len(NAMES) * EXAMPLES * SAMPLES
    assert manifest.counts["generations"].expected == manifest.counts["generations"].present
    weights = {c.spec.name: c.weights_sha256 for c in manifest.checkpoints}
    assert all(g.weights_sha256 == weights[g.checkpoint] for g in found)
    assert len(folder.records(JUDGMENTS)) == 3 * EXAMPLES
    metrics = Counter((s.checkpoint, s.metric) for s in folder.records(SCORES))
    for name in NAMES:
        assert metrics[name, "preference_accuracy"] == EXAMPLES
        assert metrics[name, "tokens"] == EXAMPLES * SAMPLES
    assert compare_run(tmp_path / "run").gaps == ()


def test_one_engine_holds_all_checkpoints_in_turn(given: Path, tmp_path: Path) -> None:
    folder = read_run(run(run_config(given, tmp_path / "run")))
    assert FakeEngine.started == FakeEngine.closed == 1
    assert FakeEngine.loads == list(NAMES)
    assert FakeReference.loads == list(NAMES)
    loaded = [e for e in folder.manifest.events if e["event"] == "loaded"]
    assert [e["checkpoint"] for e in loaded] == list(NAMES)
    assert all(e["own"] == 0 < e["nearest_other"] for e in loaded)


def test_engine_is_handed_whole_chunks_the_same_for_all(given: Path, tmp_path: Path) -> None:
    run(run_config(given, tmp_path / "run"))
    by_name = {n: [keys for name, keys in FakeEngine.chunks if name == n] for n in NAMES}
    assert by_name["base"] == by_name["dpo"] == by_name["tbpo"]
    assert [len(keys) for keys in by_name["base"]] == [8, 8, 5]
    keys = [key for chunk in by_name["base"] for key in chunk]
    assert len(set(keys)) == EXAMPLES * SAMPLES


def test_base_has_preference_accuracy_one_half(given: Path, tmp_path: Path) -> None:
    folder = read_run(run(run_config(given, tmp_path / "run")))
    values = {n: set() for n in NAMES}  # type: dict[str, set[float | None]]
    for score in folder.records(SCORES):
        if score.metric == "preference_accuracy":
            values[score.checkpoint].add(score.value)
    assert values["base"] == {0.5}
    assert values["dpo"] | values["tbpo"] <= {0.0, 1.0}


def test_second_run_computes_nothing(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run(run_config(given, tmp_path / "run"))
    before = contents(output) | {"manifest.json": (output / "manifest.json").read_bytes()}
    for name in ("ReferenceModel", "Work"):
        monkeypatch.setattr(pipeline, name, None)
    assert run(run_config(given, output)) == output
    assert contents(output) | {"manifest.json": (output / "manifest.json").read_bytes()} == before


def test_checkpoint_that_is_done_is_not_loaded_again(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    output = tmp_path / "run"
    FakeEngine.fail_after = EXAMPLES * SAMPLES + 1
    with pytest.raises(Killed):
        run(run_config(given, output))
    FakeEngine.forget()
    FakeReference.loads.clear()
    run(run_config(given, output))
    assert FakeEngine.loads == ["dpo", "tbpo"]
    assert FakeReference.loads == []
    events = [e["checkpoint"] for e in read_run(output).manifest.events if e["event"] == "loaded"]
    assert events == ["base", "dpo", "dpo", "tbpo"]
    assert contents(output) == undisturbed


@pytest.mark.parametrize("after", [0, 1, 3, 7, 8, 9, 20, 21, 22, 43, 62])
def test_run_stopped_in_an_answer_ends_the_same(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes], after: int
) -> None:
    output = tmp_path / "run"
    FakeEngine.fail_after = after
    with pytest.raises(Killed):
        run(run_config(given, output))
    assert FakeEngine.closed == 1
    kept = read_run(output).records(GENERATIONS)
    assert after - 3 < len(kept) <= after
    assert compare_run(output).gaps
    FakeEngine.forget()
    run(run_config(given, output))
    assert contents(output) == undisturbed


def test_stopped_chunk_is_handed_over_whole(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    FakeEngine.fail_after = 13
    with pytest.raises(Killed):
        run(run_config(given, tmp_path / "run"))
    stopped = FakeEngine.chunks[-1]
    assert FakeEngine.chunks[0] != stopped
    FakeEngine.forget()
    run(run_config(given, tmp_path / "run"))
    assert FakeEngine.chunks[0] == stopped
    assert len(stopped[1]) == CHUNK


def test_stopping_again_and_again_ends_the_same(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    stops = 0
    while stops < 40:
        FakeEngine.fail_after = FakeEngine.made + CHUNK + 1
        try:
            run(run_config(given, tmp_path / "run"))
            break
        except Killed:
            stops += 1
    assert stops > 6
    assert contents(tmp_path / "run") == undisturbed


def test_line_torn_by_a_kill_is_made_again(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    output = tmp_path / "run"
    FakeEngine.fail_after = 30
    with pytest.raises(Killed):
        run(run_config(given, output))
    FakeEngine.forget()
    for name in ("generations.jsonl", "scores.jsonl"):
        whole = (output / name).read_bytes()
        (output / name).write_bytes(whole[:-9])
    run(run_config(given, output))
    assert contents(output) == undisturbed


class StopOnce:
    """Wraps a method of a class so that one of its calls raises, before or after its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
        self.left = call
        real = getattr(owner, name)

        def wrapped(this: Any, *arguments: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise Killed
            return real(this, *arguments)

        monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        *((Work, stage, 1) for stage in ("likelihoods", "generations", "scores", "judgments")),
        (Work, "finish", 1),
        (RunFolder, "seal", 1),
        (RunFolder, "_sort", 2),
        (RunFolder, "_sort", 3),
        *((RunFolder, "append", call) for call in (1, 2, 3, 4, 30, 32, 35)),
        *((RunFolder, "write_manifest", call) for call in (1, 2, 3, 4, 5, 6)),
        (FakeEngine, "load", 2),
        (FakeEngine, "prompt_logprobs", 3),
    ],
)
def test_run_stopped_between_stages_ends_the_same(
    given: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    call: int,
) -> None:
    stop = StopOnce(monkeypatch, owner, name, call)
    with pytest.raises(Killed):
        run(run_config(given, tmp_path / "run"))
    assert stop.left == 0
    run(run_config(given, tmp_path / "run"))
    assert contents(tmp_path / "run") == undisturbed
    assert read_run(tmp_path / "run").manifest.status == Status.COMPLETE


def test_wrong_weights_stop_the_run_and_nothing_is_recorded_for_them(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine.load

    def stale(self: FakeEngine, checkpoint: Any) -> None:
        if self.held is None:
            real(self, checkpoint)

    monkeypatch.setattr(FakeEngine, "load", stale)
    with pytest.raises(EngineError, match="still answers exactly as with 'base'"):
        run(run_config(given, tmp_path / "run"))
    found = read_run(tmp_path / "run").records(GENERATIONS)
    assert {g.checkpoint for g in found} == {"base"}


def test_other_seed_gives_other_answers(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    other = contents(run(run_config(given, tmp_path / "run", seed=1)))
    assert other["generations.jsonl"] != undisturbed["generations.jsonl"]
    assert other["examples.jsonl"] == undisturbed["examples.jsonl"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"engine": {"chunk": 5}}, "engine"),
        ({"limit": 3}, "suites"),
    ],
)
def test_folder_of_another_run_is_refused(
    given: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    run(run_config(given, tmp_path / "run"))
    with pytest.raises(RunFolderError, match=f"They differ in: {named}"):
        run(run_config(given, tmp_path / "run", **changes))


def test_checkpoint_exchanged_under_its_name_is_noticed(
    given: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    run(run_config(given, tmp_path / "run"))
    other = save_checkpoint(tmp_path / "other", tokenizer_folder, seed=9)
    specs = [CheckpointSpec(name=n, source=str(given / n)) for n in NAMES[:2]]
    specs.append(CheckpointSpec(name=NAMES[2], source=str(other)))
    with pytest.raises(RunFolderError, match="They differ in: checkpoints"):
        run(run_config(given, tmp_path / "run", checkpoints=specs))


def test_one_checkpoint_under_two_names_is_no_stale_engine(given: Path, tmp_path: Path) -> None:
    specs = [CheckpointSpec(name=n, source=str(given / "base")) for n in ("a", "b")]
    output = run(run_config(given, tmp_path / "run", checkpoints=specs))
    assert compare_run(output).gaps == ()


def test_checkpoints_with_templates_of_their_own_can_be_compared(
    given: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    other = save_checkpoint(tmp_path / "other", tokenizer_folder, seed=9)
    with (other / "chat_template.jinja").open("a") as template:
        template.write("Well:")
    first = CheckpointSpec(name="a", source=str(given / "base"))
    second = CheckpointSpec(name="b", source=str(other))
    with pytest.raises(CheckpointError, match=r"different chat templates \(a; b\)"):
        run(run_config(given, tmp_path / "run", checkpoints=[first, second]))
    specs = [first, second.model_copy(update={"chat_template": "own"})]
    folder = read_run(run(run_config(given, tmp_path / "run", checkpoints=specs)))
    tokens = {g.checkpoint: g.prompt_tokens for g in folder.records(GENERATIONS)}
    assert tokens["b"] == tokens["a"] + len("Well:")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ["hhh"]}, "unknown suite 'hhh'"),
        ({"max_model_len": 20}, "own: 7 prompts are longer than 4 tokens"),
    ],
)
def test_wrong_request_starts_no_engine(
    given: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(run_config(given, tmp_path / "run", **changes))
    assert FakeEngine.started == 0


def test_pair_without_a_worse_answer_is_named(given: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, fields={"reference": "good"})
    with pytest.raises(InputError, match="'e0': preference_accuracy needs a better and a worse"):
        run(run_config(given, tmp_path / "run", suites=[str(suite)]))
    assert FakeEngine.started == 0


# Engines that die, checkpoints of several shapes, answers that are not to be had.


@pytest.mark.parametrize("after", [[0], [5], [22], [3, 30], [0, 9, 23, 50]])
def test_engine_that_dies_is_started_again_and_the_run_ends_the_same(
    given: Path, tmp_path: Path, undisturbed: dict[str, bytes], after: list[int]
) -> None:
    FakeEngine.dies_after = list(after)
    output = run(run_config(given, tmp_path / "run"))
    assert contents(output) == undisturbed
    assert FakeEngine.started == FakeEngine.closed == 1 + len(after)
    events = read_run(output).manifest.events
    died = [e for e in events if e["event"] == "engine died"]
    assert len(died) == len(after)
    assert "SIGKILL" in died[0]["reason"]


def test_engine_that_dies_again_and_again_stops_the_run(given: Path, tmp_path: Path) -> None:
    FakeEngine.dies_after = [10, 10, 10, 10]
    with pytest.raises(EngineDiedError):
        run(run_config(given, tmp_path / "run"))
    assert len(FakeEngine.dies_after) == 1
    kept = read_run(tmp_path / "run")
    assert len(kept.records(GENERATIONS)) == 10
    assert compare_run(tmp_path / "run").gaps


def test_checkpoints_of_two_shapes_go_through_two_engine_starts(
    given: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    wide = save_checkpoint(tmp_path / "wide", tokenizer_folder, seed=7, hidden_size=64)
    specs = [CheckpointSpec(name="wide", source=str(wide))]
    specs += [CheckpointSpec(name=n, source=str(given / n)) for n in NAMES[:2]]
    output = run(run_config(given, tmp_path / "run", checkpoints=[specs[1], specs[0], specs[2]]))
    assert FakeEngine.loads == ["base", "dpo", "wide"]
    assert FakeEngine.started == 2
    assert compare_run(output).gaps == ()


def test_no_two_requests_share_an_identity(given: Path, tmp_path: Path) -> None:
    found = read_run(run(run_config(given, tmp_path / "run"))).records(GENERATIONS)
    assert len({g.request_sha256 for g in found}) == len(found)


def test_answer_to_another_request_is_refused_on_resumption(given: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    FakeEngine.fail_after = 30
    with pytest.raises(Killed):
        run(run_config(given, output))
    FakeEngine.forget()
    file = output / "generations.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    row = json.loads(first)
    file.write_text("".join([json.dumps(row | {"request_sha256": "0" * 64}) + "\n", *rest]))
    with pytest.raises(RunFolderError, match=r"answer of 'base' to own/e\d was given to another"):
        run(run_config(given, output))
    assert FakeEngine.started == 0


def test_weights_that_change_during_the_run_stop_it(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "given"
    shutil.copytree(given, folder)
    real = FakeEngine.load

    def changing(self: FakeEngine, checkpoint: Loadable) -> bool:
        if checkpoint.spec.name == "base":
            shutil.copy(folder / "tbpo/model.safetensors", folder / "dpo/model.safetensors")
        return real(self, checkpoint)

    monkeypatch.setattr(FakeEngine, "load", changing)
    with pytest.raises(CheckpointError, match=r"dpo.*"):
        run(run_config(folder, tmp_path / "run"))
    assert {g.checkpoint for g in read_run(tmp_path / "run").records(GENERATIONS)} == {"base"}


def test_reading_of_weights_that_changed_is_not_kept(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "given"
    shutil.copytree(given, folder)

    class Late(FakeReference):
        """Loads once the weights of a checkpoint were written over."""

        def __init__(self, checkpoint: Loadable) -> None:
            if checkpoint.spec.name == "dpo":
                shutil.copy(folder / "tbpo/model.safetensors", folder / "dpo/model.safetensors")
            super().__init__(checkpoint)

    monkeypatch.setattr(pipeline, "ReferenceModel", Late)
    with pytest.raises(CheckpointError, match=r"'dpo': the weights in .* changed"):
        run(run_config(folder, tmp_path / "run"))
    assert FakeEngine.started == 0
    assert {s.checkpoint for s in read_run(tmp_path / "run").records(SCORES)} == {"base"}
    assert len(list((tmp_path / "cache" / "canary").iterdir())) == 1


def test_context_too_short_for_the_canaries_starts_nothing(given: Path, tmp_path: Path) -> None:
    config = run_config(given, tmp_path / "run", max_model_len=150)
    with pytest.raises(InputError, match=r"--max-model-len 150 is too short .* Give \d+ or more"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_adapter_that_changes_nothing_is_refused_unless_allowed(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = prepare(CheckpointSpec(name="base", source=str(given / "base")))
    below = BaseWeights(folder=base.folder, weights_sha256=base.weights_sha256)
    idle = {"spec": CheckpointSpec(name="idle", source="lora"), "base": below}

    def prepared(spec: CheckpointSpec) -> Loadable:
        if spec.name != "idle":
            return prepare(spec)
        return base.model_copy(update=idle | {"spec": spec})

    monkeypatch.setattr(plan, "prepare", prepared)
    specs = [CheckpointSpec(name="base", source=str(given / "base"))]
    for allowed in (False, True):
        idle_spec = CheckpointSpec(name="idle", source="lora", allow_unchanged=allowed)
        config = run_config(given, tmp_path / f"run-{allowed}", checkpoints=[*specs, idle_spec])
        if allowed:
            assert compare_run(run(config)).gaps == ()
        else:
            with pytest.raises(
                CheckpointError, match="'idle': the adapter in lora changes nothing"
            ):
                run(config)
            assert FakeEngine.started == 0


class Forgetful(FakeEngine):
    """Answers all but one example; ``final`` says whether it ever will."""

    final: ClassVar[bool] = True

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion | Failure]:
        for request in requests:
            if "e2" in request.key:
                yield Failure(key=request.key, reason="not in the file", final=self.final)
            else:
                yield self.answer(request)


def test_answers_that_are_not_to_be_had_stay_a_gap_that_shows(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineGroup, "make", lambda group, seed: Forgetful(group.settings, seed))
    output = run(run_config(given, tmp_path / "run"))
    manifest = read_run(output).manifest
    counts = manifest.counts["generations"]
    assert counts.expected - counts.present == len(NAMES) * SAMPLES
    noted = [e for e in manifest.events if e["event"] == "not answered"]
    assert [e["count"] for e in noted] == [SAMPLES] * len(NAMES)
    assert "own/e2/0: not in the file" in noted[0]["first"]
    comparison = compare_run(output)
    assert any("e2" in gap or "answers" in gap for gap in comparison.gaps)


def test_answers_that_another_try_may_bring_stop_the_run_at_its_end(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    monkeypatch.setattr(Forgetful, "final", False)
    with monkeypatch.context() as patched:
        patched.setattr(EngineGroup, "make", lambda group, seed: Forgetful(group.settings, seed))
        with pytest.raises(EngineError, match=r"9 of 63 answers are missing \(own/e2/0: not in"):
            run(run_config(given, tmp_path / "run"))
    run(run_config(given, tmp_path / "run"))
    assert contents(tmp_path / "run") == undisturbed
