"""Changes to what a study calls things: names, wordings and colours of structures, and the words of its reports.

Functions of an open connection, within a transaction that writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from amvlm.errors import UserError, printable
from amvlm.store.cases import COLOUR, check_structure_name, require_case, select_structures, shortened
from amvlm.store.records import Structure

_REFERRING = ("caption", "revision", "state", "draft_slice", "reference", "quality")


def structure_called(connection: sqlite3.Connection, name: str) -> Structure:
    """A structure by its name.

    Raises
    ------
    UserError
        If the study has none.
    """
    known = select_structures(connection)
    found = next((structure for structure in known if structure.name == " ".join(name.split())), None)
    if found is None:
        raise UserError(
            f"the study has no structure {printable(name)[:60]!r}",
            remedy=f"It has: {shortened([s.name for s in known])}." if known else "Add one: amvlm structure add.",
        )
    return found


def rename_structure(connection: sqlite3.Connection, name: str, new: str) -> None:
    """Give a structure another name; its labels go along, and the old name stays an alias.

    Raises
    ------
    UserError
        If there is no such structure, or another one has the new name or alias.
    """
    old, new = structure_called(connection, name), check_structure_name(new)
    if new == old.name:
        return
    _require_free(connection, old.name, [new])
    connection.execute("PRAGMA defer_foreign_keys = ON")
    aliases = dict.fromkeys([*(alias for alias in old.aliases if alias != new), old.name])
    connection.execute(
        "UPDATE structure SET name = ?, aliases = ? WHERE name = ?", (new, json.dumps(list(aliases)), old.name)
    )
    with _revisions_open(connection):
        for table in _REFERRING:
            connection.execute(f"UPDATE {table} SET structure = ? WHERE structure = ?", (new, old.name))


@contextmanager
def _revisions_open(connection: sqlite3.Connection) -> Iterator[None]:
    """Lift the guard that no revision is changed: the name of its structure is no part of what was judged.

    All of it happens in the one transaction, so that no other connection ever sees the guard lifted.
    """
    (guard,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'revision_is_immutable'").fetchone()
    connection.execute("DROP TRIGGER revision_is_immutable")
    yield
    connection.execute(guard)


def set_aliases(connection: sqlite3.Connection, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Add and remove further names of a structure.

    Raises
    ------
    UserError
        If one to add belongs to another structure, or one to remove is not there.
    """
    old = structure_called(connection, name)
    added, removed = [check_structure_name(alias) for alias in add], [" ".join(alias.split()) for alias in remove]
    _require_free(connection, old.name, added)
    missing = [alias for alias in removed if alias not in old.aliases]
    if missing:
        raise UserError(
            f"{old.name!r} has no alias {printable(missing[0])[:60]!r}", remedy=f"It has: {shortened(old.aliases)}."
        )
    kept = dict.fromkeys(alias for alias in [*old.aliases, *added] if alias not in removed and alias != old.name)
    connection.execute("UPDATE structure SET aliases = ? WHERE name = ?", (json.dumps(list(kept)), old.name))


def set_colour(connection: sqlite3.Connection, name: str, colour: str) -> None:
    """Change a structure's colour, "#rrggbb".

    Raises
    ------
    UserError
        If it is no such colour.
    """
    if COLOUR.fullmatch(colour) is None:
        raise UserError(f"{printable(colour)[:20]!r} is no colour", remedy="Write it as #rrggbb, for example #e6550d.")
    old = structure_called(connection, name)
    connection.execute("UPDATE structure SET colour = ? WHERE name = ?", (colour, old.name))


def set_captions(connection: sqlite3.Connection, case_id: str, structure: str | None, texts: Sequence[str]) -> None:
    """Replace what a case's report says, of one structure or (None) of the whole scan; no texts remove it.

    Parameters
    ----------
    texts : sequence of str
        In the patient's sides.

    Raises
    ------
    UserError
        If the study has no such case or structure.
    """
    require_case(connection, case_id)
    name = None if structure is None else structure_called(connection, structure).name
    connection.execute(
        "DELETE FROM caption WHERE case_id = ? AND structure IS ? AND scope = 'volume'", (case_id, name)
    )
    connection.executemany(
        "INSERT INTO caption (case_id, structure, scope, text) VALUES (?, ?, 'volume', ?)",
        [(case_id, name, text) for text in texts],
    )


def _require_free(connection: sqlite3.Connection, own: str, names: Iterable[str]) -> None:
    """Two structures may not answer to one name."""
    taken = {
        word.casefold(): other.name
        for other in select_structures(connection) if other.name != own
        for word in (other.name, *other.aliases)
    }  # fmt: skip
    for name in names:
        if name.casefold() in taken:
            raise UserError(
                f"{name!r} already names the structure {taken[name.casefold()]!r}", remedy="Choose another name."
            )
