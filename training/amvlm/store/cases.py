"""Cases, structures and captions: rows of the index as records, and back. Functions of an open connection."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from amvlm.errors import UserError, printable
from amvlm.paths import check_sha256
from amvlm.store.files import ImageFolder, check_image_file
from amvlm.store.records import Case, NewCase, Structure

COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1", "#d6a400", "#d6336c", "#17a2b8", "#8c6d31")
LONGEST_NAME = 200
MOST_VOXELS = 2**33
_MOST_CASES = 10**9 - 1
_CASE_ID = re.compile(r"case-\d{5,9}")
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@contextmanager
def readable_rows() -> Iterator[None]:
    """What a row of a stranger's index holds is checked; anything odd is a sentence.

    Raises
    ------
    UserError
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(
            "the index holds a row that this program did not write", remedy="Another program changed it."
        ) from error


def check_case_id(case_id: str) -> str:
    """Return an identifier of a case, or raise :class:`UserError`."""
    if not isinstance(case_id, str) or not _CASE_ID.fullmatch(case_id):
        raise UserError(f"{printable(case_id)[:60]!r} is not the identifier of a case", remedy="See: amvlm quality.")
    return case_id


def select_cases(connection: sqlite3.Connection, where: str = "1", *values: object) -> list[Case]:
    """Cases in order of their ids."""
    rows = connection.execute(f"SELECT * FROM case_ WHERE {where} ORDER BY case_id", values).fetchall()
    with readable_rows():
        return [_case(row) for row in rows]


def _case(row: sqlite3.Row) -> Case:
    shape = tuple(int(n) for n in json.loads(row["shape"]))
    affine = np.array(json.loads(row["affine"]), dtype=np.float64)
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MOST_VOXELS:
        raise ValueError("shape")
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("affine")
    return Case(
        case_id=check_case_id(row["case_id"]), group=text_of(row, "patient"), split=row["split"],
        modality=text_of(row, "modality"), source_laterality=row["source_laterality"],
        image_sha256=check_sha256(row["image_sha256"]), image_file=check_image_file(row["image_file"]),
        shape=(shape[0], shape[1], shape[2]), affine=affine,
        sides_known=bool(row["sides_known"]), planar=bool(row["planar"]),
    )  # fmt: skip


def text_of(row: sqlite3.Row, column: str) -> str:
    """A column that holds text: SQLite itself lets any column hold anything."""
    if not isinstance(row[column], str):
        raise TypeError(column)
    return str(row[column])


def number_of(row: sqlite3.Row, column: str) -> Any:
    """A column that holds a number or nothing."""
    if not isinstance(row[column], int | float | None):
        raise TypeError(column)
    return row[column]


def insert_case(connection: sqlite3.Connection, new: NewCase, groups: dict[str, str]) -> Case | None:
    """Give a case the next free id and add it; None where its image is in the study already.

    Parameters
    ----------
    connection : sqlite3.Connection
        In a transaction that may write: the id is allotted there, so that two importers never get the same one.
    new : NewCase
    groups : dict
        Patient's key → first case id of that patient in this import; filled here.
    """
    if connection.execute("SELECT 1 FROM case_ WHERE image_sha256 = ?", (new.image_sha256,)).fetchone():
        return None
    (last,) = connection.execute("SELECT max(CAST(substr(case_id, 6) AS INTEGER)) FROM case_").fetchone()
    if last is not None and last >= _MOST_CASES:
        raise UserError("the study has no number left for a further case", remedy="Make another study.")
    case_id = f"case-{(last or 0) + 1:05d}"
    case = Case(
        case_id, groups.setdefault(new.patient or case_id, case_id), new.split, new.modality, new.source_laterality,
        new.image_sha256, ImageFolder.file_of(new.image_sha256, new.image_suffix), new.shape, new.affine,
        new.sides_known, new.planar,
    )  # fmt: skip
    connection.execute(
        "INSERT INTO case_ (case_id, patient, split, modality, source_laterality, image_sha256, image_file, shape, "
        "affine, sides_known, planar) VALUES (:case_id, :patient, :split, :modality, :source_laterality, "
        ":image_sha256, :image_file, :shape, :affine, :sides_known, :planar)",
        {
            "case_id": case_id, "patient": case.group, "split": case.split, "modality": case.modality,
            "source_laterality": case.source_laterality, "image_sha256": case.image_sha256,
            "image_file": case.image_file, "shape": json.dumps(case.shape), "affine": json.dumps(case.affine.tolist()),
            "sides_known": int(case.sides_known), "planar": int(case.planar),
        },
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO caption (case_id, structure, scope, text) VALUES (?, ?, 'volume', ?)",
        [(case_id, structure, text) for structure, text in new.captions],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO reference (case_id, structure, mask_sha256) VALUES (?, ?, ?)",
        [(case_id, structure, sha256) for structure, sha256 in new.references.items()],
    )
    return case


def select_structures(connection: sqlite3.Connection) -> list[Structure]:
    """Structures in the order in which they were added."""
    rows = connection.execute("SELECT name, aliases, colour, prompts FROM structure ORDER BY rowid").fetchall()
    with readable_rows():
        return [_structure(row) for row in rows]


def _structure(row: sqlite3.Row) -> Structure:
    wordings = [tuple(str(word) for word in _list(row[name])) for name in ("aliases", "prompts")]
    colour = row["colour"] if COLOUR.fullmatch(row["colour"]) else COLOURS[0]
    return Structure(text_of(row, "name"), wordings[0], colour, wordings[1])


def _list(text: str) -> list[Any]:
    values = json.loads(text)
    if not isinstance(values, list):
        raise TypeError("expected a list")
    return values


def merge_structure(
    connection: sqlite3.Connection, name: str, aliases: Iterable[str] = (), prompts: Iterable[str] = ()
) -> None:
    """Add a structure, or add wordings to one that is there.

    Raises
    ------
    UserError
        If the name is empty, too long, or holds control characters.
    """
    name = check_structure_name(name)
    known = {structure.name: structure for structure in select_structures(connection)}
    old = known.get(name, Structure(name, colour=COLOURS[len(known) % len(COLOURS)]))
    merged = [json.dumps(list(dict.fromkeys([*a, *b]))) for a, b in ((old.aliases, aliases), (old.prompts, prompts))]
    connection.execute(
        "INSERT INTO structure (name, aliases, colour, prompts) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET aliases = excluded.aliases, prompts = excluded.prompts",
        (name, merged[0], old.colour, merged[1]),
    )


def check_structure_name(name: str) -> str:
    """A structure's name with single spaces.

    Raises
    ------
    UserError
        If it is empty, too long, or cannot be shown on one line.
    """
    name = " ".join(name.split())
    if not any(character.isalnum() for character in name):
        raise UserError("the structure has no name", remedy="Type one, for example: liver.")
    if len(name) > LONGEST_NAME:
        raise UserError(f"the structure's name has {len(name)} characters", remedy=f"Use at most {LONGEST_NAME}.")
    if printable(name) != name:
        raise UserError(
            f"the structure's name {printable(name)!r} holds characters that cannot be shown", remedy="Type it again."
        )
    return name


def select_captions(connection: sqlite3.Connection) -> dict[str, list[tuple[str | None, str]]]:
    """Case id → [(structure or None, text in the patient's sides)], volume scope."""
    grouped: dict[str, list[tuple[str | None, str]]] = {}
    with readable_rows():
        for row in connection.execute("SELECT case_id, structure, text FROM caption WHERE scope = 'volume'"):
            structure = None if row["structure"] is None else text_of(row, "structure")
            grouped.setdefault(row["case_id"], []).append((structure, text_of(row, "text")))
    return grouped


def select_references(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """(case id, structure) → mask sha256."""
    rows = connection.execute("SELECT case_id, structure, mask_sha256 FROM reference").fetchall()
    return {(row["case_id"], row["structure"]): row["mask_sha256"] for row in rows}


def require(connection: sqlite3.Connection, case_id: str, structure: str) -> None:
    """Refuse a case or structure that the study does not have, each by its own sentence.

    Raises
    ------
    UserError
    """
    require_case(connection, case_id)
    if not connection.execute("SELECT 1 FROM structure WHERE name = ?", (comparable(structure),)).fetchone():
        names = [s.name for s in select_structures(connection)]
        raise UserError(
            f"the study has no structure {printable(structure)[:60]!r}",
            remedy=f"It has: {shortened(names)}." if names else "Add the structure to the study first.",
        )


def require_case(connection: sqlite3.Connection, case_id: str) -> None:
    """Refuse a case that the study does not have.

    Raises
    ------
    UserError
    """
    if not connection.execute("SELECT 1 FROM case_ WHERE case_id = ?", (comparable(str(case_id)),)).fetchone():
        rows = connection.execute("SELECT case_id FROM case_ ORDER BY case_id LIMIT 4").fetchall()
        raise UserError(
            f"the study has no case {printable(case_id)[:60]!r}",
            remedy=f"Its cases: {shortened([row['case_id'] for row in rows], 3)}." if rows else "It is empty.",
        )


def comparable(text: str) -> str | bytes:
    """A text that SQLite can look for; half a character, which it cannot hold, as bytes, which equal no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, with "…" where there are more."""
    return ", ".join([*(printable(name) for name in names[:most]), *(["…"] if len(names) > most else [])])


def is_index_integer(value: int) -> bool:
    """True for a number that SQLite can hold."""
    return isinstance(value, int) and abs(value) < 2**63 and math.isfinite(value)
