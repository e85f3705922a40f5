"""A study on the plan's grid: made once, in parallel, and mapped from disk afterwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amvlm.imaging import Volume
from amvlm.imaging.regrid import Sides, resampled_labels
from amvlm.learning.cache import keep_array, kept_array
from amvlm.learning.patches import PreparedCase
from amvlm.models.scan import Spacing, plan_input, plan_shape, stack_of
from amvlm.planning import Plan
from amvlm.store import Case, LabelStore, Revision

_VERSION = 1
_WORKERS = 4


class PreparedStudy:
    """Images and labels of a store as :class:`PreparedCase`.

    The cache lies in :meth:`LabelStore.cache_folder`, named by what the arrays depend on: the image's hash, the plan's
    grid and normalisation, and for labels the masks' hashes. What is cut or of another shape is made again.
    """

    def __init__(self, store: LabelStore, plan: Plan) -> None:
        self._store, self._plan = store, plan
        parts = (plan.axis, plan.spacing_mm, plan.channels, plan.normalisation.model_dump_json())
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
        self._folder = store.cache_folder(f"plan-v{_VERSION}-{digest}")
        self._cases: dict[str, Case] = {}

    def prepare(self, cases: Sequence[Case]) -> Iterator[int]:
        """Make the images that are missing; yields how many cases are ready."""
        self._cases |= {case.case_id: case for case in cases}
        missing = [case for case in cases if self._kept_image(case) is None]
        done = len(cases) - len(missing)
        with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1), "preparing") as pool:
            for finished in as_completed([pool.submit(self._make, case) for case in missing]):
                finished.result()
                done += 1
                yield done

    def case(self, case_id: str, revisions: Mapping[str, Revision]) -> PreparedCase:
        """A prepared case with the judgements at hand, by structure; without any it is unlabelled."""
        case = self._cases[case_id]
        image: NDArray[np.float16] = np.load(self._image_path(case), mmap_mode="r")
        names = self._plan.structures
        known = np.array([float(name in revisions) for name in names], np.float32)
        return PreparedCase(case_id, image, self._labels(case, revisions), known, self.spacing(case_id))

    def spacing(self, case_id: str) -> Spacing:
        """Spacing of a case on the plan's grid, mm."""
        case = self._cases[case_id]
        stack, own = stack_of(grid_of(case), self._plan.axis)
        return plan_shape(stack.shape, own, self._plan)[1]

    def _labels(self, case: Case, revisions: Mapping[str, Revision]) -> NDArray[np.uint8]:
        shape = self._shape(case)
        channels = 1 if self._plan.exclusive else len(self._plan.structures)
        used = [revisions.get(name) for name in self._plan.structures]
        if all(revision is None or revision.mask_sha256 is None for revision in used):
            return np.broadcast_to(np.uint8(0), (shape[0], channels, *shape[1:]))
        parts = [None if revision is None else revision.mask_sha256 for revision in used]
        digest = hashlib.sha256(repr((self._plan.exclusive, parts)).encode()).hexdigest()[:16]
        path = self._folder / f"labels-{case.image_sha256[:16]}-{digest}.npy"
        wanted = (shape[0], channels, *shape[1:])
        labels = kept_array(path, np.uint8, wanted)
        if labels is None:
            nothing = np.zeros(case.shape, np.uint8)
            masks = [nothing if revision is None else self._store.read_mask(revision) for revision in used]
            image = grid_of(case)
            stacks = [stack_of(image.with_array(mask), self._plan.axis)[0] for mask in masks]
            keep_array(path, resampled_labels(stacks, shape, self._plan.exclusive))
            labels = np.load(path, mmap_mode="r")
        return labels

    def _shape(self, case: Case) -> Sides:
        stack, own = stack_of(grid_of(case), self._plan.axis)
        return plan_shape(stack.shape, own, self._plan)[0]

    def _kept_image(self, case: Case) -> NDArray[np.float16] | None:
        slices, rows, columns = self._shape(case)
        return kept_array(self._image_path(case), np.float16, (slices, self._plan.channels, rows, columns))

    def _image_path(self, case: Case) -> Path:
        return self._folder / f"{case.image_sha256}.npy"

    def _make(self, case: Case) -> None:
        planes, _ = plan_input(self._store.read_image(case), self._plan)
        keep_array(self._image_path(case), planes.numpy().astype(np.float16))


def grid_of(case: Case) -> Volume:
    """A case's grid without its voxels: zeros that take no memory."""
    nothing = np.broadcast_to(np.uint8(0), case.shape)
    return Volume(nothing, case.affine, case.sides_known, case.planar, case.modality)

