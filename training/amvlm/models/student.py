"""The segmentation network that needs no text: one logit per structure, so structures may overlap."""

from __future__ import annotations

import math

import torch
from monai.networks.nets import UNet
from torch import nn

from amvlm.config import StudentSettings


def build_student(settings: StudentSettings, structures: int, prior: float = 0.05) -> nn.Module:
    """A residual 2-D U-Net (MONAI): (B, 3, H, W) → logits (B, structures, H, W).

    MONAI's U-Net ends in as many full-resolution channels as it has outputs; with two structures that starves it,
    so it ends in ``channels[0]`` features here, of which whole channels are dropped in training, and a 1×1 convolution
    reads them out, starting at the ``prior``.
    """
    unet = UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=settings.channels[0],
        channels=settings.channels,
        strides=(2,) * (len(settings.channels) - 1),
        num_res_units=2,
        norm="batch",
    )
    read = nn.Conv2d(settings.channels[0], structures, 1)
    with torch.no_grad():
        read.bias.fill_(math.log(prior / (1 - prior)))  # type: ignore[union-attr]
    return nn.Sequential(unet, nn.ReLU(), nn.Dropout2d(settings.dropout), read)
