"""A lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amvlm.errors import UserError

_PATIENCE_S, _PAUSE_S = 1.0, 0.02


class FileLock:
    """The operating system's lock on a file: the kernel takes it back when the process ends, in whatever way.

    A process id written to the file proves nothing: the number may belong to another program by now, and a copied study
    has a copied file.

    Parameters
    ----------
    path : Path
        Made if it is not there, readable by this user alone; never followed if it is a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self, patience_s: float = _PATIENCE_S) -> bool:
        """Try to get the lock, and write this process's id into the file.

        Parameters
        ----------
        patience_s : float
            How long to try: whoever looks whether a lock is held holds it for an instant.

        Raises
        ------
        UserError
            If the file cannot be made, or the file system knows no locks.
        """
        deadline = time.monotonic() + patience_s
        while (descriptor := self._tried()) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_S)
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk: the lock holds, only its note is missing
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        return True

    def _tried(self) -> int | None:
        """The locked file, or None where somebody else has it, or has just removed it."""
        descriptor = _opened(self.path, os.O_RDWR | os.O_CREAT)
        try:
            if _locked(descriptor, self.path) and os.path.samestat(os.fstat(descriptor), os.lstat(self.path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
        return None

    def give_back(self) -> None:
        """Release the lock and remove its file; nothing happens where it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if os.name == "nt":  # an open file cannot be removed there
            os.close(descriptor)
        try:
            with suppress(OSError):  # the folder is gone, or another process has opened the file
                self.path.unlink()
        finally:
            if os.name != "nt":
                os.close(descriptor)

    def holder(self) -> int | None:
        """The process that holds the lock now: its id, 0 where the file does not say, None where nobody does."""
        if not self.path.is_file() or self.path.is_symlink():
            return None
        try:
            descriptor = _opened(self.path, os.O_RDWR)
        except UserError:
            return None  # a file that this user cannot write is no lock of his
        try:
            if _locked(descriptor, self.path):
                return None
            content = os.read(descriptor, 20)
        finally:
            os.close(descriptor)
        return int(content) if content.isdigit() else 0


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for a short act, waiting for whoever has it.

    Raises
    ------
    UserError
        If another process keeps it for ten seconds: ``what`` is going on there.
    """
    lock = FileLock(path)
    if not lock.take(10 * _PATIENCE_S):
        raise UserError(f"another process {what} at this moment", remedy="Wait a moment, then try again.")
    try:
        yield
    finally:
        lock.give_back()


def _opened(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o600)
    except OSError as error:
        raise UserError(
            f"the lock file cannot be opened ({error.strerror})", file=path, remedy="Check the study's permissions."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError("the lock is not a file", file=path, remedy="Remove it, then try again.")
    return descriptor


def _locked(descriptor: int, path: Path) -> bool:
    """Lock an open file, or return False where somebody else has."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the note, which others may read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        return False
    except OSError as error:
        raise UserError(
            f"this file system cannot lock files ({error.strerror})",
            file=path,
            remedy="Keep the study on a local disk.",
        ) from error
    return True
