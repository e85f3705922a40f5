"""Accepted labels as files that every other program opens."""

from __future__ import annotations

import json
from pathlib import Path

from amvlm.errors import UserError
from amvlm.imaging import Volume, write_nifti
from amvlm.store import LabelStore


def export_labels(store: LabelStore, into: str | Path) -> int:
    """Write every accepted label as ``<case id>_<structure>.nii.gz`` with a ``labels.json`` beside them.

    Returns
    -------
    int
        Number of masks written. Absent structures are listed in the JSON, not written as empty masks.
    """
    into = Path(into)
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
            name = f"{revision.case_id}_{'-'.join(revision.structure.split())}.nii.gz"
            case = store.case(revision.case_id)
            write_nifti(into / name, Volume(store.read_mask(revision), case.affine, case.sides_known, case.planar))
            row["file"] = name
        rows.append(row)
    description = {"note": "Research use only, not for diagnosis.", "labels": rows}
    (into / "labels.json").write_text(json.dumps(description, indent=1), "utf-8")
    return sum("file" in row for row in rows)
