"""Judgements: revisions that never change, and the state that follows from them. Functions of an open connection."""

from __future__ import annotations

import datetime
import getpass
import hashlib
import sqlite3
from dataclasses import dataclass
from typing import Any

from amvlm.errors import UserError
from amvlm.paths import check_sha256
from amvlm.store.cases import is_index_integer, number_of, readable_rows, require, text_of
from amvlm.store.records import Kind, Mark, Revision, Source, State

_COLUMNS = (
    "revision_id", "case_id", "structure", "kind", "mask_sha256", "prompt", "source", "model_fingerprint", "parent",
    "edited_voxels", "author", "time",
)  # fmt: skip
_REVISION = ", ".join(f"r.{column} AS {column}" for column in _COLUMNS)


@dataclass(frozen=True)
class Judgement:
    """A revision before it has a number, parent and time."""

    case_id: str
    structure: str
    kind: Kind
    mask_sha256: str | None = None
    prompt: str = ""
    source: Source = "by hand"
    model_fingerprint: str = ""
    edited_voxels: int = 0
    author: str = ""


_NUMBERS = ("revision_id", "parent", "edited_voxels")


def _revision(row: sqlite3.Row) -> Revision:
    with readable_rows():
        values: dict[str, Any] = {
            c: number_of(row, c) if c in _NUMBERS else text_of(row, c) for c in _COLUMNS if c != "mask_sha256"
        }
        sha256 = row["mask_sha256"]
        return Revision(**values, mask_sha256=None if sha256 is None else check_sha256(sha256))


def require_fit(connection: sqlite3.Connection, judgement: Judgement) -> None:
    """Refuse a judgement that the index would not take.

    Raises
    ------
    UserError
        If the study has no such case or structure, or a text is no text.
    """
    require(connection, judgement.case_id, judgement.structure)
    for text in (judgement.prompt, judgement.model_fingerprint, judgement.author):
        connection.execute("SELECT ?", (text,))


def insert_judgement(connection: sqlite3.Connection, judgement: Judgement, parent: int | None) -> Revision:
    """Write a revision and the state that follows; a draft of the pair ends.

    Raises
    ------
    UserError
        If the study has no such case or structure.
    """
    require(connection, judgement.case_id, judgement.structure)
    cursor = connection.execute(
        "INSERT INTO revision (case_id, structure, kind, mask_sha256, prompt, source, model_fingerprint, parent, "
        "edited_voxels, author, time) VALUES (:case_id, :structure, :kind, :mask_sha256, :prompt, :source, "
        ":model_fingerprint, :parent, :edited_voxels, :author, :time)",
        {**vars(judgement), "parent": parent, "time": now()},
    )
    pair = (judgement.case_id, judgement.structure)
    withdrawn = judgement.kind == "withdrawn"
    connection.execute(
        "INSERT OR REPLACE INTO state (case_id, structure, state, revision_id) VALUES (?, ?, ?, ?)",
        (*pair, "unknown" if withdrawn else judgement.kind, None if withdrawn else cursor.lastrowid),
    )
    connection.execute("DELETE FROM draft_slice WHERE case_id = ? AND structure = ?", pair)
    revision = select_revision(connection, int(cursor.lastrowid or 0))
    if revision is None:
        raise UserError("the index did not keep the label", remedy="Another program changed it.")
    return revision


def select_revision(connection: sqlite3.Connection, revision_id: int) -> Revision | None:
    """A revision by its number."""
    if not is_index_integer(revision_id):
        return None
    row = connection.execute(f"SELECT {_REVISION} FROM revision r WHERE revision_id = ?", (revision_id,)).fetchone()
    return _revision(row) if row else None


def select_history(connection: sqlite3.Connection, case_id: str, structure: str) -> list[Revision]:
    """Every revision of a pair, oldest first."""
    rows = connection.execute(
        f"SELECT {_REVISION} FROM revision r WHERE case_id = ? AND structure = ? ORDER BY revision_id",
        (case_id, structure),
    ).fetchall()
    return [_revision(row) for row in rows]


def select_current(connection: sqlite3.Connection, case_id: str, structure: str) -> Revision | None:
    """The revision that counts now; None where the structure is unknown."""
    row = connection.execute(
        f"SELECT {_REVISION} FROM state s JOIN revision r ON r.revision_id = s.revision_id "
        "WHERE s.case_id = ? AND s.structure = ?",
        (case_id, structure),
    ).fetchone()
    return _revision(row) if row else None


def select_counting(connection: sqlite3.Connection) -> list[Revision]:
    """Every accepted or absent revision that counts now, by case and structure."""
    rows = connection.execute(
        f"SELECT {_REVISION} FROM state s JOIN revision r ON r.revision_id = s.revision_id "
        "ORDER BY r.case_id, r.structure"
    ).fetchall()
    return [_revision(row) for row in rows]


def set_mark(connection: sqlite3.Connection, case_id: str, structure: str, state: Mark) -> None:
    """Set aside a pair without a label.

    Raises
    ------
    UserError
        If it is labelled, or the study has no such case or structure.
    """
    require(connection, case_id, structure)
    if select_current(connection, case_id, structure) is not None:
        raise UserError(f"{structure} is already labelled in {case_id}", remedy="Undo the label first.")
    connection.execute(
        "INSERT OR REPLACE INTO state (case_id, structure, state, revision_id) VALUES (?, ?, ?, NULL)",
        (case_id, structure, state),
    )


def select_states(connection: sqlite3.Connection) -> dict[tuple[str, str], State]:
    """(case id, structure) → state; a pair that is not there is unknown."""
    rows = connection.execute("SELECT case_id, structure, state FROM state").fetchall()
    return {(row["case_id"], row["structure"]): row["state"] for row in rows}


def author_of(store_id: str) -> str:
    """A mark that tells this user's revisions from others' in one study, and says nothing of who it is."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry in the password database
        return "unknown"
    return hashlib.sha256(f"{store_id} {user}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
