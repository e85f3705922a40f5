"""TinyViT as LiteMedSAM uses it (Wu et al., ECCV 2022; Ma et al., MedSAM, Nature Communications 2024).

The network is written against the published state dict: 256×256 px in, 64×64 features of 256 channels out. Its first
layers work at full resolution, where most of its time goes.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 256
"""Pixels of the input."""
_WIDTHS, _DEPTHS, _HEADS, _WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
_OUTPUT = 256


class _ConvBatchNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", convolution)
        self.add_module("bn", nn.BatchNorm2d(outputs))


class _MobileBlock(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _ConvBatchNorm(width, 4 * width)
        self.conv2 = _ConvBatchNorm(4 * width, 4 * width, 3, groups=4 * width)
        self.conv3 = _ConvBatchNorm(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(self.conv3(wide) + x)


class _Merge(nn.Module):
    """Widen the channels; halve the sides, except before the last layer."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _ConvBatchNorm(inputs, outputs)
        self.conv2 = _ConvBatchNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = _ConvBatchNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return merged


class _Attention(nn.Module):
    """Self-attention inside a window, with a bias for each distance of two places."""

    places: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))
        points = list(itertools.product(range(window), repeat=2))
        distances = [(abs(a[0] - b[0]), abs(a[1] - b[1])) for a in points for b in points]
        numbers = {distance: number for number, distance in enumerate(dict.fromkeys(distances))}
        table = torch.tensor([numbers[distance] for distance in distances])
        self.register_buffer("places", table.view(len(points), len(points)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        parts = self.qkv(self.norm(x)).view(count, length, self._heads, -1).transpose(1, 2).chunk(3, -1)
        query, key, value = parts
        seen = F.scaled_dot_product_attention(query, key, value, self.attention_biases[:, self.places])
        answer: Tensor = self.proj(seen.transpose(1, 2).reshape(count, length, width))
        return answer


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return answer


class _WindowBlock(nn.Module):
    """Attention in windows, a filter of each channel, a perceptron."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self._window = window
        self.attn = _Attention(width, heads, window)
        self.local_conv = _ConvBatchNorm(width, width, 3, groups=width)
        self.mlp = _Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attended(x)
        x = self.local_conv(x).movedim(1, -1)
        x = x + self.mlp(x)
        return x.movedim(-1, 1)

    def _attended(self, x: Tensor) -> Tensor:
        """The padding of the last windows is read as zeros, as in training."""
        count, width, rows, columns = x.shape
        w = self._window
        padded = F.pad(x.movedim(1, -1), (0, 0, 0, -columns % w, 0, -rows % w))
        down, across = padded.shape[1] // w, padded.shape[2] // w
        windows = padded.view(count, down, w, across, w, width).transpose(2, 3).reshape(-1, w * w, width)
        answer: Tensor = self.attn(windows).view(count, down, across, w, w, width).transpose(2, 3)
        return answer.reshape(padded.shape)[:, :rows, :columns].movedim(-1, 1)


class _Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        width, depth = _WIDTHS[number], _DEPTHS[number]
        blocks = [
            _WindowBlock(width, _HEADS[number], _WINDOWS[number]) if number else _MobileBlock(width)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        last = number == len(_WIDTHS) - 1
        stride = 1 if number == len(_WIDTHS) - 2 else 2
        self.downsample = nn.Identity() if last else _Merge(width, _WIDTHS[number + 1], stride)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.downsample(self.blocks(x))
        return answer


class _ChannelNorm(nn.Module):
    """Layer norm over channels at each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-6).movedim(-1, 1)


class TinyViT(nn.Module):
    """Images (B, 3, 256, 256), each between 0 and 1 → features (B, 256, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        first = _WIDTHS[0]
        self.patch_embed = nn.Module()
        half = first // 2
        self.patch_embed.seq = nn.Sequential(_ConvBatchNorm(3, half), nn.GELU(), _ConvBatchNorm(half, first))
        self.layers = nn.Sequential(*map(_Layer, range(len(_WIDTHS))))
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], _OUTPUT, 1, bias=False), _ChannelNorm(_OUTPUT),
            nn.Conv2d(_OUTPUT, _OUTPUT, 3, padding=1, bias=False), _ChannelNorm(_OUTPUT),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.neck(self.layers(self.patch_embed.seq(image)))  # type: ignore[operator]
        return features


def fold_batch_norm(network: nn.Module) -> None:
    """Fold every batch norm into the convolution before it; the answers stay the same, up to rounding."""
    for part in network.modules():
        if isinstance(part, _ConvBatchNorm) and "bn" in part._modules:
            convolution, norm = part.get_submodule("c").eval(), part.get_submodule("bn").eval()
            part.c = torch.nn.utils.fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
            part.bn = nn.Identity()
