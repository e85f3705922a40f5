"""The text mask of one volume on the plan's grid: encoded once per slice, decoded once per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from amvlm.models.planned import SURELY_NOT, Box, with_context
from amvlm.models.planned_text import Frame, PatchFeatures, PlannedFilmUNet, TextFreeFeatures
from amvlm.models.windows import Windows

MOST_FEATURE_BYTES = 10**9
"""What is kept of a volume between prompts; slices beyond it are encoded again."""
_AT_ONCE = 8
_Key = tuple[int, int, int, int, int]
"""Slice, and the box's rows and columns."""


class VolumeTextMask:
    """Reads one volume with a :class:`PlannedFilmUNet`.

    Parameters
    ----------
    network : PlannedFilmUNet
        In eval mode.
    planes : Tensor, (Z, C, H, W)
        The volume on the plan's grid, normalised.
    patches : callable
        A slice's number on that grid → the encoder's projected patches, (D, rows, columns).
    frame : Frame
        How such a slice lies in the encoder's square.
    most_bytes : int
        Bound on the features that are kept.
    """

    def __init__(
        self,
        network: PlannedFilmUNet,
        planes: Tensor,
        patches: Callable[[int], Tensor],
        frame: Frame,
        most_bytes: int = MOST_FEATURE_BYTES,
    ) -> None:
        self._network, self._planes, self._patches, self._frame = network, planes, patches, frame
        self._most, self._bytes = most_bytes, 0
        self._kept: dict[_Key, TextFreeFeatures] = {}

    @property
    def everywhere(self) -> Box:
        """The box that leaves nothing out."""
        slices, _, rows, columns = self._planes.shape
        return slice(0, slices), slice(0, rows), slice(0, columns)

    @torch.no_grad()
    def logits(self, places: list[int], text: Tensor, box: Box) -> Tensor:
        """Logits (len(places), H, W), float32 on the CPU, of one prompt; surely not outside the box.

        Parameters
        ----------
        places : list of int
            Slices of the plan's grid.
        text : Tensor, (D + width,)
            ``vlm.embed_prompt`` of the prompt.
        """
        answer = torch.full((len(places), *self._planes.shape[-2:]), SURELY_NOT)
        windows = self._windows(box)
        inside = [row for row, z in enumerate(places) if box[0].start <= z < box[0].stop]
        for rows in _parts(inside, max(1, _AT_ONCE // len(windows.corners))):
            features = self._features([places[row] for row in rows], box, windows)
            decoded = self._decoded(features, text)
            tiles = decoded.reshape(len(rows), -1, *decoded.shape[1:])
            answer[rows, box[1], box[2]] = windows.joined(tiles)
        return answer

    def prepare(self, places: list[int], box: Box) -> None:
        """Encode some slices for prompts to come."""
        windows = self._windows(box)
        inside = [z for z in places if box[0].start <= z < box[0].stop]
        for part in _parts(inside, max(1, _AT_ONCE // len(windows.corners))):
            self._features(part, box, windows)

    def _decoded(self, features: TextFreeFeatures, text: Tensor) -> Tensor:
        """Logits (windows of all slices, h, w), a few at a time."""
        answers = []
        for begin in range(0, len(features.levels[0]), _AT_ONCE):
            part = _rows(features, slice(begin, begin + _AT_ONCE))
            part = part._replace(levels=[level.float() for level in part.levels])
            answers.append(self._network.decode(part, text.expand(len(part.levels[0]), -1))[:, 0])
        return torch.cat(answers)

    def _features(self, places: list[int], box: Box, windows: Windows) -> TextFreeFeatures:
        """Of all windows of some slices; only what is not kept is encoded."""
        keys = [_key(z, box) for z in places]
        missing = [z for z, key in zip(places, keys, strict=True) if key not in self._kept]
        made = {_key(z, box): self._encoded(z, box, windows) for z in missing}
        chosen = [made[key] if key in made else self._kept[key] for key in keys]
        for key, features in made.items():
            self._keep(key, features)
        return _joined(chosen)

    @torch.no_grad()
    def _encoded(self, z: int, box: Box, windows: Windows) -> TextFreeFeatures:
        """Of all windows of one slice, in half precision."""
        device = next(self._network.parameters()).device
        image = with_context(self._planes, torch.tensor([z]), self._network.plan.context)[..., box[1], box[2]]
        tiles, patches = windows.cut(image)[0], self._patch_features(z, box, windows)
        parts = []
        for begin in range(0, len(tiles), _AT_ONCE):
            rows = slice(begin, begin + _AT_ONCE)
            seen = None if patches is None else PatchFeatures(patches.grid[rows], patches.place[rows]).to(device)
            features = self._network.encode(tiles[rows].to(device), seen)
            parts.append(features._replace(levels=[level.half() for level in features.levels]))
        return _joined(parts)

    def _patch_features(self, z: int, box: Box, windows: Windows) -> PatchFeatures | None:
        """Of every window of a slice."""
        if not self._network.reads_patches:
            return None
        plane = self._planes.shape[-2:]
        corners = [(box[1].start + row, box[2].start + column) for row, column in windows.corners]
        place = torch.stack([self._frame.place(plane, corner, windows.size) for corner in corners])
        return PatchFeatures(self._patches(z).expand(len(corners), -1, -1, -1), place)

    def _keep(self, key: _Key, features: TextFreeFeatures) -> None:
        """Keep a slice's features while there is room; those of another box go first."""
        size = _bytes(features)
        others = [other for other in self._kept if other[1:] != key[1:]]
        while others and self._bytes + size > self._most:
            self._bytes -= _bytes(self._kept.pop(others.pop(0)))
        if self._bytes + size <= self._most:
            self._kept[key] = features
            self._bytes += size

    def _windows(self, box: Box) -> Windows:
        rows, columns = self._network.plan.patch[1:]
        return Windows((box[1].stop - box[1].start, box[2].stop - box[2].start), (rows, columns))


def _key(z: int, box: Box) -> _Key:
    return z, box[1].start, box[1].stop, box[2].start, box[2].stop


def _rows(features: TextFreeFeatures, rows: slice) -> TextFreeFeatures:
    patches = features.patches
    chosen = None if patches is None else PatchFeatures(patches.grid[rows], patches.place[rows])
    return features._replace(levels=[level[rows] for level in features.levels], patches=chosen)


def _joined(parts: list[TextFreeFeatures]) -> TextFreeFeatures:
    """Several batches as one."""
    if len(parts) == 1:
        return parts[0]
    levels = [torch.cat(level) for level in zip(*(part.levels for part in parts), strict=True)]
    patches = [part.patches for part in parts if part.patches is not None]
    joined = PatchFeatures(*(torch.cat(field) for field in zip(*patches, strict=True))) if patches else None
    return TextFreeFeatures(levels, joined, parts[0].sides)


def _bytes(features: TextFreeFeatures) -> int:
    tensors = [*features.levels, *(features.patches or ())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _parts(items: list[int], count: int) -> Iterator[list[int]]:
    for begin in range(0, len(items), count):
        yield items[begin : begin + count]
