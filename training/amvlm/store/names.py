"""Original file names: private, outside the study, shown in the window only."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from pathlib import Path

import platformdirs

from amvlm.errors import UserError, printable
from amvlm.imaging import write_bytes_atomically
from amvlm.paths import check_store_id

_SECRET_BYTES = 32


def user_folder() -> Path:
    """Where this user's private files are kept."""
    return Path(platformdirs.user_data_dir("napari-amvlm", appauthor=False))


def _files(store_id: str) -> tuple[Path, Path]:
    """The list of a store: one written by earlier releases, and the one that is added to."""
    stem = user_folder() / f"names-{check_store_id(store_id)}"
    return stem.with_suffix(".json"), stem.with_suffix(".jsonl")


def remember_names(store_id: str, names: dict[str, str]) -> None:
    """Add case id → original base name to this user's private list.

    One write at the end of the file: two imports at once keep both.

    Raises
    ------
    UserError
        If the user's data folder cannot be written.
    """
    _, path = _files(store_id)
    shown = {case_id: printable(name) for case_id, name in names.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, (json.dumps(shown) + "\n").encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"the scans are in the study, but their names could not be kept ({error.strerror})",
            remedy="Check free disk space; the window shows case numbers in their place.",
        ) from error


def original_names(store_id: str) -> dict[str, str]:
    """Case id → original base name; empty on a machine that did not import the study."""
    names: dict[str, str] = {}
    for path in _files(store_id):
        try:
            lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        except (OSError, ValueError):
            continue
        for line in lines:
            names |= _entries(line)
    return names


def _entries(line: str) -> dict[str, str]:
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return {str(key): printable(name) for key, name in entries.items()} if isinstance(entries, dict) else {}


def user_secret(purpose: str) -> str:
    """Sixteen letters that only this user can know, the same at every call for one purpose.

    Raises
    ------
    UserError
        If the user's data folder cannot be written.
    """
    path = user_folder() / "secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.is_file() or len(path.read_bytes()) != _SECRET_BYTES:
            write_bytes_atomically(path, secrets.token_bytes(_SECRET_BYTES))
        key = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"your data folder cannot be used ({error.strerror})", file=path, remedy="Check its permissions."
        ) from error
    return hmac.new(key, purpose.encode(), "sha256").hexdigest()[:16]


def forget_names(store_id: str) -> None:
    """Delete a store's private list, for a store that is gone."""
    for path in _files(store_id):
        path.unlink(missing_ok=True)
