"""New cases on their way into a study: files first, the rows that name them last, nothing at all if that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.exchange.layouts import Item
from amvlm.imaging import Volume
from amvlm.store import Case, LabelStore, NewCase, Structure
from amvlm.store.files import ImageFolder
from amvlm.store.index import FILE_NAME
from amvlm.store.store import sha256_of
from amvlm.store.verify import leftovers


class Arrivals:
    """The cases of one import.

    The study is made when the first image arrives: an import of which every file is refused leaves nothing behind.

    Parameters
    ----------
    into : Path
        The study's folder.
    """

    def __init__(self, into: Path) -> None:
        self._into = into
        self._is_new = not (into / FILE_NAME).is_file()
        self._store = None if self._is_new else LabelStore(into)
        self._known = {case.image_sha256 for case in self._store.cases()} if self._store else set()
        self._cases: list[tuple[NewCase, Item]] = []
        self._written: set[Path] = set()
        self.repeated: list[Item] = []

    @property
    def store(self) -> LabelStore:
        if self._store is None:
            self._store = LabelStore.open_or_create(self._into)
        return self._store

    def has(self, content: bytes) -> bool:
        """True when that image is in the study, or has arrived already."""
        return sha256_of(content) in self._known

    def keep_image(self, content: bytes, suffix: str) -> str:
        """Write an image into the study; its hash."""
        sha256 = self.store.images.add(content, suffix)
        self._written.add(self.store.images.path(ImageFolder.file_of(sha256, suffix)))
        self._known.add(sha256)
        return sha256

    def keep_mask(self, mask: NDArray[np.uint8], volume: Volume) -> str:
        """Write a mask of an image into the study; its hash."""
        voxels = np.broadcast_to(np.uint8(0), volume.shape)
        grid = Volume(voxels, rounded_affine(volume), volume.sides_known, volume.planar)
        sha256 = self.store.masks.add(mask, grid)
        self._written.add(self.store.masks.path(sha256))
        return sha256

    def add(self, case: NewCase, item: Item) -> None:
        self._cases.append((case, item))

    def commit(self, structures: Iterable[Structure]) -> list[tuple[Case, NewCase, Item]]:
        """Add all cases in one transaction; those whose image was not in the study, with their new ids."""
        if not self._cases:
            return []
        added = self.store.add_import(structures, [new for new, _ in self._cases])
        both = list(zip(added, self._cases, strict=True))
        self.repeated += [item for case, (_, item) in both if case is None]
        return [(case, new, item) for case, (new, item) in both if case is not None]

    def withdraw(self) -> None:
        """Remove the files that arrived and that no row names, and the study if this import made it."""
        if self._store is None:
            return
        with contextlib.suppress(UserError, OSError):  # what stays is a leftover that `verify --clean` removes
            with self._store.index.write():
                for finding in list(leftovers(self._store)):
                    if finding.path in self._written:
                        finding.path.unlink()
            if self._is_new:
                self._store.remove_if_empty()


def rounded_affine(volume: Volume) -> NDArray[np.float64]:
    """The affine after the one rounding to float32 that NIfTI brings; masks and image share it."""
    return volume.affine.astype(np.float32).astype(np.float64)
