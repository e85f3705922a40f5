"""The catalogue of bad input in its short form: every command answers in a sentence and leaves the rest alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the catalogue counts on fork, /proc and limits")
@pytest.mark.timeout(600)
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the source tree")
def test_every_class_of_bad_input_holds(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "faults.py"), "--short", "--json", str(tmp_path / "table.json")],
        capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    failures = [line for line in done.stdout.splitlines() if line.startswith("          ")]
    assert not failures, "\n".join(failures)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "table.json").read_text())["classes"] >= 60
