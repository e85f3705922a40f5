"""A stranger's study: its index says what it likes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class


def columns(study: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(study / "store.sqlite")) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def edit(study: Path, *statements: str | tuple[str, tuple[object, ...]]) -> None:
    """Change an index as a stranger with SQLite could: no foreign keys, no triggers, no checks."""
    with closing(sqlite3.connect(study / "store.sqlite")) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("PRAGMA ignore_check_constraints=ON")
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
        for _, sql in triggers:
            connection.execute(sql)


def rename_case(study: Path, new: object) -> None:
    """Give the first labelled case another id, everywhere."""
    with closing(sqlite3.connect(study / "store.sqlite")) as connection:
        (old,) = connection.execute("SELECT case_id FROM revision ORDER BY revision_id").fetchone()
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    edit(study, *((f"UPDATE {table} SET case_id = ? WHERE case_id = ?", (new, old))
                  for table in tables if "case_id" in columns(study, table)))  # fmt: skip


def _use(place: Place, study: Path) -> None:
    """What a person does with a study from somebody else."""
    place.study_is_damaged = True
    place.allow(place.work / "out", place.work / "quality.json", study / "store.sqlite")  # quality is kept there
    place.run("verify", study)
    place.run("export", study, place.work / "out")
    place.run("quality", study, "--json", place.work / "quality.json")


@fault_class(1, "a case id in a stranger's index")
def case_ids() -> Iterator[Trial]:
    def trial(place: Place, name: str) -> None:
        study = place.study("trained")
        (place.outside / "keep" / "victim_liver.nii.gz").write_bytes(b"not yours either")
        rename_case(study, place.resolved(name))
        _use(place, study)

    hostile = [
        "OUTSIDE/keep/victim", "../../outside/keep/victim", "scan A", "..", "", "a" * 5000, "x\ny", "[/red]",
        "case-99999999999999999999999", "case-00001/../../../outside/keep/victim", "C:\\victim", "NUL",
    ]  # fmt: skip
    for name in hostile:
        yield name[:30], partial(trial, name=name)

    def binary(place: Place) -> None:
        study = place.study("trained")
        rename_case(study, b"\x00\xff")
        _use(place, study)

    yield "a blob", binary

    def imported_into(place: Place) -> None:
        study = place.study("trained")
        rename_case(study, "scan A")
        place.study_is_damaged = True
        place.allow(study)
        place.run("import", makers.scans(place.work / "more"), "--into", study)

    yield "scan A, then an import", imported_into


@fault_class(1, "an image's or mask's place in a stranger's index")
def places() -> Iterator[Trial]:
    def trial(place: Place, table: str, column: str, value: str) -> None:
        study = place.study("trained")
        if column not in columns(study, table):
            return
        edit(study, (f"UPDATE {table} SET {column} = ? WHERE rowid = "
             f"(SELECT max(rowid) FROM {table})", (place.resolved(value),)))  # fmt: skip
        _use(place, study)

    values = [
        "../../outside/secret.nii.gz", "OUTSIDE/secret.nii.gz", "/dev/zero", "images", "", "a" * 5000,
        "../../outside/secret", "0" * 64, "images/../../../outside/secret.nii.gz",
    ]  # fmt: skip
    for table, column in (("case_", "image_file"), ("case_", "image_sha256"), ("revision", "mask_sha256")):
        for value in values:
            yield f"{column} {value[:24]}", partial(trial, table=table, column=column, value=value)

    def link(place: Place, folder: str) -> None:
        study = place.study("trained")
        path = next((study / folder).iterdir())
        path.unlink()
        path.symlink_to(place.outside / "secret.nii.gz")
        _use(place, study)

    yield "an image is a link out of the study", partial(link, folder="images")
    yield "a mask is a link out of the study", partial(link, folder="labels")

    def fifo(place: Place) -> None:
        import os

        study = place.study("trained")
        path = next((study / "images").iterdir())
        path.unlink()
        os.mkfifo(path)
        _use(place, study)

    yield "an image is a pipe", fifo


@fault_class(1, "values of a stranger's index")
def values() -> Iterator[Trial]:
    def trial(place: Place, table: str, column: str, value: object) -> None:
        study = place.study("trained")
        if column not in columns(study, table):
            return
        edit(study, (f"UPDATE OR IGNORE {table} SET {column} = ?", (value,)))
        _use(place, study)

    for table, column, value in [
        ("case_", "shape", "[1000000, 1000000, 1000000]"), ("case_", "shape", "[-1, 2, 3]"), ("case_", "shape", "{"),
        ("case_", "affine", "[[NaN, 0, 0, 0]]"), ("case_", "affine", "5"), ("case_", "affine", "[" * 100000),
        ("case_", "split", "other"), ("case_", "laterality", "both"), ("case_", "modality", "[/red]" * 1000),
        ("structure", "aliases", "5"), ("structure", "prompts", '{"a": 1}'), ("structure", "name", "[/red]"),
        ("structure", "name", b"\xff"), ("revision", "source", "[/red]"), ("revision", "time", 5),
        ("revision", "kind", "other"), ("meta", "schema_version", "x"), ("meta", "schema_version", 10**12),
        ("meta", "schema_version", None), ("meta", "schema_version", -1), ("caption", "text", b"\xff\xfe"),
    ]:  # fmt: skip
        yield f"{column} {str(value)[:24]}", partial(trial, table=table, column=column, value=value)


@fault_class(1, "the store's id in a stranger's index")
def store_ids() -> Iterator[Trial]:
    def trial(place: Place, value: str) -> None:
        study = place.study()
        edit(study, ("UPDATE meta SET store_id = ?", (place.resolved(value),)))
        place.study_is_damaged = True
        place.allow(study)
        place.run("import", makers.scans(place.work / "more"), "--into", study)

    for value in ["/../../../outside/keep/x", "OUTSIDE/keep/x", "../x", "", "a" * 5000, "x\0y", "[/red]", "../../.."]:
        yield value[:24] or "empty", partial(trial, value=value)


@fault_class(1, "foreign triggers, views and tables in a stranger's index")
def triggers() -> Iterator[Trial]:
    def trial(place: Place, statements: list[str]) -> None:
        study = place.study()
        with closing(sqlite3.connect(study / "store.sqlite")) as connection:
            connection.executescript(";\n".join(statements))
        place.study_is_damaged = True
        place.allow(study)
        case = _unjudged(study)
        answer = place.run("judge", study, case, "liver", "absent")
        verify = place.run("verify", study)
        if answer.code == 0 and verify.code == 0:  # acknowledged, and said to be sound: then it must be there
            with closing(sqlite3.connect(study / "store.sqlite")) as connection:
                kept = connection.execute(
                    "SELECT count(*) FROM state WHERE case_id=? AND state='absent'", (case,)
                ).fetchone()[0]
            place.expect(kept == 1, "an acknowledged label vanished", "changed")

    forget = "BEGIN DELETE FROM state WHERE case_id = NEW.case_id; END"
    yield "a trigger on state", partial(trial, statements=[f"CREATE TRIGGER t AFTER INSERT ON state {forget}"])
    yield "a trigger on revision", partial(trial, statements=[f"CREATE TRIGGER t AFTER INSERT ON revision {forget}"])
    yield "a trigger that ignores", partial(trial, statements=[
        "CREATE TRIGGER t BEFORE INSERT ON state BEGIN SELECT RAISE(IGNORE); END"])  # fmt: skip
    yield "a view in place of a table", partial(trial, statements=[
        "PRAGMA legacy_alter_table=ON", "ALTER TABLE state RENAME TO state2",
        "CREATE VIEW state AS SELECT * FROM state2 WHERE state <> 'absent'",
        "CREATE TRIGGER i INSTEAD OF INSERT ON state BEGIN SELECT 1; END"])  # fmt: skip
    yield "another view", partial(trial, statements=["CREATE VIEW friendly AS SELECT * FROM case_"])
    yield "one more column", partial(trial, statements=["ALTER TABLE case_ ADD COLUMN extra TEXT DEFAULT 'x'"])
    yield "a column in front of others", partial(trial, statements=[
        "PRAGMA legacy_alter_table=ON", "ALTER TABLE state RENAME TO old",
        "CREATE TABLE state (extra TEXT, case_id TEXT, structure TEXT, state TEXT, revision_id INTEGER, "
        "PRIMARY KEY (case_id, structure))",
        "INSERT INTO state SELECT 'x', * FROM old", "DROP TABLE old"])  # fmt: skip
    yield "a missing table", partial(trial, statements=["DROP TABLE consumed"])
    yield "a missing column", partial(trial, statements=["ALTER TABLE revision DROP COLUMN edited_voxels"]
                                      ) if sqlite3.sqlite_version_info > (3, 99) else partial(
        trial, statements=["DROP TABLE quality", "CREATE TABLE quality (case_id TEXT)"])  # fmt: skip
    yield "the immutability triggers are gone", partial(trial, statements=[
        "DROP TRIGGER IF EXISTS revision_is_immutable", "DROP TRIGGER IF EXISTS revision_is_never_lost"])  # fmt: skip
    yield "a generated column", partial(trial, statements=[
        "ALTER TABLE case_ ADD COLUMN big TEXT GENERATED ALWAYS AS (hex(zeroblob(1000))) VIRTUAL"])  # fmt: skip


def _unjudged(study: Path) -> str:
    with closing(sqlite3.connect(study / "store.sqlite")) as connection:
        row = connection.execute(
            "SELECT case_id FROM case_ WHERE case_id NOT IN (SELECT case_id FROM revision) ORDER BY case_id"
        ).fetchone()
    return str(row[0])
