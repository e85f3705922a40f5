"""Some hundred hostile files, the same every time; the long form is ``benchmarks/reader_fuzz.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_hostile_files_are_read_or_refused_in_a_sentence() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "reader_fuzz.py"
    spec = importlib.util.spec_from_file_location("reader_fuzz", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    counts, faults = module.run(1, 12, [])
    assert not faults
    assert sum(counts.values(), start=type(counts["PNG"])())["read"] > 50
