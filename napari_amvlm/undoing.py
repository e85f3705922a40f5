"""Which judgement *Undo* takes back. No window is needed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SETTLED = ("accepted", "absent", "skipped", "rejected")
"""States that a judgement leaves."""


@dataclass(frozen=True)
class Judgement:
    """What a person decided about a structure in a case."""

    case_id: str
    structure: str
    state: Literal["accepted", "absent", "skipped", "rejected"]

    @property
    def pair(self) -> tuple[str, str]:
        """Case and structure."""
        return self.case_id, self.structure


def to_undo(judgements: Sequence[Judgement], case_id: str, structure: str, state: str) -> Judgement | None:
    """The judgement to take back: that of the case on screen where it has one, else the last one, wherever it was.

    Parameters
    ----------
    judgements : sequence of Judgement
        Of this study since it was opened, the newest last.
    case_id, structure : str
        On screen; "" where there is none.
    state : str
        Of that case and structure.
    """
    if case_id and structure and state in SETTLED:
        return Judgement(case_id, structure, state)  # type: ignore[arg-type]  # one of SETTLED
    return judgements[-1] if judgements else None
