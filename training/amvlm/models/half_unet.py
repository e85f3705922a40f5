"""A U-Net that works at half resolution: a third of the cost of full resolution at equal quality on a CPU.

Pixels are folded into channels (pixel-unshuffle) before the first convolution and unfolded after the last, so nothing
is thrown away. Batch norm and nearest-neighbour upsampling: on a CPU instance and group norm cost more per step and
start far more slowly (ACDC, 90 CPU-seconds: 0.753 with batch norm, 0.566 and 0.299 without).

Most of a U-Net's products lie in the first convolution after each concatenation. With ``decoder="sum"`` a 1×1
convolution narrows the coarse features before they are upsampled, and the fine ones are added to them: a step takes two
thirds of the time, and the network is better at equal time (ACDC, 120 CPU-seconds, validation: 0.822 against 0.800).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class HalfUNet(nn.Module):
    """Image (B, C, H, W) → logits (B, K, H, W); sides are multiples of 2 to the number of levels.

    Parameters
    ----------
    inputs : int
        Channels of the image.
    outputs : int
        Channels of the logits.
    channels : sequence of int
        Width of each level, the first at half resolution.
    decoder : {"concat", "sum"}
        How coarse features meet fine ones: side by side, or narrowed and added.
    extra : int
        Further channels that each level of the decoder reads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        decoder: Literal["concat", "sum"] = "concat",
        extra: int = 0,
    ) -> None:
        super().__init__()
        below = [4 * inputs, *channels[:-1]]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(below, channels, strict=True))
        pairs = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        summed = decoder == "sum"
        self.up = nn.ModuleList(_block((fine if summed else coarse + fine) + extra, fine) for coarse, fine in pairs)
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for coarse, fine in pairs) if summed else None
        self.read = nn.Conv2d(channels[0], 4 * outputs, 1)

    def levels(self, image: Tensor) -> list[Tensor]:
        """The encoder's features, finest first; the last is the bottleneck."""
        x = F.pixel_unshuffle(image, 2)
        kept: list[Tensor] = []
        for depth, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if depth else x)
            kept.append(x)
        return kept

    def rise(self, depth: int, x: Tensor, fine: Tensor, *extra: Tensor) -> Tensor:
        """Level ``depth`` of the decoder: the level below, upsampled, with the encoder's features and any extra."""
        if self.narrow is None:
            parts = [F.interpolate(x, scale_factor=2.0, mode="nearest"), fine, *extra]
        else:
            parts = [F.interpolate(self.narrow[depth](x), scale_factor=2.0, mode="nearest") + fine, *extra]
        above: Tensor = self.up[depth](torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        return above

    def unfolded(self, x: Tensor) -> Tensor:
        """Logits at full resolution from the last level's features."""
        return F.pixel_shuffle(self.read(x), 2)

    def forward(self, image: Tensor) -> Tensor:
        kept = self.levels(image)
        x = kept[-1]
        for depth, fine in enumerate(kept[-2::-1]):
            x = self.rise(depth, x, fine)
        return self.unfolded(x)
