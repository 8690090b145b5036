"""The plan: everything checked before anything is computed, and a key for all that decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from suite_records import EXAMPLES, NAMES, SAMPLES, make_loadable, run_config, write_suite
from tiny_checkpoints import save_checkpoint, save_sentencepiece

from harness import groups
from harness.engines import settings
from harness.engines.settings import EngineSettings
from harness.errors import InputError
from harness.groups import default_engine, guarantees, make_groups
from harness.plan import RunConfig, make_plan
from harness.suites.names import Group
from harness.types import CheckpointSpec, Dtype, Form, Loadable, RunManifest, Status


def specs(given: Path, *, name: str = "a", **fields: Any) -> list[CheckpointSpec]:
    return [CheckpointSpec(name=name, source=str(given / "base"), **fields)]


def manifest(config: RunConfig) -> RunManifest:
    return make_plan(config).manifest


def test_manifest_says_what_will_be_run(given: Path, tmp_path: Path) -> None:
    plan = make_plan(run_config(given, tmp_path / "run"))
    found = plan.manifest
    assert found.status == Status.RUNNING
    assert [c.spec.name for c in found.checkpoints] == list(NAMES)
    assert len({c.weights_sha256 for c in found.checkpoints}) == len(NAMES)
    (card,) = found.suites
    assert (card.name, card.examples, card.sampling.samples) == ("own", EXAMPLES, SAMPLES)
    assert card.has_reference
    assert {m.key for m in card.metrics} >= {"preference_accuracy", "tokens", "entropy"}
    assert [j.name for j in found.judges] == ["reference"]
    assert found.counts["generations"].expected == len(NAMES) * EXAMPLES * SAMPLES
    (engine,) = found.engines
    assert engine.checkpoints == NAMES
    assert engine.identity["name"] == default_engine()
    assert any("not guaranteed" in text for text in engine.guarantees)
    assert "numpy" in found.packages
    assert not (tmp_path / "run").exists()


def test_run_key_can_be_repeated(given: Path, tmp_path: Path) -> None:
    first = manifest(run_config(given, tmp_path / "run"))
    again = manifest(run_config(given, tmp_path / "elsewhere"))
    assert again.run_key == first.run_key
    assert RunManifest.model_validate_json(first.model_dump_json()) == first


def test_run_key_follows_everything_that_decides_the_results(
    given: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    other = save_checkpoint(tmp_path / "other", tokenizer_folder, seed=5)
    template = save_checkpoint(tmp_path / "template", tokenizer_folder)
    with (template / "chat_template.jinja").open("a") as stream:
        stream.write("x")
    for name in ("judged", "warm"):
        (tmp_path / name).mkdir()
    warm = {"temperature": 0.5, "max_tokens": 16, "samples": SAMPLES}
    base: dict[str, Any] = {"checkpoints": specs(given)}
    variants: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"limit": 3},
        {"engine": {"chunk": 9}},
        {"max_model_len": 512},
        {"checkpoints": specs(given, name="b")},
        {"checkpoints": specs(given, dtype=Dtype.FLOAT32)},
        {"checkpoints": [CheckpointSpec(name="a", source=str(other))]},
        {"checkpoints": [CheckpointSpec(name="a", source=str(template))]},
        {"suites": [str(write_suite(tmp_path / "judged", judges=[]))]},
        {"suites": [str(write_suite(tmp_path / "warm", sampling=warm))]},
    ]
    keys = [manifest(run_config(given, tmp_path, **(base | v))).run_key for v in variants]
    assert len(set(keys)) == len(variants)


def test_run_key_does_not_follow_a_checkpoints_place(
    given: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    copy = save_checkpoint(tmp_path / "copy", tokenizer_folder)
    here = manifest(run_config(given, tmp_path, checkpoints=specs(given)))
    moved = [CheckpointSpec(name="a", source=str(copy), method="sft")]
    assert manifest(run_config(given, tmp_path, checkpoints=moved)).run_key == here.run_key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ["hhh"]}, "unknown suite 'hhh'"),
        ({"engine": {"chunks": 3}}, r"unknown engine setting 'chunks'.* Known: .*chunk"),
        ({"engine": {"chunk": 0}}, "engine: chunk: .*'0'"),
        ({"engine": {"kv_cache_gib": "big"}}, "engine: kv_cache_gib: .*'big'"),
        ({"max_model_len": 4096}, "--max-model-len 4096 is beyond the model's own limit of 2048"),
        ({"engine": {"max_model_len": 4096}}, "4096 is beyond the model's own limit of 2048"),
        ({"engine": {"max_model_len": "long"}}, "engine: max_model_len: .*'long'"),
        (
            {"engine": {"max_model_len": 512}, "max_model_len": 256},
            "--max-model-len 256 and the engine's setting max_model_len=512 differ",
        ),
    ],
)
def test_wrong_request_is_refused(
    given: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(run_config(given, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([("a", {}), ("a", {})], "checkpoint name 'a' is given twice"),
        ([("reference", {})], "'reference' stands for the suites' own answers"),
    ],
)
def test_checkpoints_that_do_not_go_together_are_refused(
    given: Path, tmp_path: Path, wanted: list[tuple[str, dict[str, Any]]], message: str
) -> None:
    made = [spec for name, fields in wanted for spec in specs(given, name=name, **fields)]
    with pytest.raises(InputError, match=message):
        make_plan(run_config(given, tmp_path / "run", checkpoints=made))


def test_checkpoints_of_another_shape_or_dtype_get_an_engine_of_their_own(
    given: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    wide = save_checkpoint(tmp_path / "wide", tokenizer_folder, hidden_size=64)
    made = [
        *specs(given),
        CheckpointSpec(name="wide", source=str(wide)),
        *specs(given, name="b"),
        *specs(given, name="exact", dtype=Dtype.FLOAT32),
    ]
    plan = make_plan(run_config(given, tmp_path / "run", checkpoints=made))
    found = [[c.spec.name for c in group.checkpoints] for group in plan.groups]
    assert found == [["a", "b"], ["wide"], ["exact"]]
    assert [list(card.checkpoints) for card in plan.manifest.engines] == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["lenght"]}, r"unknown metric 'lenght'.*Did you mean 'length'"),
        ({"judges": ["referee"]}, "unknown judge 'referee'"),
        ({"primary": ["rouge_l"]}, "primary metric 'rouge_l' is produced by none"),
    ],
)
def test_suite_that_cannot_be_run_is_refused(
    given: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    suite = write_suite(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        make_plan(run_config(given, tmp_path / "run", suites=[str(suite)]))


def test_another_tokenizer_is_warned_of(
    given: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    save_sentencepiece(tmp_path / "tokenizer")
    save_checkpoint(other, tmp_path / "tokenizer")
    made = [*specs(given), CheckpointSpec(name="b", source=str(other))]
    plan = make_plan(run_config(given, tmp_path / "run", checkpoints=made))
    assert len(plan.groups) == 2
    assert "'b' has another tokenizer than 'a'" in caplog.text


@pytest.mark.parametrize("name", ["replay", "openai"])
def test_engine_that_holds_no_weights_is_refused_for_them(
    given: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match=rf"engine '{name}' holds no weights, which 'base' has"):
        make_plan(run_config(given, tmp_path / "run", engine={"name": name}))


def test_context_as_an_engines_setting_is_that_of_the_option(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "is_cpu_build", lambda: True)
    monkeypatch.setattr(settings, "total_memory_gib", lambda: 24.0)
    monkeypatch.setattr(groups, "cache_bytes", lambda config, itemsize: 2**14)
    ways: list[dict[str, Any]] = [
        {"max_model_len": 2048, "engine": {}},
        {"engine": {"max_model_len": 2048}},
        {"max_model_len": 2048, "engine": {"max_model_len": 2048}},
    ]
    plans = [make_plan(run_config(given, tmp_path / "run", **way)) for way in ways]
    found = [plan.groups[0].settings for plan in plans]
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0], EngineSettings)
    assert (found[0].max_model_len, found[0].kv_cache_gib) == (2048, 2.0)


@pytest.mark.parametrize(
    ("name", "cpu", "sequences"),
    [
        ("vllm", True, 1),
        ("vllm", False, 256),
        ("transformers", True, 1),
        ("transformers", False, 1),
    ],
)
def test_manifest_of_a_deterministic_run_says_how_many_are_answered_together(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cpu: bool,
    sequences: int,
) -> None:
    for module in (settings, groups):
        monkeypatch.setattr(module, "is_cpu_build", lambda: cpu)
    monkeypatch.setattr(settings, "_gpus", lambda: (1, 80.0))
    wanted = {"name": name, "deterministic": True}
    (engine,) = manifest(run_config(given, tmp_path / "run", engine=wanted)).engines
    assert engine.identity["max_num_seqs"] == sequences


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_was_not_measured_is_promised_to_nobody(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    asked = EngineSettings(deterministic=deterministic)
    monkeypatch.setattr(groups, "is_cpu_build", lambda: True)
    measured = " ".join(guarantees(asked))
    assert "gives the same text, token for token" in measured
    assert "expected" not in measured
    monkeypatch.setattr(groups, "is_cpu_build", lambda: False)
    promises = [text for text in guarantees(asked) if not text.startswith("not guaranteed")]
    assert len(promises) == 1 + deterministic
    assert all("is expected" in text and "not measured" in text for text in promises)


def test_transformers_is_given_one_gpu_of_many(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "is_cpu_build", lambda: False)
    monkeypatch.setattr(settings, "_gpus", lambda: (4, 80.0))
    for name, copies in (("vllm", 4), ("transformers", 1)):
        plan = make_plan(run_config(given, tmp_path / "run", engine={"name": name}))
        found = plan.groups[0].settings
        assert isinstance(found, EngineSettings)
        assert found.data_parallel_size == copies
        assert plan.groups[0].make(0).identity["name"] == name


@pytest.mark.parametrize("changes", [{"engine": {"name": "vlm"}}, {"endpoint": {"tries": 3}}])
def test_unknown_engine_or_endpoint_setting_lists_the_known(
    given: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = run_config(given, tmp_path / "run", **changes)
    url = CheckpointSpec(name="far", source="http://127.0.0.1:9/v1", model="m")
    if "endpoint" in changes:
        far = Loadable(
            spec=url,
            form=Form.ENDPOINT,
            folder=url.source,
            weights_sha256="w",
            architecture="endpoint",
            template_sha256=None,
        )
        with pytest.raises(InputError, match=r"unknown endpoint setting 'tries'.*attempts"):
            make_groups([far], {}, config.endpoint, None)
    else:
        with pytest.raises(InputError, match=r"unknown engine 'vlm'.*vllm"):
            make_plan(config)


@pytest.mark.parametrize(
    ("engine", "endpoint", "message"),
    [
        ({"name": "vlm"}, {}, r"unknown engine 'vlm'.*vllm"),
        ({"name": 3}, {}, "unknown engine '3'"),
        ({"chunks": 3}, {}, "unknown engine setting 'chunks'"),
        ({}, {"tries": 3}, "unknown endpoint setting 'tries'"),
    ],
)
def test_words_are_checked_where_no_checkpoint_has_a_use_for_them(
    engine: dict[str, Any], endpoint: dict[str, Any], message: str
) -> None:
    filed = make_loadable("filed").model_copy(update={"form": Form.RECORDED})
    assert [group.engine for group in make_groups([filed], {"chunk": 3}, {}, None)] == ["replay"]
    with pytest.raises(InputError, match=message):
        make_groups([filed], engine, endpoint, None)


def test_group_whose_judges_are_not_named_says_so(
    given: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = given / "own.yaml"
    group = Group(title="t", suites=("own",), judges="Two large ones.")
    monkeypatch.setattr("harness.suites.names.known_suites", lambda: {"own": path})
    for module in ("harness.suites.names", "harness.plan"):
        monkeypatch.setattr(f"{module}.known_groups", lambda: {"paper": group})
    make_plan(run_config(given, given / "run", suites=("own",)))
    assert "--judge" not in caplog.text
    make_plan(run_config(given, given / "run", suites=("paper",)))
    said = "'paper' without --judge: no win rates by language models. Two large ones."
    assert said in caplog.text
