"""One study in one folder: an SQLite index beside immutable images and masks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging import Volume, read_volume
from amvlm.paths import check_name, inside
from amvlm.store import cases, drafts, editing, labels, quality
from amvlm.store.files import ImageFolder, MaskFolder, sha256_of
from amvlm.store.index import FILE_NAME, Index
from amvlm.store.labels import Judgement
from amvlm.store.names import user_secret
from amvlm.store.records import Case, Mark, NewCase, Quality, Revision, Snapshot, Source, Split, State, Structure

__all__ = ["FOLDERS", "LabelStore", "sha256_of"]

FOLDERS = ("images", "labels", "models", "runs")


class LabelStore:
    """Opens a study; every call is one short transaction, so viewer and trainer can share it.

    Parameters
    ----------
    folder : Path
        The study's folder, holding ``store.sqlite``.

    Raises
    ------
    UserError
        If there is no study, it is of a later version, or another program changed its index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = Index(self.folder)
        self.store_id = self.index.store_id()
        for name in ("images", "labels"):
            inside(self.folder, name)
        self.images = ImageFolder(self.folder)
        self.masks = MaskFolder(self.folder / "labels")
        self._author = labels.author_of(self.store_id)
        self._checked_images: set[str] = set()

    @classmethod
    def create(cls, folder: str | Path) -> LabelStore:
        """Make an empty study in a new or empty folder, readable by this user alone.

        Raises
        ------
        UserError
            If something else is there, or the folder cannot be written.
        """
        folder = Path(folder)
        try:
            foreign = folder.exists() and any(
                path.name not in FOLDERS and not path.name.endswith(".part") for path in folder.iterdir()
            )
            if foreign:
                raise UserError("the folder is not empty", file=folder, remedy="Choose a new folder for the study.")
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in FOLDERS:
                (folder / name).mkdir(exist_ok=True, mode=0o700)
            Index.create(folder)
        except FileExistsError as error:
            raise UserError("the folder is not empty", file=folder, remedy="Choose a new folder.") from error
        except OSError as error:
            raise UserError(
                f"the study could not be made ({error.strerror})", file=folder,
                remedy="Check free disk space and that you may write to that folder.",
            ) from error  # fmt: skip
        return cls(folder)

    @classmethod
    def open_or_create(cls, folder: str | Path) -> LabelStore:
        """Open a study, or make it; of two programs that make it at once, the slower one opens it."""
        folder = Path(folder)
        if not (folder / FILE_NAME).is_file():
            try:
                return cls.create(folder)
            except UserError:
                if not (folder / FILE_NAME).is_file():
                    raise
        return cls(folder)

    def remove_if_empty(self) -> None:
        """Remove a study that holds nothing at all; anything foreign in its folder stays, and so does the folder."""
        with self.index.write() as connection:
            tables = ("case_", "structure", "revision")
            if any(connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables):
                return
            (self.folder / FILE_NAME).unlink()
        with contextlib.suppress(OSError):
            for name in FOLDERS:
                (self.folder / name).rmdir()
            self.folder.rmdir()

    def cache_folder(self, name: str) -> Path:
        """A folder for what can be made again from the study; it may be deleted at any time.

        Its name holds a secret of this user, so that nobody who hands on a study can plant files in it. The environment
        variable ``AMVLM_CACHE`` names another place, such as a scratch disk.
        """
        elsewhere = os.environ.get("AMVLM_CACHE")
        if elsewhere:
            folder = Path(elsewhere) / check_name(name)
        else:
            folder = inside(self.folder, "cache", user_secret(self.store_id), check_name(name))
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"the study's cache could not be made ({error.strerror})", file=self.folder,
                remedy="Check free disk space and that you may write to the study.",
            ) from error  # fmt: skip
        return folder

    # -- cases and structures -------------------------------------------------------------------------

    def cases(self, split: Split | None = None) -> list[Case]:
        """All cases in order of their ids, or those of one split."""
        with self.index.read() as connection:
            return cases.select_cases(connection, "?1 IS NULL OR split = ?1", split)

    def case(self, case_id: str) -> Case:
        """A case by its id."""
        with self.index.read() as connection:
            cases.require_case(connection, case_id)
            return cases.select_cases(connection, "case_id = ?1", case_id)[0]

    def case_of_image(self, image_sha256: str) -> Case | None:
        """The case whose image has these bytes, if any."""
        with self.index.read() as connection:
            matches = cases.select_cases(connection, "image_sha256 = ?1", image_sha256)
        return matches[0] if matches else None

    def read_image(self, case: Case) -> Volume:
        """The case's image on its own grid, with the affine that its masks carry.

        Its bytes are compared with what was imported once for every opened store.

        Raises
        ------
        UserError
            If the image is missing, was changed on disk, or is not the one that the index describes.
        """
        if case.image_sha256 in self._checked_images:
            path = self.images.path(case.image_file)
        else:
            path = self.images.checked(case.image_file, case.image_sha256)
            self._checked_images.add(case.image_sha256)
        volume = read_volume(path)
        if volume.shape != case.shape:
            raise UserError(
                f"the index says that this image has shape {case.shape}, and it has {volume.shape}", file=path,
                remedy="Another program changed the index: restore it from a backup.",
            )  # fmt: skip
        return dataclasses.replace(
            volume, affine=case.affine, sides_known=case.sides_known, planar=case.planar, modality=case.modality
        )

    def structures(self) -> list[Structure]:
        """Structures in the order in which they were added."""
        with self.index.read() as connection:
            return cases.select_structures(connection)

    def add_structure(self, name: str, aliases: Iterable[str] = (), prompts: Iterable[str] = ()) -> None:
        """Add a structure, or add wordings to one that is there."""
        with self.index.write() as connection:
            cases.merge_structure(connection, name, aliases, prompts)

    def rename_structure(self, name: str, new: str) -> None:
        """Give a structure another name; labels, drafts and reports go along, and the old name stays an alias."""
        with self.index.write() as connection:
            editing.rename_structure(connection, name, new)

    def set_aliases(self, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add and remove further names of a structure."""
        with self.index.write() as connection:
            editing.set_aliases(connection, name, add, remove)

    def set_colour(self, name: str, colour: str) -> None:
        """Change a structure's colour, "#rrggbb"."""
        with self.index.write() as connection:
            editing.set_colour(connection, name, colour)

    def set_captions(self, reports: Mapping[str, Sequence[str]], structure: str | None = None) -> None:
        """Replace what the reports of some cases say, of one structure or of the whole scan, in one transaction.

        Parameters
        ----------
        reports : mapping
            Case id → texts in the patient's sides; none remove the report.
        """
        with self.index.write() as connection:
            for case_id, texts in reports.items():
                editing.set_captions(connection, case_id, structure, texts)

    def captions(self) -> dict[str, list[tuple[str | None, str]]]:
        """Case id → [(structure or None, text)], volume scope, in the patient's sides."""
        with self.index.read() as connection:
            return cases.select_captions(connection)

    def references(self) -> dict[tuple[str, str], str]:
        """(case id, structure) → mask sha256 of an expert mask: measured against, never trained on."""
        with self.index.read() as connection:
            return cases.select_references(connection)

    def read_reference(self, case: Case, structure: str) -> NDArray[np.uint8] | None:
        """The expert mask of a case on the image's storage grid, uint8 in {0, 1}; None without one."""
        sha256 = self.references().get((case.case_id, structure))
        return None if sha256 is None else self._mask(sha256, case)

    def add_import(self, structures: Iterable[Structure], new_cases: Sequence[NewCase]) -> list[Case | None]:
        """Add a whole import in one transaction; its files are in place already.

        Returns
        -------
        list of Case or None
            One for each new case: None where its image is in the study already.

        Raises
        ------
        UserError
            If a file of it is gone; nothing is added then.
        """
        groups: dict[str, str] = {}
        added: list[Case | None] = []
        with self.index.write() as connection:
            for structure in structures:
                cases.merge_structure(connection, structure.name, structure.aliases, structure.prompts)
            for new in new_cases:
                case = cases.insert_case(connection, new, groups)
                added.append(case)
                if case is None:
                    continue
                self._require_files([case.image_file], [*new.references.values(), *new.labels.values()])
                for name, sha256 in new.labels.items():
                    judgement = Judgement(
                        case.case_id, name, "accepted", sha256, source="imported", author=self._author
                    )
                    labels.insert_judgement(connection, judgement, parent=None)
        return added

    def _require_files(self, image_files: Iterable[str], mask_hashes: Iterable[str]) -> None:
        """Inside a transaction that may write, when nobody cleans up: what the rows will name is there."""
        paths = [*map(self.images.path, image_files), *map(self.masks.path, mask_hashes)]
        for path in paths:
            if not path.is_file():
                raise UserError("a file was removed while it was being added", file=path, remedy="Try again.")

    # -- labels ---------------------------------------------------------------------------------------

    def accept(
        self,
        case_id: str,
        structure: str,
        mask: NDArray[Any],
        *,
        prompt: str = "",
        source: Source = "by hand",
        model_fingerprint: str = "",
        edited_voxels: int = 0,
        author: str | None = None,
    ) -> Revision:
        """Keep a mask as the judgement of the whole volume; returns once it cannot be lost.

        Parameters
        ----------
        mask : ndarray, uint8 or bool in {0, 1}, shape of the case's image (its own storage order)
        """
        case = self.case(case_id)
        grid = Volume(np.broadcast_to(np.uint8(0), case.shape), case.affine, case.sides_known, case.planar)
        judgement = Judgement(
            case_id, structure, "accepted", None, prompt, source, model_fingerprint, edited_voxels,
            author or self._author,
        )  # fmt: skip
        with self.index.read() as connection:  # before the mask is kept: what is refused leaves nothing behind
            labels.require_fit(connection, judgement)
        return self._judge(dataclasses.replace(judgement, mask_sha256=self.masks.add(mask, grid)))

    def mark_absent(
        self, case_id: str, structure: str, *, prompt: str = "", source: Source = "by hand", author: str | None = None
    ) -> Revision:
        """Record that the structure is not in this volume."""
        return self._judge(
            Judgement(case_id, structure, "absent", prompt=prompt, source=source, author=author or self._author)
        )

    def _judge(self, judgement: Judgement) -> Revision:
        with self.index.write() as connection:
            current = labels.select_current(connection, judgement.case_id, judgement.structure)
            self._require_files([], [judgement.mask_sha256] if judgement.mask_sha256 else [])
            return labels.insert_judgement(connection, judgement, current.revision_id if current else None)

    def undo(self, case_id: str, structure: str, author: str | None = None) -> Revision:
        """Go back to the judgement before the current one, as a new revision; nothing is deleted."""
        with self.index.write() as connection:
            cases.require(connection, case_id, structure)
            current = labels.select_current(connection, case_id, structure)
            if current is None:
                raise UserError(f"{structure} has no label to undo in {case_id}")
            before = labels.select_revision(connection, current.parent) if current.parent is not None else None
            content = before or current
            return labels.insert_judgement(
                connection,
                Judgement(
                    case_id, structure, before.kind if before else "withdrawn",
                    before.mask_sha256 if before else None, content.prompt, content.source,
                    content.model_fingerprint, 0, author or self._author,
                ),
                before.parent if before else None,
            )  # fmt: skip

    def restore(self, revision_id: int, author: str | None = None) -> Revision:
        """Make an earlier revision count again, as a new one whose parent is the one that counts now."""
        with self.index.write() as connection:
            old = labels.select_revision(connection, revision_id)
            if old is None:
                raise UserError(f"the study has no revision {revision_id}", remedy="See: amvlm history.")
            if old.kind == "withdrawn":
                raise UserError("that revision withdrew a label: there is nothing to restore",
                                remedy="Choose an accepted or absent one.")  # fmt: skip
            current = labels.select_current(connection, old.case_id, old.structure)
            return labels.insert_judgement(
                connection,
                Judgement(
                    old.case_id, old.structure, old.kind, old.mask_sha256, old.prompt, old.source,
                    old.model_fingerprint, 0, author or self._author,
                ),
                current.revision_id if current else None,
            )  # fmt: skip

    def mark(self, case_id: str, structure: str, state: Mark) -> None:
        """Set aside a case without a label: skipped, rejected, or back to unknown."""
        with self.index.write() as connection:
            labels.set_mark(connection, case_id, structure, state)

    def state(self, case_id: str, structure: str) -> State:
        """The state of one pair."""
        return self.states().get((case_id, structure), "unknown")

    def states(self) -> dict[tuple[str, str], State]:
        """(case id, structure) → state; a pair that is not there is unknown."""
        with self.index.read() as connection:
            return labels.select_states(connection)

    def current(self, case_id: str, structure: str) -> Revision | None:
        """The revision that counts now: accepted or absent; None where the structure is unknown."""
        with self.index.read() as connection:
            return labels.select_current(connection, case_id, structure)

    def require(self, case_id: str, structure: str) -> None:
        """Refuse a case or a structure that the study does not have, each by its own sentence."""
        with self.index.read() as connection:
            cases.require(connection, case_id, structure)

    def history(self, case_id: str, structure: str) -> list[Revision]:
        """Every revision of a case and structure, oldest first."""
        with self.index.read() as connection:
            return labels.select_history(connection, case_id, structure)

    def snapshot(self) -> Snapshot:
        """The accepted and absent revisions at this moment."""
        with self.index.read() as connection:
            return Snapshot(self.store_id, tuple(labels.select_counting(connection)))

    def read_mask(self, revision: Revision) -> NDArray[np.uint8]:
        """The mask of a revision, on the image's storage grid; zeros for an absent one."""
        case = self.case(revision.case_id)
        if revision.mask_sha256 is None:
            return np.zeros(case.shape, dtype=np.uint8)
        return self._mask(revision.mask_sha256, case)

    def _mask(self, sha256: str, case: Case) -> NDArray[np.uint8]:
        return self.masks.read(sha256, case.shape).array.astype(np.uint8, copy=False)

    def record_consumed(self, run: str, snapshot: Snapshot) -> None:
        """Note which revisions a run learned from."""
        rows = [(run, revision.revision_id) for revision in snapshot.revisions]
        with self.index.write() as connection:
            connection.executemany("INSERT OR IGNORE INTO consumed (run, revision_id) VALUES (?, ?)", rows)

    # -- drafts and quality ---------------------------------------------------------------------------

    def save_draft(self, case_id: str, structure: str, slices: Mapping[int, NDArray[np.uint8]]) -> None:
        """Autosave the touched slices, indexed along the last storage axis, each of shape (I, J)."""
        with self.index.write() as connection:
            drafts.save_slices(connection, case_id, structure, slices)

    def load_draft(self, case_id: str, structure: str) -> dict[int, NDArray[np.uint8]]:
        """The autosaved slices: index along the last storage axis → plane of shape (I, J)."""
        shape = self.case(case_id).shape
        with self.index.read() as connection:
            return drafts.load_slices(connection, case_id, structure, shape)

    def discard_draft(self, case_id: str, structure: str) -> None:
        """Forget unsaved work; a label that counts stays."""
        with self.index.write() as connection:
            drafts.discard_slices(connection, case_id, structure)

    def save_quality(self, qualities: Iterable[Quality]) -> None:
        """Keep what was seen of pseudo-labels, replacing what an earlier model gave."""
        with self.index.write() as connection:
            quality.save_quality(connection, qualities)

    def quality(self) -> dict[tuple[str, str], Quality]:
        """(case id, structure) → what the newest look at its pseudo-label gave."""
        with self.index.read() as connection:
            return quality.select_quality(connection)
