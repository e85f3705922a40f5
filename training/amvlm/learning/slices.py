"""Slices at network resolution, made once per image and read from disk as needed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.imaging.resample import IntensityScale, SliceGrid
from amvlm.learning.cache import keep_array, kept_array
from amvlm.store import Case, LabelStore, Revision

_VERSION = 1


def slices_from(first: int, count: int, depth: int) -> NDArray[np.intp]:
    """``count`` slice numbers from ``first`` on; those beyond the end become the last."""
    return np.minimum(np.arange(first, first + count), depth - 1)


class SliceBank:
    """Images and masks of a study as squares of ``size`` px.

    The cache lies in :meth:`LabelStore.cache_folder`, one memory-mapped float16 array (Z, 1 or 3, size, size) per
    image, named by the image's hash. What is cut or of another shape is made again.
    """

    def __init__(self, store: LabelStore, size: int, axis: int | None = None) -> None:
        self._store = store
        self.size = size
        self._axis = axis
        across = "" if axis is None else f"-axis{axis}"
        self._folder = store.cache_folder(f"v{_VERSION}-{size}{across}")
        self._cases: dict[str, Case] = {}
        self._open = functools.lru_cache(maxsize=1024)(self._load)

    def prepare(self, cases: Sequence[Case]) -> Iterator[int]:
        """Make what is missing; yields how many cases are ready."""
        for done, case in enumerate(cases):
            self._cases[case.case_id] = case
            if kept_array(self._path(case), np.float16, (None, None, self.size, self.size)) is None:
                self._make(case)
            yield done + 1

    def depth(self, case_id: str) -> int:
        """Number of slices of a case."""
        return int(self._open(case_id).shape[0])

    def slabs(self, wanted: Sequence[tuple[str, int]]) -> Tensor:
        """Network input for (case id, slice) pairs: (B, 3, size, size), float32."""
        squares = np.empty((len(wanted), 3, self.size, self.size), np.float32)
        for row, (case_id, z) in enumerate(wanted):
            planes = self._open(case_id)
            if planes.shape[1] == 3:
                squares[row] = planes[z]
            else:
                last = planes.shape[0] - 1
                for channel, index in enumerate((max(0, z - 1), z, min(last, z + 1))):
                    squares[row, channel] = planes[index, 0]
        return torch.from_numpy(squares)

    def blocks(self, wanted: Sequence[tuple[str, int]], planes: int) -> Tensor:
        """Network input of a 3-D student for (case id, first slice) pairs: (B, planes, size, size), float32.

        Slices beyond the end repeat the last one.
        """
        found = [self._open(case_id)[slices_from(first, planes, self.depth(case_id)), 0] for case_id, first in wanted]
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def planes(self, case_id: str) -> Tensor:
        """All slices of a volume, (Z, size, size), float32."""
        return torch.from_numpy(self._open(case_id)[:, 0].astype(np.float32))

    def coloured(self, case_id: str) -> bool:
        """True for a picture of three colours."""
        return int(self._open(case_id).shape[1]) == 3

    def slice_ratio(self, case_id: str) -> float:
        """Spacing of the slices over the spacing of the network's pixels."""
        return SliceGrid.of(self._store.read_image(self._cases[case_id]), self.size, self._axis).slice_ratio

    def mask(self, revision: Revision) -> NDArray[np.uint8]:
        """A revision's mask, (Z, size, size), mapped from disk: a pixel belongs to it when half of its area does.

        An ``absent`` revision gives zeros.
        """
        case = self._cases[revision.case_id]
        if revision.mask_sha256 is None:
            return np.broadcast_to(np.uint8(0), (self.depth(case.case_id), self.size, self.size))
        path = self._folder / f"mask-{revision.mask_sha256}.npy"
        if kept_array(path, np.uint8, (None, self.size, self.size)) is None:
            keep_array(path, self._square_mask(case, self._store.read_mask(revision)))
        planes: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        return planes

    def _square_mask(self, case: Case, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grid = SliceGrid.of(self._store.read_image(case).with_array(mask), self.size, self._axis)
        planes = torch.from_numpy(np.ascontiguousarray(grid.stack(mask))).float()[:, None]
        return (grid.to_square(planes)[:, 0] > 0.5).numpy().astype(np.uint8)

    def _path(self, case: Case) -> Path:
        return self._folder / f"{case.image_sha256}.npy"

    def _load(self, case_id: str) -> NDArray[np.float16]:
        planes: NDArray[np.float16] = np.load(self._path(self._cases[case_id]), mmap_mode="r")
        return planes

    def _make(self, case: Case) -> None:
        volume = self._store.read_image(case)
        grid = SliceGrid.of(volume, self.size, self._axis)
        stack = grid.stack(volume.array)
        planes = torch.from_numpy(IntensityScale.of(stack).apply(stack))
        planes = planes.movedim(-1, 1) if planes.ndim == 4 else planes[:, None]
        keep_array(self._path(case), grid.to_square(planes).numpy().astype(np.float16))
