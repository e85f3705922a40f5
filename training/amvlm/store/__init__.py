"""The label store: the contract between viewer and trainer."""

from amvlm.store.queue import DEFAULT_ORDER, Order, queue, shuffled
from amvlm.store.records import Case, Mark, NewCase, Quality, Revision, Snapshot, Source, State, Structure
from amvlm.store.store import LabelStore
from amvlm.store.verify import Finding, clean, verify

__all__ = [
    "DEFAULT_ORDER",
    "Case",
    "Finding",
    "LabelStore",
    "Mark",
    "NewCase",
    "Order",
    "Quality",
    "Revision",
    "Snapshot",
    "Source",
    "State",
    "Structure",
    "clean",
    "queue",
    "shuffled",
    "verify",
]
