"""State dicts of torch.save: put into their base exactly, or refused by name; never run."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import edit_json, read_tensors, save_llama, save_shards, write_tensors

from harness.adapters import policy_archive, prepare, recognise
from harness.adapters.identity import weights_sha256
from harness.errors import CheckpointError
from harness.files import cache_root
from harness.types import CheckpointSpec, Loadable

MODEL = "model.safetensors"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> tuple[Path, Path]:
    """A base, and the model that was trained from it."""
    folder = tmp_path_factory.mktemp("models")
    trained = save_llama(folder / "trained", tokenizer_folder, seed=1)
    return save_llama(folder / "base", tokenizer_folder), trained


@pytest.fixture(scope="module")
def base(models: tuple[Path, Path]) -> Path:
    return models[0]


@pytest.fixture(scope="module")
def trained(models: tuple[Path, Path]) -> Path:
    return models[1]


@pytest.fixture
def state(trained: Path) -> dict[str, Any]:
    """What ``state_dict()`` of the trained model returns: the tied head is in it."""
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(trained).state_dict())


def save(value: Any, file: Path, **options: Any) -> Path:
    import torch

    torch.save(value, file, **options)
    return file


def prepared(source: Path, **fields: Any) -> Loadable:
    given = {name: str(value) for name, value in fields.items()}
    return prepare(CheckpointSpec(name="x", source=str(source), **given))


def refuse(source: Path, match: str, **fields: Any) -> None:
    with pytest.raises(CheckpointError, match=match):
        prepared(source, **fields)
    folder = cache_root() / "converted"
    assert not folder.is_dir() or list(folder.iterdir()) == []


def same_weights(found: Loadable, folder: Path) -> bool:
    import torch

    ours, theirs = read_tensors(Path(found.folder) / MODEL), read_tensors(folder / MODEL)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_archive_of_a_trainer_is_put_into_its_base(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path
) -> None:
    content = {"step_idx": 1200, "state": state, "metrics": {"loss": 0.5}}
    found = prepared(save(content, tmp_path / "policy.pt"), base=base)
    assert same_weights(found, trained)
    assert found.weights_sha256 == weights_sha256(trained)
    assert found.notes == ("state dict policy.pt at step 1200 put into base",)
    assert found.base is None
    assert (Path(found.folder) / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.BIN"])
def test_bare_state_dict_is_recognised_by_its_name(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path, name: str
) -> None:
    file = save(state, tmp_path / name)
    assert recognise(str(file)) == "policy_archive"
    assert same_weights(prepared(file, base=base), trained)


def test_folder_with_a_policy_is_taken(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "LATEST").mkdir()
    save({"state": state}, tmp_path / "LATEST" / "policy.pt")
    assert same_weights(prepared(tmp_path / "LATEST", base=base), trained)


def test_file_of_the_form_before_zip_is_read(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path
) -> None:
    file = save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_weights(prepared(file, base=base), trained)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}".replace(
            ".layers.", ".layers._fsdp_wrapped_module."
        ),
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp._orig_mod."),
    ],
)
def test_wrappers_are_taken_off_wherever_they_are(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path, wrap: Any
) -> None:
    file = save({wrap(name): value for name, value in state.items()}, tmp_path / "x.pt")
    assert same_weights(prepared(file, base=base), trained)


def test_names_that_only_contain_a_wrappers_name_stay() -> None:
    parts = ["submodule", "module", "modules"]
    assert [p for p in parts if p not in policy_archive.WRAPPERS] == ["submodule", "modules"]


def test_one_tensor_under_two_names_is_refused(
    state: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    file = save(state | {f"module.{NORM}": state[NORM]}, tmp_path / "x.pt")
    refuse(file, rf"holds tensor '{NORM}' twice, once as 'module\.{NORM}'", base=base)


def test_baseline_head_is_dropped_and_said(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path
) -> None:
    head = {"module.baseline_head.0.weight": state[NORM]}
    found = prepared(save(state | head, tmp_path / "x.pt"), base=base)
    assert same_weights(found, trained)
    assert "dropped training-only tensors: baseline_head.0.weight" in found.notes


def test_buffers_of_older_versions_are_left_out(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path
) -> None:
    import torch

    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "model.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
    }
    assert same_weights(prepared(save(state | buffers, tmp_path / "x.pt"), base=base), trained)
    learned = {"model.layers.0.attention.bias": torch.ones(8)}
    file = save(state | learned, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(model\.layers\.0\.attention\.bias"):
        prepared(file, base=base)


def test_values_are_cast_to_the_bases_dtype_and_it_is_said(
    state: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(base, tmp_path / "half"))
    write_tensors({k: v.bfloat16() for k, v in read_tensors(base / MODEL).items()}, half / MODEL)
    found = prepared(save(state, tmp_path / "x.pt"), base=half)
    assert "cast from float32 to the base's bfloat16" in found.notes
    for name, value in read_tensors(Path(found.folder) / MODEL).items():
        assert value.equal(state[name].bfloat16()), name


def test_shards_of_the_base_are_kept(state: dict[str, Any], base: Path, tmp_path: Path) -> None:
    shards = save_shards(tmp_path / "shards", base)
    found = Path(prepared(save(state, tmp_path / "x.pt"), base=shards).folder)
    names = sorted(file.name for file in shards.glob("*.safetensors"))
    assert len(names) > 1
    assert sorted(file.name for file in found.glob("*.safetensors")) == names
    values = {n: v for name in names for n, v in read_tensors(found / name).items()}
    assert values.keys() == state.keys() - {HEAD}
    assert all(value.equal(state[name]) for name, value in values.items())


def test_tied_head_may_be_missing_but_not_differ(
    state: dict[str, Any], base: Path, trained: Path, tmp_path: Path
) -> None:
    with_head = Path(shutil.copytree(base, tmp_path / "with-head"))
    values = read_tensors(base / MODEL)
    write_tensors(values | {HEAD: values[EMBEDDING].clone()}, with_head / MODEL)
    without = {name: value for name, value in state.items() if name != HEAD}
    assert same_weights(prepared(save(without, tmp_path / "x.pt"), base=base), trained)
    for given in (state, without):
        found = prepared(save(given, tmp_path / "x.pt"), base=with_head)
        kept = read_tensors(Path(found.folder) / MODEL)
        assert kept[HEAD].equal(state[EMBEDDING])
    file = save(state | {HEAD: state[HEAD] + 1}, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match=rf"{HEAD} differs from {EMBEDDING}, but .* ties"):
        prepared(file, base=base)


def test_untied_head_is_needed(
    state: dict[str, Any], base: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    untied = save_llama(tmp_path / "untied", tokenizer_folder, tie_word_embeddings=False)
    found = prepared(save(state | {HEAD: state[HEAD] + 1}, tmp_path / "x.pt"), base=untied)
    assert read_tensors(Path(found.folder) / MODEL)[HEAD].equal(state[HEAD] + 1)
    without = {name: value for name, value in state.items() if name != HEAD}
    file = save(without, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(lm_head\.weight\)"):
        prepared(file, base=untied)


def test_tensors_that_do_not_fit_are_named_and_counted(
    state: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    missing = {name: value for name, value in state.items() if ".mlp." not in name}
    file = save(missing, tmp_path / "x.pt")
    refuse(file, r"6 missing \(model\.layers\.0\.mlp\.down_proj\.weight, .*, \.\.\.\)", base=base)
    file = save(state | {"extra.weight": state[NORM]}, tmp_path / "x.pt")
    refuse(file, r"1 unexpected \(extra\.weight\)\. Give the base", base=base)
    file = save(state | {NORM: state[NORM][:-1].clone()}, tmp_path / "x.pt")
    refuse(file, r"1 of another shape \(model\.norm\.weight \(31,\) for \(32,\)\)", base=base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    state: dict[str, Any], base: Path, tmp_path: Path, value: float
) -> None:
    state[NORM] = state[NORM].clone()
    state[NORM][3] = value
    refuse(save(state, tmp_path / "x.pt"), f"tensor '{NORM}' holds NaN or infinity", base=base)


def test_overflow_of_the_bases_dtype_is_refused(
    state: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(base, tmp_path / "half"))
    write_tensors({k: v.half() for k, v in read_tensors(base / MODEL).items()}, half / MODEL)
    file = save(state | {NORM: state[NORM] * 1e6}, tmp_path / "x.pt")
    refuse(file, rf"tensor '{NORM}' holds NaN or infinity as torch\.float16", base=half)


def test_quantised_base_is_refused(state: dict[str, Any], base: Path, tmp_path: Path) -> None:
    import torch

    eight = Path(shutil.copytree(base, tmp_path / "eight"))
    values = read_tensors(base / MODEL)
    name = "model.layers.0.mlp.up_proj.weight"
    write_tensors(values | {name: values[name].to(torch.float8_e4m3fn)}, eight / MODEL)
    refuse(save(state, tmp_path / "x.pt"), r"cannot be put in place of quantised", base=eight)


class Trap:
    """Runs a command where it is unpickled without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_code_in_a_file_is_not_run(
    state: dict[str, Any], base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    witness = tmp_path / "ran"
    file = save({"state": state, "metrics": Trap(witness)}, tmp_path / "policy.pt", **options)
    refuse(file, r"reading it would call posix\.system. Nothing of it was run", base=base)
    assert not witness.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(witness)))
    refuse(tmp_path / "plain.pt", r"plain\.pt (holds more than tensors|is cut off)", base=base)
    assert not witness.exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, 20000, -1, -30])
def test_truncated_file_is_refused(
    state: dict[str, Any], base: Path, tmp_path: Path, kept: int
) -> None:
    file = save(state, tmp_path / "policy.pt")
    file.write_bytes(file.read_bytes()[:kept])
    refuse(file, r"policy\.pt is cut off, damaged, or not written by torch\.save", base=base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it is empty, or no dict"),
        ({}, "it is empty, or no dict"),
        ({"state": {}}, "it is empty, or no dict"),
        ({"step_idx": 3, "metrics": {}}, "'step_idx' is no tensor"),
        ({"state": {"w": 1.0}}, "'w' is no tensor"),
    ],
)
def test_file_without_a_state_dict_is_refused(
    base: Path, tmp_path: Path, content: Any, message: str
) -> None:
    refuse(save(content, tmp_path / "x.pt"), f"holds no state dict .{message}", base=base)


def test_base_is_needed_and_must_be_a_model(
    state: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    file = save(state, tmp_path / "x.pt")
    refuse(file, r"holds weights alone\..*x=.*x\.pt,base=FOLDER")
    refuse(file, r"base model '.*gone' is not a folder", base=tmp_path / "gone")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}")
    refuse(file, r"the base .*lora is an adapter itself", base=lora)
    refuse(tmp_path / "gone.pt", "does not exist", base=base)
    refuse(tmp_path / "gone.pt", "does not exist", base=base, adapter="policy_archive")


def test_second_time_nothing_is_written_and_a_change_is_seen(
    state: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(base, tmp_path / "base"))
    file = save({"step_idx": 1, "state": state}, tmp_path / "policy.pt")
    first = prepared(file, base=own)
    monkeypatch.setattr(policy_archive, "_write", None)
    assert prepared(file, base=own) == first
    monkeypatch.undo()
    monkeypatch.setenv("TBPO_CACHE", str(tmp_path / "cache"))
    edit_json(own / "config.json", rope_theta=500.0)
    second = prepared(file, base=own)
    assert second.folder != first.folder
    save({"state": state | {NORM: state[NORM] + 1}}, file)
    assert prepared(file, base=own).weights_sha256 != second.weights_sha256


def test_interrupted_conversion_leaves_no_folder(
    state: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy_archive, "_write", interrupted)
    file = save(state, tmp_path / "policy.pt")
    with pytest.raises(KeyboardInterrupt):
        prepared(file, base=base)
    assert list((cache_root() / "converted").iterdir()) == []
