"""What the engine's process and its subprocesses find when they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engines import environment

SITE = Path(environment.__file__).with_name("site")


def python(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | variables,
    )
    return done.stdout.strip()


def test_hidden_modules_are_not_found_in_a_subprocess() -> None:
    code = "import importlib.util as u; print(u.find_spec('colorsys'), bool(u.find_spec('json')))"
    assert python(code).startswith("ModuleSpec")
    found = python(code, PYTHONPATH=str(SITE), TBPO_HIDDEN_MODULES="colorsys,chunk")
    assert found == "None True"


def test_the_environments_own_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['SEEN'] = 'yes'\n")
    paths = os.pathsep.join([str(SITE), str(tmp_path)])
    code = "import os; print(os.environ.get('SEEN'))"
    assert python(code, PYTHONPATH=paths, TBPO_HIDDEN_MODULES="colorsys") == "yes"


def test_mismatched_builds_are_hidden_here_and_in_subprocesses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"torch": "2.13.0+cpu", "colorsys": "1.0", "chunk": "1.0+cpu"}
    monkeypatch.setattr(environment.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(environment, "MISMATCHED", ("colorsys", "chunk"))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("TBPO_HIDDEN_MODULES", "")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    try:
        assert environment.hide_mismatched_builds() == ["colorsys"]
        assert sys.modules["colorsys"] is None
        assert os.environ["TBPO_HIDDEN_MODULES"] == "colorsys"
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(SITE), "elsewhere"]
    finally:
        sys.modules.pop("colorsys", None)
