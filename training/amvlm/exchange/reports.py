"""Reports that come after the scans: one typed for a case, or a table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amvlm.errors import UserError, printable
from amvlm.exchange.matching import stem
from amvlm.exchange.tables import check_caption, read_captions
from amvlm.store import LabelStore
from amvlm.text import to_patient_sides

Laterality = Literal["patient", "image"]


@dataclass(frozen=True)
class ReportsRead:
    """What came of a table: case id → text, rows that name no case, and rows that name several."""

    set: Mapping[str, str]
    unknown: tuple[str, ...]
    doubtful: tuple[str, ...]


def checked_report(text: str, laterality: Laterality = "patient") -> str:
    """A report as the study keeps it: one line, in the patient's sides.

    Raises
    ------
    UserError
        If it is empty, too long, or holds characters that cannot be shown.
    """
    words = " ".join(text.split())
    if not any(character.isalnum() for character in words):
        raise UserError("the report is empty", remedy="Type its words, or remove it with --remove.")
    check_caption("the report", words, None)
    return to_patient_sides(words, laterality)


def import_reports(
    store: LabelStore,
    table: Path,
    names: Mapping[str, str],
    structure: str | None = None,
    laterality: Laterality = "patient",
) -> ReportsRead:
    """Set the reports of cases that are in the study, from a table with the columns Image and Description.

    Parameters
    ----------
    names : mapping
        Case id → original file name; a row names a case by its id, its file's name or that name's stem.

    Raises
    ------
    UserError
        If the table cannot be read, a case has two texts, or no row names a case.
    """
    known: dict[str, set[str]] = {}
    for case in store.cases():
        name = names.get(case.case_id, "")
        for key in {case.case_id, name.lower(), stem(Path(name)) if name else ""} - {""}:
            known.setdefault(key, set()).add(case.case_id)
    found: dict[str, str] = {}
    unknown: list[str] = []
    doubtful: list[str] = []
    for key, text in read_captions(table):
        cases = known.get(key.lower()) or known.get(stem(Path(key)), set())
        if len(cases) != 1:
            (doubtful if cases else unknown).append(key)
            continue
        (case_id,) = cases
        words = checked_report(text, laterality)
        if found.get(case_id, words) != words:
            raise UserError(
                f"{case_id} has two reports in the table", file=table, remedy="Keep one row for each image."
            )
        found[case_id] = words
    if not found:
        raise UserError(
            f"no row of the table names a case of this study ({_examples(unknown or doubtful)})", file=table,
            remedy="Put case ids, or the scans' file names, into the column Image.",
        )  # fmt: skip
    store.set_captions({case_id: [words] for case_id, words in found.items()}, structure)
    return ReportsRead(found, tuple(unknown), tuple(doubtful))


def _examples(keys: list[str]) -> str:
    shown = ", ".join(printable(key)[:40] for key in keys[:3])
    return f"it has {shown}{', …' if len(keys) > 3 else ''}" if keys else "it has no rows"
