"""One study in one folder: an SQLite index beside immutable masks."""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import hashlib
import json
import sqlite3
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging import Volume, read_volume
from amvlm.store.masks import MaskFolder
from amvlm.store.records import Case, Mark, Quality, Revision, Snapshot, Source, Split, State, Structure
from amvlm.store.schema import MIGRATIONS, SCHEMA_VERSION, TABLES

COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1", "#d6a400", "#d6336c", "#17a2b8", "#8c6d31")
_REVISION = (
    "revision_id, case_id, structure, kind, mask_sha256, prompt, source, model_fingerprint, parent, "
    "edited_voxels, author, time"
)


class LabelStore:
    """Opens a store; every call is one short transaction, so viewer and trainer can share it.

    Parameters
    ----------
    folder : Path
        The study's folder, holding ``store.sqlite``.

    Raises
    ------
    UserError
        If there is no store, or it is of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._index = self.folder / "store.sqlite"
        self.masks = MaskFolder(self.folder / "labels")
        if not self._index.is_file():
            raise UserError(
                "this is not a study", file=folder, remedy="Create one with: amvlm import FOLDER --into STUDY"
            )
        try:
            with self._read() as connection:
                version, self.store_id = connection.execute("SELECT schema_version, store_id FROM meta").fetchone()
        except (sqlite3.DatabaseError, TypeError) as error:
            raise UserError("the index is damaged", file=self._index, remedy="Restore it from a backup.") from error
        while version in MIGRATIONS:
            version = self._migrate(version)
        if version != SCHEMA_VERSION:
            raise UserError(
                f"the study is of version {version}, this program reads version {SCHEMA_VERSION}",
                file=folder,
                remedy="Install the release that wrote it.",
            )

    @classmethod
    def create(cls, folder: str | Path) -> LabelStore:
        """Make an empty store in a new or empty folder."""
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UserError("the folder is not empty", file=folder, remedy="Choose a new folder for the study.")
        for name in ("images", "labels", "models", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(folder / "store.sqlite")) as connection, connection:
            connection.executescript("PRAGMA synchronous=FULL;" + TABLES)
            connection.execute("INSERT INTO meta VALUES (?, ?)", (SCHEMA_VERSION, uuid.uuid4().hex))
        return cls(folder)

    def _migrate(self, version: int) -> int:
        """Bring the index one version forward; another process may have done it meanwhile."""
        with self._write() as connection:
            (now,) = connection.execute("SELECT schema_version FROM meta").fetchone()
            if now == version:
                for statement in MIGRATIONS[version].split(";"):
                    connection.execute(statement)
                connection.execute("UPDATE meta SET schema_version = ?", (version + 1,))
            return int(max(now, version + 1))

    # -- transactions ---------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._index, timeout=5.0, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.rollback()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._index, timeout=5.0, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=FULL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.commit()
            except sqlite3.OperationalError as error:
                raise UserError(
                    f"the study's index could not be written ({error})",
                    file=self._index,
                    remedy="Close other programs that use the study, check free disk space, and try again.",
                ) from error
            finally:
                if connection.in_transaction:
                    connection.rollback()

    # -- cases and structures -------------------------------------------------------------------------

    def cases(self, split: Split | None = None) -> list[Case]:
        """All cases in order of their ids, or those of one split."""
        return self._cases("?1 IS NULL OR split = ?1", split)

    def case(self, case_id: str) -> Case:
        found = self._cases("case_id = ?1", case_id)
        if not found:
            raise UserError(f"the study has no case {case_id}", file=self.folder)
        return found[0]

    def case_of_image(self, image_sha256: str) -> Case | None:
        """The case whose image has these bytes, if any."""
        found = self._cases("image_sha256 = ?1", image_sha256)
        return found[0] if found else None

    def _cases(self, where: str, value: str | None) -> list[Case]:
        with self._read() as connection:
            rows = connection.execute(
                "SELECT case_id, patient, split, modality, laterality, image_sha256, image_file, shape, affine, "
                f"sides_known, planar FROM case_ WHERE {where} ORDER BY case_id",
                (value,),
            ).fetchall()
        return [_case(row) for row in rows]

    def read_image(self, case: Case) -> Volume:
        """The case's image on its own grid, with the affine that its masks carry."""
        volume = read_volume(self.folder / case.image_file)
        return dataclasses.replace(
            volume, affine=case.affine, sides_known=case.sides_known, planar=case.planar, modality=case.modality
        )

    def structures(self) -> list[Structure]:
        with self._read() as connection:
            rows = connection.execute("SELECT name, aliases, colour, prompts FROM structure ORDER BY rowid").fetchall()
        return [Structure(name, tuple(json.loads(a)), colour, tuple(json.loads(p))) for name, a, colour, p in rows]

    def add_structure(self, name: str, aliases: Iterable[str] = (), prompts: Iterable[str] = ()) -> None:
        """Add a structure, or add wordings to one that is there."""
        name = " ".join(name.split())
        if not name:
            raise UserError("the structure has no name", remedy="Type one, for example: liver.")
        known = {structure.name: structure for structure in self.structures()}
        old = known.get(name, Structure(name, colour=COLOURS[len(known) % len(COLOURS)]))
        merged = [
            json.dumps(list(dict.fromkeys([*a, *b]))) for a, b in ((old.aliases, aliases), (old.prompts, prompts))
        ]
        with self._write() as connection:
            connection.execute(
                "INSERT INTO structure (name, aliases, colour, prompts) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET aliases = excluded.aliases, prompts = excluded.prompts",
                (name, merged[0], old.colour, merged[1]),
            )

    def captions(self) -> dict[str, list[tuple[str | None, str]]]:
        """Case id → [(structure or None, text)], volume scope."""
        with self._read() as connection:
            rows = connection.execute("SELECT case_id, structure, text FROM caption WHERE scope='volume'").fetchall()
        grouped: dict[str, list[tuple[str | None, str]]] = {}
        for case_id, structure, text in rows:
            grouped.setdefault(case_id, []).append((structure, text))
        return grouped

    # -- labels ---------------------------------------------------------------------------------------

    def accept(
        self,
        case_id: str,
        structure: str,
        mask: NDArray[Any],
        *,
        prompt: str = "",
        source: Source = "by hand",
        model_fingerprint: str = "",
        edited_voxels: int = 0,
        author: str | None = None,
    ) -> Revision:
        """Keep a mask as the judgement of the whole volume; returns once it cannot be lost.

        Parameters
        ----------
        mask : ndarray, uint8 or bool in {0, 1}, shape of the case's image (its own storage order)
        """
        case = self.case(case_id)
        grid = Volume(np.empty(case.shape, dtype=np.uint8), case.affine, case.sides_known, case.planar)
        sha256 = self.masks.add(mask, grid)
        return self._revise(
            case_id, structure, "accepted", sha256, prompt, source, model_fingerprint, edited_voxels, author
        )

    def mark_absent(
        self,
        case_id: str,
        structure: str,
        *,
        prompt: str = "",
        source: Source = "by hand",
        author: str | None = None,
    ) -> Revision:
        """Record that the structure is not in this volume."""
        return self._revise(case_id, structure, "absent", None, prompt, source, "", 0, author)

    def undo(self, case_id: str, structure: str, author: str | None = None) -> Revision:
        """Go back to the judgement before the current one, as a new revision; nothing is deleted."""
        with self._write() as connection:
            current = self._current(connection, case_id, structure)
            if current is None:
                raise UserError(f"{structure} has no label to undo in {case_id}")
            before = (
                None
                if current.parent is None
                else _revision(
                    connection.execute(
                        f"SELECT {_REVISION} FROM revision WHERE revision_id=?", (current.parent,)
                    ).fetchone()
                )
            )
            content = before or current
            return self._insert(
                connection,
                (
                    case_id,
                    structure,
                    before.kind if before else "withdrawn",
                    before.mask_sha256 if before else None,
                    content.prompt,
                    content.source,
                    content.model_fingerprint,
                    before.parent if before else None,
                    0,
                    author or _author(),
                    _now(),
                ),
            )

    def restore(self, revision_id: int, author: str | None = None) -> Revision:
        """Make an earlier revision count again, as a new one whose parent is the one that counts now."""
        with self._write() as connection:
            row = connection.execute(f"SELECT {_REVISION} FROM revision WHERE revision_id=?", (revision_id,)).fetchone()
            if row is None:
                raise UserError(f"the study has no revision {revision_id}", remedy="See: amvlm history.")
            old = _revision(row)
            if old.kind == "withdrawn":
                raise UserError("that revision withdrew a label: there is nothing to bring back",
                                remedy="Choose an accepted or absent one.")  # fmt: skip
            current = self._current(connection, old.case_id, old.structure)
            return self._insert(
                connection,
                (
                    old.case_id, old.structure, old.kind, old.mask_sha256, old.prompt, old.source,
                    old.model_fingerprint, current.revision_id if current else None, 0, author or _author(), _now(),
                ),
            )  # fmt: skip

    def mark(self, case_id: str, structure: str, state: Mark) -> None:
        """Set aside a case without a label: skipped, rejected, or back to unknown."""
        with self._write() as connection:
            if self._current(connection, case_id, structure) is not None:
                raise UserError(f"{structure} is already labelled in {case_id}", remedy="Undo the label first.")
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?, NULL)", (case_id, structure, state))

    def state(self, case_id: str, structure: str) -> State:
        return self.states().get((case_id, structure), "unknown")

    def states(self) -> dict[tuple[str, str], State]:
        """(case id, structure) → state; a pair that is not there is unknown."""
        with self._read() as connection:
            rows = connection.execute("SELECT case_id, structure, state FROM state").fetchall()
        return {(case_id, structure): state for case_id, structure, state in rows}

    def current(self, case_id: str, structure: str) -> Revision | None:
        """The revision that counts now: accepted or absent; None where the structure is unknown."""
        with self._read() as connection:
            return self._current(connection, case_id, structure)

    def history(self, case_id: str, structure: str) -> list[Revision]:
        """Every revision of a case's structure, oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                f"SELECT {_REVISION} FROM revision WHERE case_id=? AND structure=? ORDER BY revision_id",
                (case_id, structure),
            ).fetchall()
        return [_revision(row) for row in rows]

    def snapshot(self) -> Snapshot:
        """The accepted and absent revisions at this moment."""
        columns = ", ".join(f"r.{name.strip()}" for name in _REVISION.split(","))
        with self._read() as connection:
            rows = connection.execute(
                f"SELECT {columns} FROM state s JOIN revision r ON r.revision_id = s.revision_id "
                "ORDER BY r.case_id, r.structure"
            ).fetchall()
        return Snapshot(self.store_id, tuple(_revision(row) for row in rows))

    def read_mask(self, revision: Revision) -> NDArray[np.uint8]:
        """The mask of a revision, on the image's storage grid; zeros for an absent one."""
        if revision.mask_sha256 is None:
            return np.zeros(self.case(revision.case_id).shape, dtype=np.uint8)
        return self.masks.read(revision.mask_sha256).array.astype(np.uint8, copy=False)

    def record_consumed(self, run: str, snapshot: Snapshot) -> None:
        rows = [(run, revision.revision_id) for revision in snapshot.revisions]
        with self._write() as connection:
            connection.executemany("INSERT OR IGNORE INTO consumed VALUES (?, ?)", rows)

    def add_import(
        self,
        cases: Iterable[Case],
        captions: Iterable[tuple[str, str | None, str]],
        references: Iterable[tuple[str, str, str]],
        labels: Iterable[tuple[str, str, str]],
    ) -> None:
        """Add a whole import in one transaction; files are in place already.

        Parameters
        ----------
        cases : iterable of Case
        captions : iterable of (case id, structure or None, text)
        references, labels : iterable of (case id, structure, mask sha256)
            Expert masks for evaluation, never trained on; and accepted revisions of source "imported".
        """
        rows = [(case_id, structure, text) for case_id, structure, text in captions]
        with self._write() as connection:
            connection.executemany("INSERT INTO case_ VALUES (?,?,?,?,?,?,?,?,?,?,?)", map(_case_row, cases))
            connection.executemany("INSERT INTO caption VALUES (?, ?, 'volume', NULL, ?)", rows)
            connection.executemany("INSERT OR REPLACE INTO reference VALUES (?, ?, ?)", list(references))
            for case_id, structure, sha256 in labels:
                self._insert(
                    connection,
                    (case_id, structure, "accepted", sha256, "", "imported", "", None, 0, _author(), _now()),
                )

    # -- references and drafts ------------------------------------------------------------------------

    def references(self) -> dict[tuple[str, str], str]:
        """(case id, structure) → mask sha256."""
        with self._read() as connection:
            rows = connection.execute("SELECT case_id, structure, mask_sha256 FROM reference").fetchall()
        return {(case_id, structure): sha256 for case_id, structure, sha256 in rows}

    def save_quality(self, found: Iterable[Quality]) -> None:
        """Keep what was seen of pseudo-labels, replacing what an earlier model gave."""
        rows = [
            (
                q.case_id, q.structure, q.model_fingerprint, q.expected_dice, q.agreement, q.soft_dice, q.confidence,
                q.entropy, q.foreground, q.components, json.dumps(q.flags), q.distance, q.time or _now(),
            )
            for q in found
        ]  # fmt: skip
        with self._write() as connection:
            connection.executemany(f"INSERT OR REPLACE INTO quality VALUES ({', '.join('?' * 13)})", rows)

    def quality(self) -> dict[tuple[str, str], Quality]:
        """(case id, structure) → what the newest look at its pseudo-label gave."""
        with self._read() as connection:
            rows = connection.execute("SELECT * FROM quality").fetchall()
        names = [field.name for field in dataclasses.fields(Quality)]  # the table's columns, in their order
        kept = (dict(zip(names, row, strict=True)) for row in rows)
        found = (Quality(**{**values, "flags": tuple(json.loads(values["flags"]))}) for values in kept)
        return {(q.case_id, q.structure): q for q in found}

    def save_draft(self, case_id: str, structure: str, slices: Mapping[int, NDArray[np.uint8]]) -> None:
        """Autosave the touched slices, indexed along the last storage axis, each of shape (I, J)."""
        rows = [
            (
                case_id,
                structure,
                int(index),
                zlib.compress(np.ascontiguousarray(plane, dtype=np.uint8).tobytes(), 1),
            )
            for index, plane in slices.items()
        ]
        with self._write() as connection:
            connection.executemany("INSERT OR REPLACE INTO draft_slice VALUES (?, ?, ?, ?)", rows)
            if self._current(connection, case_id, structure) is None:
                connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?, 'draft', NULL)", (case_id, structure))

    def load_draft(self, case_id: str, structure: str) -> dict[int, NDArray[np.uint8]]:
        """The autosaved slices: index along the last storage axis → plane of shape (I, J)."""
        shape = self.case(case_id).shape[:2]
        with self._read() as connection:
            rows = connection.execute(
                "SELECT slice_index, voxels FROM draft_slice WHERE case_id=? AND structure=?",
                (case_id, structure),
            ).fetchall()
        return {index: np.frombuffer(zlib.decompress(blob), np.uint8).reshape(shape).copy() for index, blob in rows}

    def discard_draft(self, case_id: str, structure: str) -> None:
        with self._write() as connection:
            connection.execute("DELETE FROM draft_slice WHERE case_id=? AND structure=?", (case_id, structure))
            connection.execute(
                "DELETE FROM state WHERE case_id=? AND structure=? AND state='draft'", (case_id, structure)
            )

    # -- inside a transaction -------------------------------------------------------------------------

    def _revise(
        self,
        case_id: str,
        structure: str,
        kind: str,
        sha256: str | None,
        prompt: str,
        source: str,
        model_fingerprint: str,
        edited_voxels: int,
        author: str | None,
    ) -> Revision:
        with self._write() as connection:
            current = self._current(connection, case_id, structure)
            parent = current.revision_id if current else None
            return self._insert(
                connection,
                (case_id, structure, kind, sha256, prompt, source, model_fingerprint, parent, edited_voxels,
                 author or _author(), _now()),
            )  # fmt: skip

    def _insert(self, connection: sqlite3.Connection, row: tuple[Any, ...]) -> Revision:
        try:
            cursor = connection.execute(
                "INSERT INTO revision (case_id, structure, kind, mask_sha256, prompt, source, model_fingerprint, "
                "parent, edited_voxels, author, time) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                row,
            )
        except sqlite3.IntegrityError as error:
            raise UserError(
                f"the study has no structure {row[1]!r}", remedy="Add the structure to the study first."
            ) from error
        case_id, structure, kind = row[:3]
        withdrawn = kind == "withdrawn"
        connection.execute(
            "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)",
            (case_id, structure, "unknown" if withdrawn else kind, None if withdrawn else cursor.lastrowid),
        )
        connection.execute("DELETE FROM draft_slice WHERE case_id=? AND structure=?", (case_id, structure))
        return _revision((cursor.lastrowid, *row))

    def _current(self, connection: sqlite3.Connection, case_id: str, structure: str) -> Revision | None:
        columns = ", ".join(f"r.{name.strip()}" for name in _REVISION.split(","))
        row = connection.execute(
            f"SELECT {columns} FROM state s JOIN revision r ON r.revision_id = s.revision_id "
            "WHERE s.case_id=? AND s.structure=?",
            (case_id, structure),
        ).fetchone()
        return _revision(row) if row else None


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _revision(row: tuple[Any, ...]) -> Revision:
    return Revision(*row)


def _case(row: tuple[Any, ...]) -> Case:
    shape = json.loads(row[7])
    affine = np.array(json.loads(row[8]), dtype=np.float64)
    case_id, group, split, modality, laterality, image_sha256, image_file = row[:7]
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    return Case(
        case_id, group, split, modality, laterality, image_sha256, image_file, size, affine, bool(row[9]), bool(row[10])
    )


def _case_row(case: Case) -> tuple[Any, ...]:
    return (
        case.case_id, case.group, case.split, case.modality, case.laterality, case.image_sha256, case.image_file,
        json.dumps(case.shape), json.dumps(case.affine.tolist()), int(case.sides_known), int(case.planar),
    )  # fmt: skip


def _author() -> str:
    try:
        return hashlib.sha256(getpass.getuser().encode()).hexdigest()[:8]
    except OSError:
        return "unknown"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
