"""The catalogue of ``benchmarks/faults.py``: every module holds the fault classes of one topic."""

from fault_classes import (
    bombs,
    code,
    disk,
    files,
    folders,
    fuzz,
    identity,
    index_errors,
    indexes,
    models,
    names,
    runs,
    series,
    sides,
    sizes,
    together,
    voxels,
)  # fmt: skip
from fault_classes.registry import CLASSES

assert all((names, files, indexes, code, models, sizes, bombs, series, folders, voxels, identity, together,
    index_errors,
            disk, runs, fuzz, sides))  # fmt: skip
ALL = sorted(CLASSES, key=lambda c: c.section)
"""Every fault class, in the order of the sections."""
