"""The catalogue of ``benchmarks/faults.py``: every module holds the fault classes of one topic."""

import importlib
import pkgutil

from fault_classes.registry import CLASSES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
ALL = sorted(CLASSES, key=lambda c: c.section)
"""Every fault class, in the order of the sections."""
