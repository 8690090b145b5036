"""The package as installed: its entry points, its data, and a reading half without an engine."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from harness import plugins
from harness.engines.settings import EndpointSettings, EngineSettings
from harness.errors import InputError
from harness.suites import (
    SuiteKind,
    known_suites,
    load_suites,
    load_training_suite,
    read_spec,
    suite_kind,
)

ROOT = Path(__file__).parents[1]

PROTOCOLS = {
    "adapters": "harness.adapters:Adapter",
    "engines": "harness.engines:Engine",
    "metrics": "harness.metrics:Metric",
    "judges": "harness.judges:Judge",
    "objectives": "harness.training.objectives:Objective",
}

GIVEN: dict[str, tuple[Any, ...]] = {
    "vllm": (EngineSettings(), 0),
    "transformers": (EngineSettings(), 0),
    "openai": (EndpointSettings(),),
}
"""What engines are made with."""

ENGINE_SIDE = ("torch", "transformers", "tokenizers", "peft", "vllm", "lm_eval", "safetensors")


def declared() -> dict[str, dict[str, str]]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups: dict[str, dict[str, str]] = project["entry-points"]
    return {group.removeprefix("tbpo."): points for group, points in groups.items()}


def own_points(group: str) -> dict[str, str]:
    points = entry_points(group=f"tbpo.{group}")
    return {p.name: p.value for p in points if p.dist is not None and p.dist.name == "tbpo-harness"}


def python(code: str, *paths: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_entry_points_are_the_declared_ones() -> None:
    for group, points in declared().items():
        assert own_points(group) == points, f"{group}: install the package again"


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, points in declared().items() for name in points]
)
def test_entry_point_leads_to_what_its_group_promises(group: str, name: str) -> None:
    protocol = EntryPoint(group, PROTOCOLS[group], "").load()
    members = {member for member in vars(protocol) if not member.startswith("_")}
    made = plugins.load(group, name)(*GIVEN.get(name, ()))  # type: ignore[operator]
    assert members
    assert {member for member in members if not hasattr(made, member)} == set()


def test_suites_name_only_what_is_installed() -> None:
    for path in known_suites().values():
        if suite_kind(path) == SuiteKind.PROMPTS:
            spec = read_spec(path)
            assert set(spec.metrics) <= set(plugins.names("metrics")), path.name
            assert set(spec.judges) <= set(plugins.names("judges")), path.name


def offer(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    made = [EntryPoint(name, value, "tbpo.metrics") for name, value in points]
    monkeypatch.setattr(plugins, "entry_points", lambda group: made)


def test_unknown_plugin_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown metric 'ruoge'. Did you mean 'rouge'\? Known: "):
        plugins.load("metrics", "ruoge")


@pytest.mark.parametrize("value", ["harness.nowhere:X", "harness.errors:Nothing"])
def test_plugin_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    offer(monkeypatch, ("mine", value))
    with pytest.raises(InputError, match=rf"metrics 'mine' \({value}\) cannot be imported"):
        plugins.load("metrics", "mine")


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("mine", "a:X"), ("mine", "b:X"))
    with pytest.raises(InputError, match=r"two packages offer metrics 'mine': a:X and b:X"):
        plugins.load("metrics", "mine")
    offer(monkeypatch, ("mine", "harness.errors:InputError"), ("mine", "harness.errors:InputError"))
    assert plugins.load("metrics", "mine") is InputError


def test_reading_half_needs_no_engine(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"for name in {ENGINE_SIDE}: sys.modules[name] = None\n"
        "import harness.cli, harness.compare, harness.gate, harness.reading, harness.report\n"
        "import harness.store, harness.stats.bootstrap, harness.stats.winrate\n"
        "print(sorted(m for m in sys.modules if m.startswith(('harness.engines', "
        "'harness.adapters', 'harness.judges', 'harness.metrics', 'harness.pipeline'))))\n"
    )
    assert python(code, cwd=tmp_path) == "[]\n"


def test_importing_the_producing_half_loads_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import harness.pipeline, harness.adapters.peft_lora, harness.canary\n"
        f"print([m for m in {ENGINE_SIDE} if m in sys.modules])\n"
    )
    assert python(code, cwd=tmp_path) == "[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked."""
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_carries_all_suites_and_only_the_package(wheel: Path) -> None:
    assert {p.name for p in wheel.iterdir() if p.suffix != ".dist-info"} == {"harness"}
    carried = {
        str(p.relative_to(wheel / "harness" / "_data" / "suites"))
        for p in (wheel / "harness" / "_data" / "suites").rglob("*")
        if p.is_file()
    }
    here = {
        str(p.relative_to(ROOT / "suites")) for p in (ROOT / "suites").rglob("*") if p.is_file()
    }
    assert carried == here


def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import harness; assert harness.__file__.startswith(sys.argv[1]), harness.__file__\n"
        "sys.argv = ['tbpo', 'suites', '--json']\n"
        "from harness.cli import main; main()\n"
    )
    rows = json.loads(python(code, wheel, cwd=tmp_path))
    found = {row["name"]: row["content_sha256"] for row in rows}
    assert found.keys() == known_suites().keys()
    here = [*load_suites(["mini"]), load_training_suite(["mini"])]
    assert {s.spec.name: s.content_sha256 for s in here if s is not None}.items() <= found.items()
