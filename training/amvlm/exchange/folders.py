"""The files of a folder that a stranger filled: listed without opening one of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from amvlm.errors import UserError
from amvlm.exchange.accounts import Accounts
from amvlm.paths import check_encodable, inside

MAX_FILES = 1_000_000
_INDEX = "store.sqlite"


def list_files(source: Path, accounts: Accounts) -> list[Path]:
    """Every plain file in a folder and its subfolders, in order of names.

    What is no plain file, has a name that is not UTF-8, or is a link that leaves the folder is refused by name and
    never opened. Hidden files, hidden folders and other studies are left out.

    Raises
    ------
    UserError
        If the folder is a study itself, or holds more than ``MAX_FILES`` files.
    """
    if os.path.lexists(source / _INDEX):
        raise UserError("this folder is a study already", file=source, remedy="Open it; there is nothing to import.")
    found: list[Path] = []
    folders = [source]
    while folders:
        for path in _entries(folders.pop(), accounts):
            accounts.see(path)
            try:
                is_folder = _is_folder(path, source)
            except UserError as error:
                accounts.leave_out(path, error.what, "refused")
            else:
                if path.name.startswith("."):
                    accounts.leave_out(path, f"a hidden {'folder' if is_folder else 'file'}")
                elif is_folder and (path.is_symlink() or os.path.lexists(path / _INDEX)):
                    accounts.leave_out(path, "a link to another folder" if path.is_symlink() else "a study of its own")
                elif is_folder:
                    accounts.forget(path)
                    folders.append(path)
                else:
                    found.append(path)
        if len(found) > MAX_FILES:
            raise UserError(f"the folder holds more than {MAX_FILES:,} files", file=source,
                            remedy="Import its parts one by one.")  # fmt: skip
    return sorted(found, key=lambda path: path.relative_to(source).parts)


def _entries(folder: Path, accounts: Accounts) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except OSError as error:
        accounts.see(folder)
        accounts.leave_out(folder, f"the folder cannot be opened ({error.strerror})", "refused")
        return []


def _is_folder(path: Path, source: Path) -> bool:
    """True for a folder, False for a plain file; :class:`UserError` for anything else."""
    check_encodable(path)
    try:
        if path.is_symlink():
            inside(source, path.relative_to(source))
        mode = path.stat().st_mode
    except UserError as error:
        raise UserError("a link that leads out of the folder") from error
    except (OSError, RuntimeError) as error:
        raise UserError("it leads to nothing, or cannot be opened") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError("neither a file nor a folder, but a pipe, a socket or a device")
    return stat.S_ISDIR(mode)
