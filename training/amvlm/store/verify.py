"""``amvlm verify``: re-hash every file and check the index against itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from amvlm.store.store import LabelStore, sha256_of


@dataclass(frozen=True)
class Finding:
    """``damage`` must be mended; ``leftover`` is what a killed program leaves, and harms nothing."""

    kind: Literal["damage", "leftover"]
    text: str


def verify(store: LabelStore) -> Iterator[Finding]:
    """Yield what is wrong with a store; nothing for a sound one."""
    with closing(sqlite3.connect(store.folder / "store.sqlite", timeout=5.0)) as connection:
        for (text,) in connection.execute("PRAGMA integrity_check"):
            if text != "ok":
                yield Finding("damage", f"index: {text}")
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield Finding("damage", f"index: row {row} of {table} names a missing row of {parent}")
        for case_id, structure in connection.execute(
            "SELECT s.case_id, s.structure FROM state s LEFT JOIN "
            "(SELECT case_id, structure, max(revision_id) AS last FROM revision GROUP BY case_id, structure) r "
            "USING (case_id, structure) LEFT JOIN revision l ON l.revision_id = r.last "
            "WHERE coalesce(l.kind NOT IN ('withdrawn') AND s.revision_id IS NOT r.last, 0)"
        ):
            yield Finding("damage", f"index: the state of {structure} in {case_id} is not that of its last revision")
        wanted = {
            sha256
            for (sha256,) in connection.execute(
                "SELECT mask_sha256 FROM revision WHERE mask_sha256 IS NOT NULL UNION SELECT mask_sha256 FROM reference"
            )
        }
    for sha256 in sorted(wanted):
        if not store.masks.intact(sha256):
            yield Finding("damage", f"labels/{sha256}.nii.gz is missing or damaged")
    for case in store.cases():
        path = store.folder / case.image_file
        if not path.is_file() or sha256_of(path.read_bytes()) != case.image_sha256:
            yield Finding("damage", f"{case.image_file} of {case.case_id} is missing or damaged")
    for path in sorted(store.masks.folder.iterdir()):
        if path.name.removesuffix(".nii.gz") not in wanted:
            yield Finding("leftover", f"labels/{path.name} belongs to no label")
