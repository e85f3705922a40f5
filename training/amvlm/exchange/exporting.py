"""Accepted labels as files that every other program opens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amvlm.errors import UserError
from amvlm.exchange.layouts import Item, read_layout
from amvlm.imaging import Volume, write_bytes_atomically, write_volume
from amvlm.imaging.copies import study_copy
from amvlm.imaging.dicomseg import write_dicom_seg
from amvlm.imaging.writers import WRITTEN_SUFFIXES
from amvlm.paths import check_name, inside, slug
from amvlm.store import Case, LabelStore, Revision
from amvlm.store.store import sha256_of

MANIFEST = "labels.json"


def export_labels(store: LabelStore, into: str | Path, suffix: str = ".nii.gz") -> int:
    """Write every accepted label as ``<case id>_<structure><suffix>`` with a ``labels.json`` beside them.

    File names hold a plain form of the structure's name ("L5/S disc" becomes "L5-S-disc-…"); the JSON holds the true
    one. Nothing is overwritten. No identifier goes out: the files have headers of our own.

    Parameters
    ----------
    store : LabelStore
    into : path
        A new or empty folder.
    suffix : {".nii.gz", ".nii", ".nrrd", ".mha"}

    Returns
    -------
    int
        Number of masks written. Absent structures are listed in the JSON, not written as empty masks.

    Raises
    ------
    UserError
        If the folder is not empty or cannot be written, or a label is damaged: then it says what was written before.
    """
    if suffix not in WRITTEN_SUFFIXES:
        raise UserError(f"labels are not written as {suffix}", remedy=f"Choose one of {', '.join(WRITTEN_SUFFIXES)}.")
    target = _Target(Path(into))
    rows: list[dict[str, str]] = []
    for revision in store.snapshot().revisions:
        row = _row(revision)
        if revision.kind == "accepted":
            row["file"] = target.write(
                f"{_plain(revision.case_id)}_{slug(revision.structure)}", suffix,
                partial(_write_mask, store, revision),
            )  # fmt: skip
        rows.append(row)
    target.write_manifest(rows)
    return target.written


def _write_mask(store: LabelStore, revision: Revision, path: Path) -> None:
    case = store.case(revision.case_id)
    write_volume(path, Volume(store.read_mask(revision), case.affine, case.sides_known, case.planar))


def _row(revision: Revision) -> dict[str, str]:
    return {
        "case": revision.case_id, "structure": revision.structure, "kind": revision.kind, "source": revision.source,
    }  # fmt: skip


def _plain(name: str) -> str:
    """A case's id as it is; the plain form of one that another program gave."""
    try:
        return check_name(name)
    except UserError:
        return slug(name)


class _Target:
    """A new or empty folder that files are exported into: each under a name of its own, none over another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken = {MANIFEST}
        self.written = 0
        try:
            if folder.exists() and any(folder.iterdir()):
                raise UserError("the folder is not empty", file=folder,
                                remedy="Choose a new folder, so nothing is overwritten.")  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        except NotADirectoryError as error:
            raise UserError("this is a file, not a folder", file=folder, remedy="Choose a new folder.") from error
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def write(self, stem: str, suffix: str, writer: Callable[[Path], None]) -> str:
        """Write one file by ``writer(path)``; its name, which no other has even where case does not count."""
        name, number = f"{stem}{suffix}", 2
        while name.lower() in self._taken:
            name, number = f"{stem}-{number}{suffix}", number + 1
        self._taken.add(name.lower())
        path = inside(self._folder, name)
        try:
            if os.path.lexists(path):
                raise UserError("there is such a file already", file=path, remedy="Choose a new folder.")
            writer(path)
        except UserError as error:
            raise UserError(
                f"{error.what} ({self.written} files were written before)", file=error.file_name or name,
                remedy=error.remedy,
            ) from error  # fmt: skip
        except OSError as error:
            raise self._failed(error) from error
        self.written += 1
        return name

    def write_manifest(self, rows: list[dict[str, str]]) -> None:
        """The list of what was written, whole or not at all."""
        description = {"note": "Research use only, not for diagnosis.", "labels": rows}
        content = json.dumps(description, indent=1, ensure_ascii=True).encode()
        written = self.written
        self._taken.discard(MANIFEST)
        self.write(MANIFEST, "", lambda path: write_bytes_atomically(path, content, private=False))
        self.written = written

    def _failed(self, error: Exception) -> UserError:
        why = getattr(error, "strerror", None) or "its name is not possible"
        before = f"; {self.written} files were written before" if self.written else ""
        return UserError(f"the folder cannot be written ({why}{before})", file=self._folder,
                         remedy="Check free disk space, the folder's name and its permissions.")  # fmt: skip


def export_dicom_seg(store: LabelStore, source: str | Path, into: str | Path) -> int:
    """Write one DICOM Segmentation for each series in ``source`` that is a case with accepted labels.

    A study holds no identifiers, so the series that the scans came from is needed: it is recognised by its voxels. The
    objects carry the patient and study identifiers of that series, as DICOM demands: share them as you would share it.

    Parameters
    ----------
    store : LabelStore
    source, into : path
        The folder of the series; a new or empty folder.

    Returns
    -------
    int
        Number of objects written, ``<case id>.dcm``. ``labels.json`` beside them lists each label with its file, or
        why it was not written.

    Raises
    ------
    UserError
        As :func:`export_labels`.
    """
    items = [item for item in read_layout(Path(source), "").items if item.series is not None]
    if not items:
        raise UserError("it holds no DICOM series", file=source, remedy="Choose the folder that the scans came from.")
    target = _Target(Path(into))
    by_case = store.snapshot().by_case()
    outcomes: dict[str, dict[str, str]] = {}
    unreadable = 0
    for item in items:
        try:
            case = _case_of(item, store)
        except UserError:
            unreadable += 1
            continue
        if case is not None and case.case_id not in outcomes and case.case_id in by_case:
            outcomes[case.case_id] = _write_case(store, case, item, by_case[case.case_id], target)
    missing = {"left out": "no series of this folder holds its scan"
               + (f"; {unreadable} series could not be read" if unreadable else "")}  # fmt: skip
    rows = [
        {**_row(revision), **(outcomes.get(case_id, missing) if revision.kind == "accepted" else {})}
        for case_id, revisions in by_case.items() for revision in revisions.values()
    ]  # fmt: skip
    target.write_manifest(rows)
    return target.written


def _write_case(store: LabelStore, case: Case, item: Item, labels: dict[str, Revision], target: _Target
                ) -> dict[str, str]:  # fmt: skip
    masks = {name: store.read_mask(label) for name, label in labels.items() if label.kind == "accepted"}
    series: Any = item.series
    if not any(np.any(mask) for mask in masks.values()):
        return {"left out": "its masks are empty"}
    return {"file": target.write(_plain(case.case_id), ".dcm", lambda path: write_dicom_seg(path, masks, series))}


def _case_of(item: Item, store: LabelStore) -> Case | None:
    volume = item.read()
    return None if volume.planar else store.case_of_image(sha256_of(study_copy(volume)[0]))
