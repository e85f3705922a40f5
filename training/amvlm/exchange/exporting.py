"""Accepted labels as files that every other program opens."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from amvlm.errors import UserError
from amvlm.exchange.layouts import Item, read_layout
from amvlm.imaging import Volume, nifti_bytes, write_volume
from amvlm.imaging.dicomseg import write_dicom_seg
from amvlm.imaging.writers import WRITTEN_SUFFIXES
from amvlm.store import Case, LabelStore
from amvlm.store.store import sha256_of


def export_labels(store: LabelStore, into: str | Path, suffix: str = ".nii.gz") -> int:
    """Write every accepted label as ``<case id>_<structure><suffix>`` with a ``labels.json`` beside them.

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
    """
    into = Path(into)
    if suffix not in WRITTEN_SUFFIXES:
        raise UserError(f"labels are not written as {suffix}", remedy=f"Choose one of {', '.join(WRITTEN_SUFFIXES)}.")
    if into.exists() and any(into.iterdir()):
        raise UserError("the folder is not empty", file=into, remedy="Choose a new folder, so nothing is overwritten.")
    into.mkdir(parents=True, exist_ok=True)
    rows = []
    for revision in store.snapshot().revisions:
        row = {
            "case": revision.case_id,
            "structure": revision.structure,
            "kind": revision.kind,
            "source": revision.source,
        }
        if revision.kind == "accepted":
            name = f"{revision.case_id}_{'-'.join(revision.structure.split())}{suffix}"
            case = store.case(revision.case_id)
            write_volume(into / name, Volume(store.read_mask(revision), case.affine, case.sides_known, case.planar))
            row["file"] = name
        rows.append(row)
    description = {"note": "Research use only, not for diagnosis.", "labels": rows}
    (into / "labels.json").write_text(json.dumps(description, indent=1), "utf-8")
    return sum("file" in row for row in rows)


def export_dicom_seg(store: LabelStore, source: str | Path, into: str | Path) -> int:
    """Write one DICOM Segmentation for each series in ``source`` that is a case with accepted labels.

    A study holds no identifiers, so the series that the scans came from is needed: it is recognised by its voxels.

    Returns
    -------
    int
        Number of objects written, ``<case id>.dcm``.
    """
    into = Path(into)
    items = [item for item in read_layout(Path(source), "").items if item.series is not None]
    if not items:
        raise UserError("it holds no DICOM series", file=source, remedy="Choose the folder that the scans came from.")
    into.mkdir(parents=True, exist_ok=True)
    by_case = store.snapshot().by_case()
    written = 0
    for item in items:
        case = _case_of(item, store)
        accepted = {} if case is None else by_case.get(case.case_id, {})
        masks = {name: store.read_mask(r) for name, r in accepted.items() if r.kind == "accepted"}
        if case is not None and item.series is not None and any(np.any(mask) for mask in masks.values()):
            write_dicom_seg(into / f"{case.case_id}.dcm", masks, item.series)
            written += 1
    return written


def _case_of(item: Item, store: LabelStore) -> Case | None:
    volume = item.read()
    return None if volume.planar else store.case_of_image(sha256_of(packed(volume)))


def packed(volume: Volume) -> bytes:
    """The bytes under which a study keeps a volume."""
    return gzip.compress(nifti_bytes(volume), 6, mtime=0)
