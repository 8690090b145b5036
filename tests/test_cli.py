"""The command line: one message and exit code 2 for what is wrong, JSON for programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_records import Tbpo, refused
from fake_engine import FakeEngine, FakeReference
from run_records import make_examples, make_generation, make_score, run_manifest, suite_card
from stability_records import log_rows, write_log, write_seeds
from suite_records import NAMES, write_suite

from harness import pipeline
from harness.cli_config import build_config, parse_checkpoint
from harness.errors import InputError
from harness.files import packaged
from harness.groups import EngineGroup
from harness.store import GENERATIONS, SCORES, open_run
from harness.types import CheckpointSpec, Status, SuiteExample

HEAVY = ("torch", "transformers", "vllm", "pandas", "matplotlib", "pydantic", "numpy")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.forget()
    monkeypatch.setattr(EngineGroup, "make", lambda group, seed: FakeEngine(group.settings, seed))
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)


def run_arguments(given: Path, output: Path, names: Sequence[str] = NAMES) -> list[str]:
    checkpoints = [word for n in names for word in ("--checkpoint", f"{n}={given / n}")]
    return ["run", *checkpoints, "--suite", f"{given / 'own.yaml'}", "--output", f"{output}"]


def write_run(
    path: Path,
    values: dict[str, Callable[[int], float]],
    n: int = 30,
    status: Status = Status.COMPLETE,
) -> Path:
    card = suite_card(examples=n)
    examples = make_examples(n)
    rows = [SuiteExample(suite="s", example=e) for e in examples]
    with open_run(path, run_manifest(card, checkpoints=tuple(values), status=status), rows) as run:
        run.append(GENERATIONS, [make_generation(c, e.id) for c in values for e in examples])
        run.append(
            SCORES,
            [make_score(c, e.id, f(i)) for c, f in values.items() for i, e in enumerate(examples)],
        )
    return path


def write_rules(path: Path, margin: float = 0.1) -> Path:
    path.write_text(yaml.safe_dump({"rules": [{"suite": "s", "metric": "acc", "margin": margin}]}))
    return path


# Running.


@pytest.mark.usefixtures("fakes")
def test_run_writes_a_report_and_says_where(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    code, out, _ = tbpo(*run_arguments(given, tmp_path / "run"))
    assert code == 0
    assert out == f"report: {tmp_path / 'run' / 'report.html'}\n"
    assert (tmp_path / "run" / "report.html").is_file()
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert all(name in report for name in NAMES)


@pytest.mark.usefixtures("fakes")
def test_options_override_the_config_file(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    config = tmp_path / "run.yaml"
    checkpoints = [{"name": n, "source": str(given / n)} for n in NAMES[:2]]
    values = {"checkpoints": checkpoints, "suites": [str(given / "own.yaml")], "seed": 3}
    config.write_text(yaml.safe_dump(values | {"output": str(tmp_path / "a"), "limit": 5}))
    assert tbpo("run", "--config", config, "--seed", "0", "--limit", "2")[0] == 0
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["suites"][0]["examples"] == 2


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("engine: transformers", {}, {"name": "transformers"}),
        ("engine: vllm\ndeterministic: true", {}, {"name": "vllm", "deterministic": True}),
        ("engine: {chunk: 9}", {"name": "vllm"}, {"chunk": 9, "name": "vllm"}),
        ("engine: vllm", {"name": "transformers"}, {"name": "transformers"}),
        ("engine:\nendpoint:", {}, {}),
    ],
)
def test_engine_in_a_config_file_is_a_name_or_settings(
    tmp_path: Path, text: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"checkpoints: [{{name: a, source: b}}]\nsuites: [hh]\noutput: o\n{text}\n")
    config = build_config(file, {"engine": given, "endpoint": {}})
    assert (config.engine, config.endpoint) == (expected, {})


@pytest.mark.parametrize("where", ["max_model_len: 2048", "engine: {max_model_len: 2048}"])
@pytest.mark.parametrize("option", [{"max_model_len": 4096}, {"engine": {"max_model_len": 4096}}])
def test_context_as_an_option_overrides_the_files_in_either_form(
    tmp_path: Path, where: str, option: dict[str, Any]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"checkpoints: [{{name: a, source: b}}]\nsuites: [hh]\noutput: o\n{where}\n")
    config = build_config(file, {"engine": {}, "endpoint": {}} | option)
    found = {config.max_model_len, config.engine.get("max_model_len")} - {None}
    assert found == {4096}


# What is refused.


def test_unknown_suite(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    words = run_arguments(given, tmp_path / "run")
    refused(tbpo(*words, "--suite", "helpfull"), "unknown suite 'helpfull'")
    refused(tbpo("suites", "hhh"), "unknown suite 'hhh'. Did you mean 'hh'? Known: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suits: [mini]\n", "run.yaml: unknown key 'suits'"),
        ("checkpoints: [{name: a, source: b, base_model: c}]\n", "'checkpoints.0.base_model'"),
        ("suites: [mini\n", "run.yaml is not valid YAML"),
        ("- mini\n", "must hold a mapping"),
        ("seed: x\n", "seed: "),
        ("engine: [vllm]\n", "run.yaml: engine: expected a mapping of settings or a name, found"),
        ("endpoint: fast\n", "run.yaml: endpoint: expected a mapping of settings, found str"),
    ],
)
def test_wrong_config_file(
    given: Path, tmp_path: Path, tbpo: Tbpo, text: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    words = [w for w in run_arguments(given, tmp_path / "run") if "checkpoints" not in text]
    refused(tbpo(*(words or ["run"]), "--config", tmp_path / "run.yaml"), message)
    refused(tbpo("run", "--config", tmp_path / "gone.yaml"), "gone.yaml cannot be read")


def test_what_is_required_is_named(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    refused(tbpo("run"), "options: 'checkpoints' is missing; 'suites' is missing; 'output' is")
    words = run_arguments(given, tmp_path / "run")
    refused(tbpo(*words[:-2]), "options: 'output' is missing")


def test_missing_checkpoint_folder(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    words = run_arguments(given, tmp_path / "run")
    refused(tbpo(*words, "--checkpoint", f"x={tmp_path / 'gone'}"), "gone does not exist")
    refused(tbpo(*words, "--checkpoint", "x=embedded:gone"), "nothing is embedded as 'gone'")
    assert not (tmp_path / "run").exists()


def test_lora_of_another_base(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    )
    halves = {"A": np.ones((2, 4), "float32"), "B": np.ones((4, 2), "float32")}
    pair = {f"base_model.model.w.lora_{half}.weight": value for half, value in halves.items()}
    save_file(pair, lora / "adapter_model.safetensors")
    words = run_arguments(given, tmp_path / "run")
    found = tbpo(*words, "--checkpoint", f"lora={lora},base={given / 'base'}")
    refused(found, "has no w.weight (1 such modules): the adapter belongs to another base")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a",\n', "own.jsonl:2: not valid JSON"),
        ('{"id": "e0", "messages": [{"role": "user", "content": "x"}]}\n', "own.jsonl:2: "),
    ],
)
def test_wrong_row(given: Path, tmp_path: Path, tbpo: Tbpo, content: str, message: str) -> None:
    suite = write_suite(tmp_path, fields={})
    file = tmp_path / "own.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0] + content)
    words = [str(suite) if w.endswith(".yaml") else w for w in run_arguments(given, tmp_path / "r")]
    refused(tbpo(*words), message)
    refused(tbpo("suites", suite), message)


def test_duplicate_example_and_empty_suite(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(tmp_path)
    file = tmp_path / "own.jsonl"
    row = file.read_text().splitlines(keepends=True)[0]
    words = [str(suite) if w.endswith(".yaml") else w for w in run_arguments(given, tmp_path / "r")]
    file.write_text(row + row)
    refused(tbpo(*words), "own.jsonl:2: example id 'e0' occurs twice")
    file.write_text("")
    refused(tbpo(*words), "own.jsonl: the suite is empty")


@pytest.mark.usefixtures("fakes")
def test_output_of_another_run(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    words = run_arguments(given, tmp_path / "run")
    assert tbpo(*words)[0] == 0
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    refused(tbpo(*words, "--seed", "1"), "belongs to another run")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    refused(tbpo(*words[:-1], given), "is not empty and holds no run")
    refused(tbpo(*words[:-1], given / "own.yaml"), "is a file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base", "expected NAME=SOURCE"),
        ("=folder", "expected NAME=SOURCE"),
        ("base=", "expected NAME=SOURCE"),
        ("x=folder,dpo", "'dpo' is not key=value"),
        ("x=folder,method=", "'method=' is not key=value"),
        ("x=folder,colour=red", "unknown key 'checkpoints.3.colour'"),
        ("x=folder,dtype=int4", "checkpoints.3.dtype: "),
        ("a b=folder", "checkpoints.3.name: "),
        ("base=folder", "checkpoint name 'base' is given twice"),
        ("reference=folder", "'reference' stands for"),
    ],
)
def test_wrong_checkpoint(given: Path, tmp_path: Path, tbpo: Tbpo, text: str, message: str) -> None:
    words = run_arguments(given, tmp_path / "run")
    refused(tbpo(*words, "--checkpoint", text), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--limit", "0"], "--limit"),
        (["run", "--sed", "1"], "--sed"),
        (
            ["run", "--engine-set", "quantization=@x"],
            "--engine-set 'quantization=@x': the value is",
        ),
        (
            ["run", "--endpoint-set", "attempts=["],
            "put quotes around it: --endpoint-set 'attempts=",
        ),
        (["run", "--engine-set", "quantization=2020-13-01"], "the value is not YAML"),
        (["comparee"], "comparee"),
        (["gate", "dpo"], "--baseline"),
        (["compare", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["gate", "dpo", "--baseline", "sft", "--run", "nowhere"], "nowhere holds no run"),
        (["train", "--objective", "dpo", "--pairs", "x", "--output", "y", "--set", "beta"], "beta"),
    ],
)
def test_wrong_words(
    tmp_path: Path,
    tbpo: Tbpo,
    monkeypatch: pytest.MonkeyPatch,
    given: Path,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] == "train":
        words += ["--base", str(given / "base")]
    refused(tbpo(*words), message)


@pytest.mark.parametrize(
    ("source", "said", "form"),
    [
        ("base", "base=/models/sft", "hf_folder"),
        ("base", "merge=false", "hf_folder"),
        ("base", "allow_unchanged=true", "hf_folder"),
        ("base", "model=m", "hf_folder"),
        ("base", "api_key_env=KEY", "hf_folder"),
        ("x.gguf", "base=/models/sft", "gguf"),
        ("x.pt", "merge=false", "policy_archive"),
        ("lora", "model=m", "peft_lora"),
        ("x.jsonl", "dtype=float32", "recorded"),
        ("x.jsonl", "chat_template=own", "recorded"),
        ("http://127.0.0.1:9/v1", "chat_template=own", "endpoint"),
        ("http://127.0.0.1:9/v1", "dtype=float32", "endpoint"),
    ],
)
def test_field_that_a_form_cannot_keep_is_refused(
    given: Path, tmp_path: Path, tbpo: Tbpo, source: str, said: str, form: str
) -> None:
    (tmp_path / "lora").mkdir()
    for name in ("x.gguf", "x.pt", "x.jsonl", "lora/adapter_config.json"):
        (tmp_path / name).touch()
    place = source if "//" in source else (given if source == "base" else tmp_path) / source
    words = run_arguments(given, tmp_path / "run")
    found = tbpo(*words, "--checkpoint", f"x={place},{said}")
    field = said.partition("=")[0]
    refused(found, f"'x': {field}= cannot be kept: the checkpoint is of the form '{form}', and")


def test_bad_record_is_named_by_file_and_line(tmp_path: Path, tbpo: Tbpo) -> None:
    run = write_run(tmp_path / "run", {"sft": float, "dpo": float}, n=3)
    file = run / "scores.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "oops\n", *lines[2:]]))
    refused(tbpo("compare", run), f"{file}:2: not a scores record")


def test_message_without_traceback_in_a_process_of_its_own(tmp_path: Path) -> None:
    words = ["run", "--checkpoint", f"x={tmp_path / 'gone'}", "--suite", "hh", "--output", "o"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tbpo: checkpoint ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# Reading.


def coin(i: int) -> float:
    return float(i % 2)


def better(i: int) -> float:
    return float(i % 2 or i % 4 == 0)


def rather_worse(i: int) -> float:
    return coin(i) * (i > 6)


@pytest.mark.parametrize(
    ("candidate", "code", "word"),
    [
        (better, 0, "PASS"),
        (lambda _: 0.0, 1, "REGRESSION"),
        (rather_worse, 3, "INCONCLUSIVE"),
        (coin, 3, "INCONCLUSIVE"),  # equal on every prompt, and too few prompts
    ],
)
def test_gate_exit_codes(
    tmp_path: Path, tbpo: Tbpo, candidate: Callable[[int], float], code: int, word: str
) -> None:
    run = write_run(tmp_path / "run", {"sft": coin, "dpo": candidate})
    words = ["gate", "dpo", "--baseline", "sft", "--run", run]
    rules = write_rules(tmp_path / "rules.yaml")
    found, out, err = tbpo(*words, "--rules", rules)
    assert (found, err) == (code, "")
    assert out.startswith(f"dpo against sft: {word}")
    found, out, _ = tbpo(*words, "--rules", rules, "--json")
    assert found == code
    assert json.loads(out)["verdict"].upper().startswith(word)


def test_gate_does_not_pass_a_run_with_gaps(tmp_path: Path, tbpo: Tbpo) -> None:
    run = write_run(tmp_path / "run", {"sft": coin, "dpo": better}, status=Status.RUNNING)
    rules = write_rules(tmp_path / "rules.yaml")
    assert tbpo("gate", "dpo", "--baseline", "sft", "--run", run, "--rules", rules)[0] == 3


def test_gate_refuses_unknown_names(tmp_path: Path, tbpo: Tbpo) -> None:
    run = write_run(tmp_path / "run", {"sft": coin, "dpo": coin})
    words = ["--run", run, "--rules", write_rules(tmp_path / "rules.yaml")]
    refused(tbpo("gate", "dqo", "--baseline", "sft", *words), "unknown checkpoint 'dqo'")
    refused(tbpo("gate", "dpo", "--baseline", "dpo", *words), "name two checkpoints")


def test_compare_prints_words_or_json(tmp_path: Path, tbpo: Tbpo) -> None:
    run = write_run(tmp_path / "run", {"sft": coin, "dpo": better})
    code, out, _ = tbpo("compare", run)
    assert code == 0
    assert "s acc" in out
    assert "0.500 [" in out
    code, out, _ = tbpo("compare", run, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    assert {r["checkpoint"] for r in found["metrics"]} == {"sft", "dpo"}
    assert json.loads((run / "comparison.json").read_text()) == found


def test_incomplete_run_is_compared_and_says_so(tmp_path: Path, tbpo: Tbpo) -> None:
    run = write_run(tmp_path / "run", {"sft": coin, "dpo": coin}, status=Status.RUNNING)
    file = run / "scores.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    code, out, _ = tbpo("compare", run)
    assert code == 0
    assert out.startswith("INCOMPLETE: ")


def test_suites_are_listed(tbpo: Tbpo) -> None:
    code, out, _ = tbpo("suites", "--json")
    assert code == 0
    counts = {row["name"]: row["examples"] for row in json.loads(out)}
    assert counts["instruction_following"] == 60
    code, out, _ = tbpo("suites")
    listed = out[: out.index("groups:")].splitlines()
    assert [line.split()[0] for line in listed] == list(counts)
    code, out, _ = tbpo("suites", "hh")
    assert "first prompt: " in out


def test_checkpoint_is_parsed() -> None:
    found = parse_checkpoint("a=/x=y,method=dpo,base=embedded:b")
    expected = {"name": "a", "source": "/x=y", "method": "dpo", "base": "embedded:b"}
    assert found == expected
    with pytest.raises(InputError):
        parse_checkpoint("a")


def test_version_and_help(tbpo: Tbpo) -> None:
    code, out, _ = tbpo("--version")
    assert (code, out) == (0, "tbpo, version 0.1.0\n")
    code, out, _ = tbpo("run", "-h")
    assert code == 0
    assert "NAME=SOURCE" in out
    keys = re.search(r"Keys: ([^.]*)\.", " ".join(out.split()))
    assert keys
    assert set(keys[1].split(", ")) == CheckpointSpec.model_fields.keys() - {"name", "source"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['tbpo', '--help']\n"
        "from harness.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Commands:" in done.stdout


# Training stability without a run.


def test_stability_of_folders(tmp_path: Path, tbpo: Tbpo) -> None:
    write_seeds(tmp_path / "dpo", "dpo")
    one = write_log(tmp_path / "sft" / "train_log.jsonl", log_rows("sft", 0))
    code, out, _ = tbpo("stability", tmp_path / "dpo", f"alone={one}")
    assert code == 0
    assert re.search(r"dpo +3 seeds to step 64, 0 of 3 diverged", out)
    assert re.search(r"alone +1 seed to step 64", out)
    assert re.search(r"alone .* 1 seed, no spread", out)
    assert "Share of steps whose" not in out
    assert "Share of steps whose" in tbpo("stability", tmp_path / "dpo", "--definitions")[1]
    values = json.loads(tbpo("stability", tmp_path / "dpo", "--json")[1])
    assert [c["checkpoint"] for c in values["checkpoints"]] == ["dpo"]


def test_stability_takes_parameters_from_a_suite(tmp_path: Path, tbpo: Tbpo) -> None:
    write_seeds(tmp_path / "dpo", "dpo")
    packaged_suite = packaged("training_stability.yaml").read_text(encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(packaged_suite.replace("window: 16", "window: 8"))
    values = json.loads(tbpo("stability", tmp_path / "dpo", "--suite", own, "--json")[1])
    assert values["parameters"]["window"] == 8


def test_stability_refuses_what_it_cannot_read(tmp_path: Path, tbpo: Tbpo) -> None:
    write_seeds(tmp_path / "dpo", "dpo")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(tbpo("stability", empty), "'empty': no training log in")
    refused(tbpo("stability", tmp_path / "dpo", tmp_path / "dpo"), "'dpo' is given twice")
    refused(tbpo("stability", f"={tmp_path}"), "expected FOLDER or NAME=FOLDER")
    refused(tbpo("stability", tmp_path / "dpo", "--suite", "hh"), "not a suite of kind 'training'")
    refused(tbpo("stability"), "Missing argument")


def test_suites_command_shows_the_training_suite(tbpo: Tbpo) -> None:
    assert "training_stability  v1  training logs" in tbpo("suites")[1]
    assert "spike_factor=2.0" in tbpo("suites", "training_stability")[1]
    rows = {row["name"]: row for row in json.loads(tbpo("suites", "--json")[1])}
    assert rows["training_stability"]["parameters"]["smoothing"] == 15
