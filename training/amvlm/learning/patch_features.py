"""The vision-language model's patches of a study's slices, computed once and mapped from disk afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.imaging.resample import IntensityScale, SliceGrid, slabs
from amvlm.learning.cache import keep_array, kept_array, weights_digest
from amvlm.learning.prepared import grid_of
from amvlm.models import VisionLanguageModel
from amvlm.models.planned_text import Frame, projected_patches
from amvlm.models.scan import nearest_slice
from amvlm.store import Case, LabelStore

_VERSION = 1
_SLICES = 32


class PatchFeatureStore:
    """One array (Z, D, rows, columns), float16, per image.

    The cache lies in :meth:`LabelStore.cache_folder`, named by the encoder's weights, its size and the slice axis; in
    it an array by its image's hash. What is cut or of another shape is made again.
    """

    def __init__(
        self, store: LabelStore, vlm: VisionLanguageModel, axis: int, cases: Mapping[str, Case]
    ) -> None:
        self._store, self._vlm, self._axis, self._cases = store, vlm, axis, cases
        self._size = vlm.settings.image_size
        weights = weights_digest(vlm.image_encoder, vlm.patch_head)
        self._folder = store.cache_folder(f"patches-v{_VERSION}-{self._size}-axis{axis}-{weights}")

    def prepare(self, case_ids: Sequence[str]) -> Iterator[int]:
        """Make what is missing; yields how many cases are ready."""
        for done, case_id in enumerate(case_ids):
            self._array(self._cases[case_id])
            yield done + 1

    def frame(self, case_id: str) -> Frame:
        """How the case's slices lie in the encoder's square."""
        return Frame.of(self._grid(self._cases[case_id]))

    def slice(self, case_id: str, z: int, slices: int) -> Tensor:
        """Patches (D, rows, columns) of slice ``z`` of a grid with ``slices`` slices over the scan's extent."""
        array = self._array(self._cases[case_id])
        return torch.from_numpy(np.array(array[nearest_slice(z, slices, len(array))]))

    def _array(self, case: Case) -> NDArray[np.float16]:
        """Mapped from disk, made where it is missing."""
        side = self._size // self._vlm.patch
        wanted = (self._grid(case).count, self._vlm.settings.embedding_size, side, side)
        path = self._folder / f"{case.image_sha256}.npy"
        array = kept_array(path, np.float16, wanted)
        if array is None:
            keep_array(path, self._made(case))
            array = np.load(path, mmap_mode="r")
        return array

    def _grid(self, case: Case) -> SliceGrid:
        return SliceGrid.of(grid_of(case), self._size, self._axis)

    def _made(self, case: Case) -> NDArray[np.float16]:
        volume = self._store.read_image(case)
        grid = SliceGrid.of(volume, self._size, self._axis)
        stack = grid.stack(volume.array)
        scale, device = IntensityScale.of(stack), next(self._vlm.parameters()).device
        found = []
        for begin in range(0, len(stack), _SLICES):
            image = slabs(stack, scale, grid, list(range(begin, min(len(stack), begin + _SLICES))))
            found.append(projected_patches(self._vlm, image.to(device)).cpu().numpy())
        return np.concatenate(found)
