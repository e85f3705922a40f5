"""The segmentation network that needs no text: one logit per structure, so structures may overlap."""

from __future__ import annotations

from monai.networks.nets import UNet
from torch import nn

from amvlm.config import StudentSettings


def build_student(settings: StudentSettings, structures: int) -> nn.Module:
    """A residual 2-D U-Net (MONAI): (B, 3, H, W) → logits (B, structures, H, W)."""
    network: nn.Module = UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=structures,
        channels=settings.channels,
        strides=(2,) * (len(settings.channels) - 1),
        num_res_units=2,
        norm="batch",
        dropout=settings.dropout,
    )
    return network
