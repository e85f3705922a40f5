"""The catalogue of ``benchmarks/faults.py``: every module holds the fault classes of one topic."""

from fault_classes import indexes, names
from fault_classes.registry import CLASSES

assert all((names, indexes))
ALL = sorted(CLASSES, key=lambda c: c.section)
