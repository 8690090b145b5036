"""Write requirements/cpu.lock: the exact versions installed in this environment.

Run it in an environment where ``pip install -e '.[cpu,dev]'`` was done. The lock holds
everything the project needs and nothing else; it is installed with ``pip install --no-deps``, so
what it leaves out stays out.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = "tbpo-harness"
EXTRAS = ("cpu", "dev")
LEFT_OUT = {
    "torchvision": "its PyPI build does not fit a CPU torch and breaks 'import transformers'",
    "torchaudio": "as torchvision",
    "torchcodec": "as torchvision",
    "triton": "needs a GPU, 1 GB",
}


def canonical(name: str) -> str:
    """Return a distribution's name as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: tuple[str, ...], found: dict[str, str]) -> None:
    """Add to ``found`` the installed versions of all that ``name`` with ``extras`` needs."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(
            marker.evaluate({"extra": extra}) for extra in (*extras, "")
        ):
            continue
        child = canonical(requirement.name)
        if child in LEFT_OUT:
            continue
        wanted = tuple(sorted(requirement.extras))
        if child in found and not wanted:
            continue
        try:
            found[child] = metadata.version(child)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{child} (needed by {name}) is not installed") from None
        needed(child, wanted, found)


def main() -> None:
    """Write the lock beside this file."""
    found: dict[str, str] = {}
    needed(ROOT, EXTRAS, found)
    lines = ["# Written by requirements/lock.py; install with: pip install --no-deps -r cpu.lock"]
    lines += [f"# left out: {name} ({why})" for name, why in LEFT_OUT.items()]
    lines += [f"{name}=={version}" for name, version in sorted(found.items())]
    Path(__file__).with_name("cpu.lock").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(found)} packages locked")


if __name__ == "__main__":
    main()
