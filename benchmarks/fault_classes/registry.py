"""What a fault class is, and the list of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fault_classes.place import Place

Trial = tuple[str, Callable[[Place], None]]
Members = Callable[[], Iterator[Trial]]


@dataclass(frozen=True)
class FaultClass:
    """Failures of one kind; the first member is the one that was seen.

    Attributes
    ----------
    section : int
        Of what the catalogue is about: 1 names and paths, 2 code from data, 3 size, 4 completeness, 5 identifiers,
        6 two at once, 7 index, disk and runs, 8 sides.
    short : int
        How many members the short form tries; 0 for slow ones.
    """

    section: int
    title: str
    members: Members = field(repr=False)
    short: int = 1


CLASSES: list[FaultClass] = []


def fault_class(section: int, title: str, short: int = 1) -> Callable[[Members], Members]:
    """Register a generator of (name, trial) as a class of the catalogue."""

    def register(members: Members) -> Members:
        CLASSES.append(FaultClass(section, title, members, short))
        return members

    return register
