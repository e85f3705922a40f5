"""``amvlm verify``: re-hash every file, check the index against itself, and name or remove what a kill left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amvlm.errors import UserError, printable
from amvlm.imaging.writers import is_held
from amvlm.store import folders
from amvlm.store.cases import select_cases
from amvlm.store.records import Case
from amvlm.store.store import LabelStore


@dataclass(frozen=True)
class Finding:
    """``damage`` must be mended; a ``leftover`` is what a killed program leaves, and harms nothing."""

    kind: Literal["damage", "leftover"]
    text: str
    path: Path | None = None


def verify(store: LabelStore) -> Iterator[Finding]:
    """Yield what is wrong with a study; nothing for a sound one."""
    yield from _index_findings(store)
    for sha256, case in sorted(_wanted_masks(store).items()):
        if not _mask_is_sound(store, sha256, case):
            yield Finding("damage", f"labels/{printable(sha256)}.nii.gz is missing or damaged")
    for case in store.cases():
        if not store.images.intact(case.image_file, case.image_sha256):
            yield Finding("damage", f"{case.image_file} of {case.case_id} is missing or damaged")
    yield from leftovers(store)


def _index_findings(store: LabelStore) -> Iterator[Finding]:
    with store.index.read() as connection:
        rows = connection.execute("PRAGMA integrity_check").fetchall()
        broken = connection.execute("PRAGMA foreign_key_check").fetchall()
        behind = connection.execute(
            "SELECT s.case_id, s.structure FROM state s LEFT JOIN "
            "(SELECT case_id, structure, max(revision_id) AS last FROM revision GROUP BY case_id, structure) r "
            "USING (case_id, structure) LEFT JOIN revision l ON l.revision_id = r.last "
            "WHERE coalesce(l.kind NOT IN ('withdrawn') AND s.revision_id IS NOT r.last, 0)"
        ).fetchall()
        hidden = connection.execute(
            "SELECT DISTINCT r.case_id, r.structure FROM revision r "
            "LEFT JOIN state s ON s.case_id = r.case_id AND s.structure = r.structure WHERE s.case_id IS NULL"
        ).fetchall()
    for row in rows:
        if row[0] != "ok":
            yield Finding("damage", f"index: {row[0]}")
    for row in broken:
        yield Finding("damage", f"index: row {row[1]} of {row[0]} names a missing row of {row[2]}")
    for row in (*behind, *hidden):
        where = f"{printable(row[1])} in {printable(row[0])}"
        yield Finding("damage", f"index: the state of {where} is not that of its last revision")


def _wanted_masks(store: LabelStore) -> dict[str, Case]:
    """Hash of every mask that the index names → a case that it belongs to."""
    cases = {case.case_id: case for case in store.cases()}
    with store.index.read() as connection:
        rows = connection.execute(
            "SELECT mask_sha256, case_id FROM revision WHERE mask_sha256 IS NOT NULL "
            "UNION SELECT mask_sha256, case_id FROM reference"
        ).fetchall()
    return {str(row["mask_sha256"]): cases[row["case_id"]] for row in rows if row["case_id"] in cases}


def _mask_is_sound(store: LabelStore, sha256: str, case: Case) -> bool:
    try:
        store.masks.read(sha256, case.shape)
    except UserError:
        return False
    return True


def leftovers(store: LabelStore) -> Iterator[Finding]:
    """What no row of the index names: images and masks of an import or a label that never ended, partial files."""
    masks = {f"{sha256}.nii.gz" for sha256 in _wanted_masks(store)}
    images = {Path(case.image_file).name for case in store.cases()}
    for folder, wanted, what in (("labels", masks, "label"), ("images", images, "case")):
        for path in sorted((store.folder / folder).iterdir()):
            if path.name not in wanted and not path.name.endswith(".part"):
                yield Finding("leftover", f"{folder}/{printable(path.name)} belongs to no {what}", path)
    for path in (*sorted(_partial_files(store.folder)), *folders.leftovers(store.folder)):
        where = printable(path.relative_to(store.folder))
        yield Finding("leftover", f"{where} was left by a program that ended early", path)


def _partial_files(folder: Path) -> Iterator[Path]:
    for pattern in (".*.part", "images/.*.part", "labels/.*.part"):
        yield from folder.glob(pattern)


def clean(store: LabelStore) -> list[Finding]:
    """Remove leftovers: plain files of this study only, while nobody else can write to it.

    Files that a program is still writing are left alone.

    Returns
    -------
    list of Finding
        What was removed.
    """
    removed = [Finding("leftover", "", path) for path in folders.remove_leftovers(store.folder)]
    with store.index.write() as connection:
        select_cases(connection)  # the index is readable: otherwise every file would look like a leftover
        for finding in list(leftovers(store)):
            path = finding.path
            if path is None or path.is_symlink() or not path.is_file() or is_held(path):
                continue
            with suppress(OSError):
                path.unlink()
                removed.append(finding)
    return removed
