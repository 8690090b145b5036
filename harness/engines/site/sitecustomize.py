"""Python runs this at start-up in the engine's own subprocesses, where PYTHONPATH leads here.

It hides the modules that the parent process found unusable, then runs whatever ``sitecustomize``
the environment has of its own.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

for _name in os.environ.get("TBPO_HIDDEN_MODULES", "").split(","):
    if _name:
        sys.modules.setdefault(_name, None)  # type: ignore[arg-type]

_here = os.path.dirname(os.path.abspath(__file__))
_spec = PathFinder.find_spec(
    "sitecustomize", [p for p in sys.path if os.path.abspath(p or ".") != _here]
)
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(module_from_spec(_spec))
