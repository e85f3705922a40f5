"""The index's tables and the migrations that lead to them. Rollback journal: people copy the file alone."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Mapping

from amvlm.errors import UserError
from amvlm.text import swap_sides

SCHEMA_VERSION = 3

QUALITY = """
CREATE TABLE quality (
    case_id TEXT NOT NULL REFERENCES case_ (case_id),
    structure TEXT NOT NULL REFERENCES structure (name),
    model_fingerprint TEXT NOT NULL,
    expected_dice REAL,
    agreement REAL NOT NULL,
    soft_dice REAL NOT NULL,
    confidence REAL NOT NULL,
    entropy REAL NOT NULL,
    foreground REAL NOT NULL,
    components INTEGER NOT NULL,
    flags TEXT NOT NULL,
    distance REAL,
    time TEXT NOT NULL,
    PRIMARY KEY (case_id, structure)
);
"""

TABLES = (
    """
CREATE TABLE meta (schema_version INTEGER NOT NULL, store_id TEXT NOT NULL);
CREATE TABLE case_ (
    case_id TEXT PRIMARY KEY,
    patient TEXT NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'val', 'test')),
    modality TEXT NOT NULL,
    source_laterality TEXT NOT NULL CHECK (source_laterality IN ('patient', 'image')),
    image_sha256 TEXT NOT NULL UNIQUE,
    image_file TEXT NOT NULL UNIQUE,
    shape TEXT NOT NULL,
    affine TEXT NOT NULL,
    sides_known INTEGER NOT NULL,
    planar INTEGER NOT NULL
);
CREATE TABLE structure (
    name TEXT PRIMARY KEY,
    aliases TEXT NOT NULL,
    colour TEXT NOT NULL,
    prompts TEXT NOT NULL
);
CREATE TABLE caption (
    case_id TEXT NOT NULL REFERENCES case_ (case_id),
    structure TEXT REFERENCES structure (name),
    scope TEXT NOT NULL CHECK (scope IN ('volume', 'slice')),
    slice_index INTEGER,
    text TEXT NOT NULL
);
CREATE INDEX caption_by_case ON caption (case_id);
CREATE TABLE revision (
    revision_id INTEGER PRIMARY KEY AUTOINCREMENT,
    case_id TEXT NOT NULL REFERENCES case_ (case_id),
    structure TEXT NOT NULL REFERENCES structure (name),
    kind TEXT NOT NULL CHECK (kind IN ('accepted', 'absent', 'withdrawn')),
    mask_sha256 TEXT,
    prompt TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('text mask', 'prediction', 'merged', 'by hand', 'imported')),
    model_fingerprint TEXT NOT NULL,
    parent INTEGER REFERENCES revision (revision_id),
    edited_voxels INTEGER NOT NULL CHECK (edited_voxels >= 0),
    author TEXT NOT NULL,
    time TEXT NOT NULL,
    CHECK ((kind = 'accepted') = (mask_sha256 IS NOT NULL))
);
CREATE TRIGGER revision_is_immutable BEFORE UPDATE ON revision
    BEGIN SELECT RAISE(ABORT, 'a revision is never changed'); END;
CREATE TRIGGER revision_is_never_lost BEFORE DELETE ON revision
    BEGIN SELECT RAISE(ABORT, 'a revision is never deleted'); END;
CREATE TABLE state (
    case_id TEXT NOT NULL REFERENCES case_ (case_id),
    structure TEXT NOT NULL REFERENCES structure (name),
    state TEXT NOT NULL CHECK (state IN ('unknown', 'draft', 'accepted', 'absent', 'rejected', 'skipped')),
    revision_id INTEGER REFERENCES revision (revision_id),
    PRIMARY KEY (case_id, structure),
    CHECK ((state IN ('accepted', 'absent')) = (revision_id IS NOT NULL))
);
CREATE TABLE draft_slice (
    case_id TEXT NOT NULL REFERENCES case_ (case_id),
    structure TEXT NOT NULL REFERENCES structure (name),
    slice_index INTEGER NOT NULL,
    voxels BLOB NOT NULL,
    PRIMARY KEY (case_id, structure, slice_index)
);
CREATE TABLE reference (
    case_id TEXT NOT NULL REFERENCES case_ (case_id),
    structure TEXT NOT NULL REFERENCES structure (name),
    mask_sha256 TEXT NOT NULL,
    PRIMARY KEY (case_id, structure)
);
CREATE TABLE consumed (
    run TEXT NOT NULL,
    revision_id INTEGER NOT NULL REFERENCES revision (revision_id),
    PRIMARY KEY (run, revision_id)
);
"""
    + QUALITY
)


def _add_quality(connection: sqlite3.Connection) -> None:
    """1 → 2: what a model's pseudo-labels look like."""
    connection.execute(QUALITY)


def _patient_sides(connection: sqlite3.Connection) -> None:
    """2 → 3: captions that named the image's sides name the patient's; where they came from stays as provenance."""
    rows = connection.execute(
        "SELECT caption.rowid, text FROM caption JOIN case_ USING (case_id) WHERE laterality = 'image'"
    ).fetchall()
    connection.executemany("UPDATE caption SET text = ? WHERE rowid = ?", [(swap_sides(t), row) for row, t in rows])
    connection.execute("ALTER TABLE case_ RENAME COLUMN laterality TO source_laterality")


MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _add_quality, 2: _patient_sides}
"""What turns an index of a version into one of the next, inside a transaction."""


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """(type, name) → definition with single spaces, of everything but what SQLite makes itself."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {(kind, name): " ".join(str(sql).split()) for kind, name, sql in rows if not name.startswith("sqlite_")}


@functools.cache
def _expected() -> dict[tuple[str, str], str]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(TABLES)
        return _objects(connection)
    finally:
        connection.close()


def check_no_foreign_code(connection: sqlite3.Connection) -> None:
    """Refuse an index with a trigger or view that is not ours: it would act on what a person does.

    Raises
    ------
    UserError
    """
    ours = _expected()
    for key, definition in _objects(connection).items():
        if key[0] in ("trigger", "view") and ours.get(key) != definition:
            raise UserError(f"the index holds a {key[0]} that this program did not write", remedy=_FOREIGN)


def check_tables(connection: sqlite3.Connection) -> None:
    """Refuse an index of this version whose tables are not exactly ours.

    Raises
    ------
    UserError
    """
    if _objects(connection) != _expected():
        raise UserError("the index is not laid out as this program writes it", remedy=_FOREIGN)


_FOREIGN = "Another program changed it: do not use this study, or restore the index from a backup."
