"""The label store: the contract between viewer and trainer."""

from amvlm.store.queue import queue
from amvlm.store.records import Case, Mark, Quality, Revision, Snapshot, Source, State, Structure
from amvlm.store.store import LabelStore
from amvlm.store.verify import Finding, verify

__all__ = [
    "Case",
    "Finding",
    "LabelStore",
    "Mark",
    "Quality",
    "Revision",
    "Snapshot",
    "Source",
    "State",
    "Structure",
    "queue",
    "verify",
]
