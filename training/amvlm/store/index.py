"""The index of a study: connections, transactions, and one table from SQLite's errors to sentences."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from amvlm.errors import UserError
from amvlm.imaging.writers import fsync_folder, write_bytes_atomically
from amvlm.paths import check_store_id, inside
from amvlm.store.schema import MIGRATIONS, SCHEMA_VERSION, TABLES, check_no_foreign_code, check_tables

FILE_NAME = "store.sqlite"
BUSY_SECONDS = 5.0
_DAMAGED = ("the index is damaged", "Restore store.sqlite from a backup; masks and images are files of their own.")
_READ_ONLY = (
    "the index may not be written",
    "Check the permissions of the study's folder, and that the disk is not write-protected.",
)
_ERRORS: dict[str, tuple[str, str]] = {
    "SQLITE_BUSY": ("another program is writing to the study", "Nothing is damaged: wait a moment and try again."),
    "SQLITE_LOCKED": ("another program is writing to the study", "Nothing is damaged: wait a moment and try again."),
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_PERM": _READ_ONLY,
    "SQLITE_AUTH": _READ_ONLY,
    "SQLITE_CANTOPEN": (
        "the index cannot be opened",
        "Check that the study's folder is still there and that you may read and write it.",
    ),
    "SQLITE_FULL": ("the disk is full, so the index could not be written", "Nothing was changed: free some space."),
    "SQLITE_IOERR": (
        "the disk refused to read or write the index",
        "Nothing was changed: check free space and the disk or network drive, then try again.",
    ),
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_NOTADB": ("the index is not a database", _DAMAGED[1]),
    "SQLITE_FORMAT": _DAMAGED,
    "SQLITE_NOMEM": ("there is not enough memory for the index", "Close other programs and try again."),
    "SQLITE_TOOBIG": ("something is too large for the index", "Shorten the text."),
    "SQLITE_CONSTRAINT": ("the index refuses this, because it contradicts what is there", "Open the study again."),
    "SQLITE_ERROR": (
        "the index is not laid out as this program writes it",
        "Another program changed it: restore it from a backup.",
    ),
}
"""SQLite's primary result code → what happened, and what to do about it."""
_MOST_BYTES = 64 * 2**20
_MOST_REVISIONS = 2**53


def sentence_of(error: sqlite3.Error, file: Path) -> UserError:
    """The sentence for an error of SQLite; unknown ones are named, never called damage."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if "decode" in str(error).lower():
        name = "SQLITE_CORRUPT"
    key = "_".join(name.split("_")[:2])
    what, remedy = _ERRORS.get(key, (f"the index could not be used ({name or type(error).__name__})", "Try again."))
    return UserError(what, file=file, remedy=remedy)


class Index:
    """``store.sqlite``: every use is one short transaction, so that viewer and trainer share it.

    Parameters
    ----------
    folder : Path
        The study's folder.

    Raises
    ------
    UserError
        If there is no index, it is of a later version, or another program changed its tables.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        if not self.path.is_file():
            raise UserError(
                "this is not a study", file=folder, remedy="Create one with: amvlm import FOLDER --into STUDY"
            )
        inside(folder, FILE_NAME)
        version = self._version()
        while version in MIGRATIONS:
            version = self._migrate(version)
        if version != SCHEMA_VERSION:
            raise UserError(
                f"the study is of version {version}, this program reads version {SCHEMA_VERSION}", file=folder,
                remedy="Install the release that wrote it.",
            )  # fmt: skip
        with self.read() as connection:
            check_tables(connection)
            numbers = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
        if not isinstance(numbers[0], int) or numbers[0] > _MOST_REVISIONS:
            raise UserError(
                "the index has no numbers left for labels", file=self.path, remedy=_ERRORS["SQLITE_ERROR"][1]
            )

    @classmethod
    def create(cls, folder: Path) -> None:
        """Write an empty index, whole or not at all.

        Raises
        ------
        FileExistsError
            If there is one already.
        """
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(TABLES)
            connection.execute("INSERT INTO meta VALUES (?, ?)", (SCHEMA_VERSION, uuid.uuid4().hex))
            connection.commit()
            content = connection.serialize()
        beside = folder / f".{uuid.uuid4().hex}.part"
        write_bytes_atomically(beside, content)
        try:
            if os.name == "nt":
                beside.rename(folder / FILE_NAME)
            else:
                os.link(beside, folder / FILE_NAME)  # unlike a rename, this never replaces
            fsync_folder(folder)
        finally:
            beside.unlink(missing_ok=True)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view; rows have named columns."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the only right to write; committed at the end, undone by an error."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection
            connection.commit()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connected()) as connection:
                connection.execute(begin)
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.rollback()
        except sqlite3.Error as error:
            raise sentence_of(error, self.path) from error
        except UnicodeEncodeError as error:  # half of a character, as in file names of another encoding
            raise UserError("a name or text holds bytes that are no text", remedy="Type it again.") from error

    def _connected(self) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode=rw"  # never make an empty one where ours was
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def store_id(self) -> str:
        """The study's identifier."""
        with self.read() as connection:
            row = connection.execute("SELECT store_id FROM meta").fetchone()
        if row is None:
            raise UserError(_DAMAGED[0], file=self.path, remedy=_DAMAGED[1])
        return check_store_id(row["store_id"])

    def _version(self) -> int:
        with self.read() as connection:
            check_no_foreign_code(connection)
            row = connection.execute("SELECT schema_version FROM meta").fetchone()
        if row is None or not isinstance(row["schema_version"], int):
            raise UserError(_DAMAGED[0], file=self.path, remedy=_DAMAGED[1])
        return int(row["schema_version"])

    def _migrate(self, version: int) -> int:
        """Bring the index one version forward; another process may have done it meanwhile."""
        with self.write() as connection:
            now = int(connection.execute("SELECT schema_version FROM meta").fetchone()[0])
            if now == version:
                MIGRATIONS[version](connection)
                connection.execute("UPDATE meta SET schema_version = ?", (version + 1,))
            return max(now, version + 1)
