"""The segmentation network that needs no text: one logit per structure, so structures may overlap."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.networks.nets import FlexibleUNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from safetensors.torch import load_file
from torch import Tensor, nn

from amvlm.config import StudentSettings
from amvlm.errors import UserError
from amvlm.models.backbones import EfficientNetLite0, basic_unet, flat_name, unet

DECODER = (128, 64, 32, 32, 16)
"""Channels of a FlexibleUNet's decoder; its last level is at full resolution."""
_BOTH_WAYS = 2.0

FLEXUNET_BACKBONE.register_class(EfficientNetLite0)


class Student(nn.Module):
    """A network of :mod:`monai.networks.nets`, whole channels dropped in training, and a 1×1 read-out.

    Two dimensions: a slab (B, 3, H, W) → logits (B, S, H, W) of its middle slice. Three dimensions: a block of slices
    (B, planes, H, W) → logits (B, S, planes, H, W).
    """

    def __init__(self, settings: StudentSettings, structures: int, prior: float = 0.05) -> None:
        super().__init__()
        self.settings = settings
        self.body = _body(settings)
        self.drop = (nn.Dropout2d if settings.dimensions == 2 else nn.Dropout3d)(settings.dropout)
        width = _width(settings)
        self.read = (nn.Conv2d if settings.dimensions == 2 else nn.Conv3d)(width, structures, 1)
        with torch.no_grad():
            self.read.bias.fill_(math.log(prior / (1 - prior)))  # type: ignore[union-attr]

    @property
    def planes(self) -> int:
        """How many neighbouring slices the network reads: 3, or a block's."""
        return self.settings.block or 3

    def features(self, image: Tensor) -> Tensor:
        """(B, planes, H, W) → features at full resolution, (B, C, H, W) or (B, C, planes, H, W)."""
        height, width = image.shape[-2:]
        if isinstance(self.body, FlexibleUNet):  # its encoders halve five times
            image = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")
        found: Tensor = self.body(image if self.settings.dimensions == 2 else image[:, None])
        return torch.relu(found[..., :height, :width])

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.read(self.drop(self.features(image)))
        return logits

    @torch.no_grad()
    def volume_logits(self, planes: Tensor) -> Tensor:
        """Logits (S, Z, H, W) of all slices (Z, H, W) of a volume by a 3-D student: overlapping blocks, Gaussian
        weights (MONAI's sliding window)."""
        window = (self.settings.planes, *planes.shape[1:])

        def predict(blocks: Tensor) -> Tensor:
            logits: Tensor = self(blocks[:, 0])
            return logits.float()

        found: Any = sliding_window_inference(planes[None, None], window, 1, predict, overlap=0.5, mode="gaussian")
        logits: Tensor = found[0]
        return logits


def build_student(settings: StudentSettings, structures: int, prior: float = 0.05) -> Student:
    """Make the network that the settings name, with random weights.

    Parameters
    ----------
    structures : int
    prior : float in (0, 1)
        Foreground fraction, where the read-out starts.

    Raises
    ------
    UserError
        If there is no network of that name, or not in that many dimensions.
    """
    return Student(settings, structures, prior)


def load_encoder_weights(student: Student, file: str | Path) -> None:
    """Fill a FlexibleUNet encoder, batch statistics included, from a local ``.safetensors`` file.

    Names as in MONAI's or in lukemelas' EfficientNet; a first layer for another number of channels is refused.

    Raises
    ------
    UserError
        If the network has no such encoder, or the file is not there, no safetensors, or does not fit.
    """
    remedy = "It must be a .safetensors file of this very encoder (pickled .pth files are not read: convert them)."
    if not isinstance(student.body, FlexibleUNet):
        raise UserError(
            f"{student.settings.network} has no encoder to load", remedy="Choose efficientnet-… or resnet…."
        )
    try:
        given = load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError("the encoder weights could not be read", file=file, remedy=remedy) from error
    own = student.body.encoder.state_dict()
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    found = {name: given.get(name, given.get(flat_name(name))) for name in wanted}
    wrong = [name for name, tensor in found.items() if tensor is None or tensor.shape != own[name].shape]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(found)} tensors do not fit {student.settings.network}, first {wrong[0]}",
            file=file,
            remedy=remedy,
        )
    student.body.encoder.load_state_dict({n: t for n, t in found.items() if t is not None}, strict=False)


def _width(settings: StudentSettings) -> int:
    return DECODER[-1] if settings.network in FLEXUNET_BACKBONE.register_dict else settings.channels[0]


def _body(settings: StudentSettings) -> Any:
    dims = settings.dimensions
    inputs = 3 if dims == 2 else 1
    if settings.network == "unet" or (settings.network == "auto" and dims == 3):
        return unet(dims, inputs, settings.channels, level_strides(settings))
    if settings.network in ("basic_unet", "auto") and dims == 2:
        return basic_unet(inputs, settings.channels)
    if settings.network in FLEXUNET_BACKBONE.register_dict and dims == 2:
        return FlexibleUNet(inputs, DECODER[-1], settings.network, decoder_channels=DECODER)
    raise UserError(
        f"there is no {dims}-D student {settings.network!r}",
        remedy=f"Choose unet, or in two dimensions basic_unet or {', '.join(FLEXUNET_BACKBONE.register_dict)}.",
    )


def level_strides(settings: StudentSettings) -> tuple[int | tuple[int, int, int], ...]:
    """Steps between levels: in 3-D an axis is halved only once its spacing is within a factor two of the finest.

    So thick slices are not mixed before the pixels have become as coarse (as nnU-Net plans it).
    """
    levels = len(settings.channels) - 1
    if settings.dimensions == 2:
        return (2,) * levels
    ratio, planes, found = settings.slice_ratio or 1.0, settings.planes, []
    for _ in range(levels):
        across = ratio < _BOTH_WAYS and planes % 2 == 0
        within = ratio > 1 / _BOTH_WAYS
        planes = planes // 2 if across else planes
        ratio *= (2 if across else 1) / (2 if within else 1)
        found.append((2 if across else 1, 2 if within else 1, 2 if within else 1))
    return tuple(found)
