"""The catalogue of ``benchmarks/faults.py``: every module holds the fault classes of one topic."""

from fault_classes import code, completeness, disk, fuzz, identity, indexes, models, names, runs, sizes
from fault_classes.registry import CLASSES

assert all((names, indexes, code, models, sizes, completeness, identity, disk, runs, fuzz))
ALL = sorted(CLASSES, key=lambda c: c.section)
