"""What this user last did with each study: private, outside the study, a convenience that may be lost without harm."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amvlm.paths import check_store_id
from amvlm.store.names import user_folder

MOST_RECENT = 8
_LARGEST = 1 << 20
"""Bytes of a file of ours; a larger one is not read."""


_Model = TypeVar("_Model", bound=BaseModel)


class Memory(BaseModel):
    """The model, case and structure that were in use when the study was last open; "" is none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field("", max_length=200)
    case_id: str = Field("", max_length=200)
    structure: str = Field("", max_length=200)


class _Recent(BaseModel):
    model_config = ConfigDict(extra="ignore")

    folders: list[str] = Field(default_factory=list, max_length=100)


def recall(store_id: str) -> Memory:
    """What was in use; empty where nothing is known, or what is known cannot be read."""
    return _read(_file_of(store_id), Memory)


def remember(store_id: str, **changed: str) -> None:
    """Change some fields of a study's :class:`Memory`; a folder that cannot be written is passed over."""
    now = recall(store_id)
    if (new := now.model_copy(update=changed)) != now:
        _write(_file_of(store_id), new)


def recent_studies() -> list[Path]:
    """The folders of the studies opened last that are still there, newest first."""
    folders = (Path(name) for name in _read(_recent_file(), _Recent).folders)
    return [folder for folder in folders if (folder / "store.sqlite").is_file()]


def remember_study(folder: Path) -> None:
    """Put a study at the head of :func:`recent_studies`."""
    first = os.path.abspath(folder)
    others = [name for name in _read(_recent_file(), _Recent).folders if name != first]
    _write(_recent_file(), _Recent(folders=[first, *others][:MOST_RECENT]))


def _file_of(store_id: str) -> Path:
    return user_folder() / f"last-{check_store_id(store_id)}.json"


def _recent_file() -> Path:
    return user_folder() / "recent.json"


def _read(path: Path, model: type[_Model]) -> _Model:
    try:
        if path.stat().st_size > _LARGEST:
            return model()
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, RecursionError):
        return model()


def _write(path: Path, content: BaseModel) -> None:
    """Write beside the file and rename; no fsync: this is called when a case opens, and may be lost."""
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(content.model_dump_json())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
