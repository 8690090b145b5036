"""The benchmarks' stopwatches find the functions that they time: names, which no checker reads."""

from __future__ import annotations

import subprocess
import sys

from coverage_cells import PATH, needs_benchmarks

WATCHED = """
import sys
sys.path.insert(0, {folder!r})
from measuring import Stopwatch
from one_engine import time_answering, watch_run
watch_run(Stopwatch())
time_answering({{}})
"""


@needs_benchmarks
def test_every_part_of_a_run_that_a_benchmark_times_is_there() -> None:
    script = WATCHED.format(folder=str(PATH.parent))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
