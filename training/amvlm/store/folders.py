"""Folders that are saved whole, and removed file by file: no name from outside ever removes a tree.

A save writes ``.<name>.<uuid>.part`` and swaps it in by two renames. A crash between the two leaves no ``<name>``, but
``.<name>.old``, which :func:`standing` finds: at every instant one complete folder stands under the name.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from amvlm.errors import UserError
from amvlm.imaging import write_bytes_atomically
from amvlm.imaging.writers import fsync_folder
from amvlm.paths import check_name, inside
from amvlm.store.locks import FileLock, held

MODEL_FILES = frozenset({"config.json", "model.safetensors", "tokenizer.json", "card.json"})
_NEEDED = MODEL_FILES - {"tokenizer.json"}
CHECKPOINT_FILES = frozenset({"state.json", "tensors.safetensors"})
_PART_FILE = re.compile(r"\.[0-9a-f]{32}\.part")
_PART_FOLDER = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_OLD_FOLDER = re.compile(r"\.(.+)\.old")
_LOCK = ".lock"


def is_folder(path: Path) -> bool:
    """True for a folder that is no link."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def make_private(folder: Path) -> Path:
    """Make a folder for this user alone; one that is a link is refused.

    Raises
    ------
    UserError
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "its name cannot be used"
        raise UserError(
            f"the folder could not be made ({why})", file=folder, remedy="Check free disk space and permissions."
        ) from error
    if not is_folder(folder):
        raise UserError("this is a link, not a folder", file=folder, remedy="Replace it with a folder.")
    return folder


def remove_files(folder: Path, names: frozenset[str]) -> bool:
    """Remove the known files of a folder, half-written ones, and then the folder if nothing else is in it.

    A link is unlinked, never followed. Returns whether the folder is gone.
    """
    if not is_folder(folder):
        return not os.path.lexists(folder)
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name in names or _PART_FILE.fullmatch(entry.name):
                entry.unlink()
        folder.rmdir()
    except OSError:
        return False
    return True


def is_model_folder(folder: Path) -> bool:
    """True for a folder that holds a whole model and nothing else, no link among it."""
    if not is_folder(folder):
        return False
    found = set()
    for entry in folder.iterdir():
        if not stat.S_ISREG(entry.lstat().st_mode):
            return False
        if not _PART_FILE.fullmatch(entry.name):
            found.add(entry.name)
    return found >= _NEEDED and found <= MODEL_FILES


def check_replaceable(folder: Path) -> None:
    """Refuse to put a model where something other than a model is.

    Raises
    ------
    UserError
    """
    if os.path.lexists(folder) and not is_model_folder(folder):
        raise UserError(
            "there is something else under this model's name", file=folder, remedy="Choose another name for the model."
        )


def model_target(study: Path, name: str) -> Path:
    """Where a model of this name will be saved; call it before the work, too.

    Raises
    ------
    UserError
        If the name is no plain name, or something other than a model has it.
    """
    folder = inside(study, "models", check_name(name, "model name"))
    check_replaceable(folder)
    return folder


def standing(folder: Path) -> Path:
    """Where the model of this name is: the folder, or its old version after a save that was cut off in its swap."""
    old = _old(folder)
    return old if not os.path.lexists(folder) and is_model_folder(old) else folder


def standing_models(models: Path) -> dict[str, Path]:
    """Name → folder of everything that stands in ``models/``; links and hidden folders are passed over."""
    if not is_folder(models):
        return {}
    found = {path.name: path for path in models.iterdir() if is_folder(path) and not path.name.startswith(".")}
    for path in models.iterdir():
        old = _OLD_FOLDER.fullmatch(path.name)
        if old and not os.path.lexists(models / old[1]) and is_model_folder(path):
            found[old[1]] = path
    return found


def save_model_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a model's files beside the folder, then swap the two; see the module.

    Raises
    ------
    UserError
        If the disk does not take it (the model of that name, if any, is intact), or if something other than a model
        has that name.
    """
    check_replaceable(folder)
    make_private(folder.parent)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        beside.mkdir(mode=0o700)
        for name, content in files.items():
            write_bytes_atomically(beside / name, content)
        with held(folder.parent / _LOCK, "is saving a model"):
            _swap(beside, folder)
    except OSError as error:
        raise UserError(
            f"the model could not be saved ({error.strerror})", file=folder,
            remedy="Check free disk space and permissions; what had this name is unchanged.",
        ) from error  # fmt: skip
    finally:
        remove_files(beside, MODEL_FILES)


def _swap(beside: Path, folder: Path) -> None:
    """Put a new folder in the place of another; undone where the second rename fails."""
    check_replaceable(folder)
    old = _old(folder)
    if folder.exists():
        remove_files(old, MODEL_FILES)  # of an earlier crash; the folder itself stands
        folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        with suppress(OSError):  # standing() finds the old model in any case
            old.rename(folder)
        raise
    fsync_folder(folder.parent)
    remove_files(old, MODEL_FILES)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def leftovers(study: Path) -> list[Path]:
    """What kills left behind in ``models/`` and ``runs/``.

    Half-saved models, models replaced already, half-written files and checkpoints; not what a running process writes.

    Parameters
    ----------
    study : Path
        The study's folder.
    """
    return [*_of_models(study / "models"), *_of_runs(study / "runs")]


def remove_leftovers(study: Path) -> list[Path]:
    """Remove what :func:`leftovers` names, known files only; returns what is gone."""
    removed = []
    for path in leftovers(study):
        if is_folder(path):
            if remove_files(path, MODEL_FILES | CHECKPOINT_FILES):
                removed.append(path)
        else:
            try:
                path.unlink()
            except OSError:
                continue
            removed.append(path)
    return removed


def _of_models(models: Path) -> list[Path]:
    if not is_folder(models) or FileLock(models / _LOCK).holder() is not None:
        return []
    found = []
    for path in sorted(models.iterdir()):
        old = _OLD_FOLDER.fullmatch(path.name)
        if _PART_FOLDER.fullmatch(path.name) or (old and os.path.lexists(models / old[1])):
            found.append(path)
        elif is_folder(path):
            found += [entry for entry in sorted(path.iterdir()) if _PART_FILE.fullmatch(entry.name)]
    return found


def _of_runs(runs: Path) -> list[Path]:
    found: list[Path] = []
    for run in sorted(runs.iterdir()) if is_folder(runs) else []:
        if not is_folder(run) or FileLock(run / "lock").holder() is not None:
            continue
        stages = [run, *(run / stage for stage in ("align", "teach") if is_folder(run / stage))]
        checkpoints = [path for stage in stages for path in sorted(stage.glob("checkpoint-*")) if is_folder(path)]
        halves = [path for path in checkpoints if not (path / "state.json").is_file()]
        whole = [path for path in checkpoints if path not in halves]
        parts = [e for f in (*stages, *whole) for e in sorted(f.iterdir()) if _PART_FILE.fullmatch(e.name)]
        found += [*halves, *parts]
    return found
