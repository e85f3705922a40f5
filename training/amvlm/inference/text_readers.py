"""The text mask of one volume: on the encoder's square, or on the grid of a model's plan."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amvlm.imaging.resample import IntensityScale, SliceGrid, slabs
from amvlm.inference.planned_reader import PlannedReader
from amvlm.models import AmvlmModel, TextMaskGenerator, pamr, text_product
from amvlm.models.planned_text import Frame, PlannedFilmUNet, projected_patches
from amvlm.models.scan import nearest_slice
from amvlm.models.text_volume import VolumeTextMask


class Slices(NamedTuple):
    """A volume as the encoder's square cuts it: ``stack`` (Z, rows, columns[, 3]) and how it is scaled."""

    grid: SliceGrid
    stack: NDArray[np.generic]
    scale: IntensityScale

    def slabs(self, indices: list[int]) -> Tensor:
        return slabs(self.stack, self.scale, self.grid, indices)


class SquareTextReader:
    """A generator on the encoder's square: features that know no text are kept, a prompt is a product with them."""

    def __init__(self, model: AmvlmModel, slices: Slices, device: torch.device) -> None:
        if not isinstance(model.generator, TextMaskGenerator):
            raise TypeError("this generator works on a plan's grid")
        self._model, self._generator, self._slices, self._device = model, model.generator, slices, device
        self._features: Tensor | None = None
        self._image: Tensor | None = None

    def prepare(self, indices: list[int], image: Tensor) -> None:
        """Compute and keep the features of some slices, (len(indices), 3, size, size)."""
        features = self._generator.features(image)
        if self._device.type != "cpu":  # half the memory; on CPUs the product is faster in fp32
            features = features.bfloat16()
        if self._features is None or self._image is None:
            count = len(self._slices.stack)
            self._features = features.new_empty(count, *features.shape[1:])
            self._image = image.new_empty(count, 1, *image.shape[2:])
        self._features[indices] = features
        self._image[indices] = image[:, 1:2]

    def logits(self, indices: list[int], text: Tensor, plane: tuple[int, int] | None) -> Tensor:
        """Logits (len(indices), 1, size, size) of a prompt, (D + width,), refined by PAMR where the model's settings
        ask for it; or on another grid of a slice's extent."""
        if self._features is None or self._image is None:
            raise ValueError("the slices are not embedded")
        whole = len(indices) == len(self._features) and indices == sorted(indices)
        chosen = slice(None) if whole else torch.tensor(indices)
        weights, bias = self._generator.text_weights(text[None])
        logits = text_product(self._features[chosen], weights, bias)
        size, settings = self._model.image_size, self._model.generator_settings
        if logits.shape[-1] != size:
            logits = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
        iterations = getattr(settings, "pamr_iterations", 0)
        if iterations:
            refined = pamr(logits.sigmoid(), self._image[chosen], iterations).clamp(1e-4, 1 - 1e-4)
            logits = refined.logit()
        return logits if plane is None else self._slices.grid.from_square(logits, plane)


class PlannedTextReader:
    """A generator on the plan's grid; where the student knows the structure, within the region that it finds.

    The logits of the last prompt are kept (float16), so that what is asked about its mask costs no second decoding.
    """

    def __init__(self, model: AmvlmModel, slices: Slices, reader: PlannedReader, device: torch.device) -> None:
        if not isinstance(model.generator, PlannedFilmUNet):
            raise TypeError("this generator works on the encoder's square")
        self._model, self._slices, self._reader, self._device = model, slices, reader, device
        self._generator = model.generator
        self._patches: dict[int, Tensor] = {}
        self._last: tuple[Tensor, bool] | None = None
        self._logits = torch.zeros(0)
        self._done = torch.zeros(0, dtype=torch.bool)

    @functools.cached_property
    def _volume(self) -> VolumeTextMask:
        return VolumeTextMask(self._generator, self._reader.planes, self._patches_of, Frame.of(self._slices.grid))

    @property
    def _depth(self) -> int:
        return len(self._reader.planes)

    def prepare(self, indices: list[int]) -> None:
        """Encode some of the scan's slices, for a structure that the student knows."""
        places = sorted({place for z in indices for place in self._around(z)[:2]})
        self._volume.prepare(places, self._reader.region)

    def logits(self, indices: list[int], text: Tensor, known: bool) -> Tensor:
        """Logits (len(indices), 1, h, w) on the plan's grid, slices as the scan's; everywhere unless ``known``."""
        if self._last is None or self._last[1] != known or not torch.equal(self._last[0], text):
            self._last = text, known
            self._logits = torch.empty(self._depth, *self._reader.planes.shape[-2:], dtype=torch.float16)
            self._done = torch.zeros(self._depth, dtype=torch.bool)
        around = [self._around(z) for z in indices]
        missing = sorted({place for lower, upper, _ in around for place in (lower, upper) if not self._done[place]})
        box = self._reader.region if known else self._volume.everywhere
        self._logits[missing] = self._volume.logits(missing, text, box).half()
        self._done[missing] = True
        lower, upper, share = (torch.tensor(part) for part in zip(*around, strict=True))
        first = self._logits[lower].float()
        if bool(share.any()):
            first = torch.lerp(first, self._logits[upper].float(), share.view(-1, 1, 1))
        return first[:, None].to(self._device)

    def _around(self, z: int) -> tuple[int, int, float]:
        """The plan's slices below and above a slice of the scan, and how far it lies towards the upper one."""
        place = min(max((z + 0.5) * self._depth / len(self._slices.stack) - 0.5, 0.0), self._depth - 1.0)
        lower = int(place)
        return lower, min(lower + 1, self._depth - 1) if place > lower else lower, place - lower

    def _patches_of(self, place: int) -> Tensor:
        """What the vision-language model says of the scan's slice nearest to one of the plan's."""
        z = nearest_slice(place, self._depth, len(self._slices.stack))
        if z not in self._patches:
            image = self._slices.slabs([z]).to(self._device)
            self._patches[z] = projected_patches(self._model.vlm, image)[0]
        return self._patches[z]
