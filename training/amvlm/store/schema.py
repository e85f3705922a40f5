"""The index's tables. Rollback journal and synchronous=FULL: people copy the file alone."""

from __future__ import annotations

SCHEMA_VERSION = 2

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
MIGRATIONS = {1: QUALITY}
"""What turns an index of a version into one of the next."""

TABLES = """
CREATE TABLE meta (schema_version INTEGER NOT NULL, store_id TEXT NOT NULL);
CREATE TABLE case_ (
    case_id TEXT PRIMARY KEY,
    patient TEXT NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'val', 'test')),
    modality TEXT NOT NULL,
    laterality TEXT NOT NULL CHECK (laterality IN ('patient', 'image')),
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
TABLES += QUALITY
