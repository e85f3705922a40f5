"""Pre-trained image networks that are no transformers, as encoders of patches (METHOD §2, locked towers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from amvlm.errors import UserError
from amvlm.models.backbones import EfficientNetLite0, flat_name
from amvlm.models.tiny_vit import SIDE, TinyViT
from amvlm.weights import SAFETENSORS, find


@dataclass(frozen=True)
class TowerConfig:
    """What the vision-language model asks of an image encoder's ``config``."""

    model_type: str
    hidden_size: int
    patch_size: int
    num_channels: int = 3

    def recipe(self) -> dict[str, Any]:
        """As a model's folder keeps it."""
        return {"hidden_size": self.hidden_size, "patch_size": self.patch_size, "num_channels": self.num_channels}


class TowerOutput(NamedTuple):
    """``last_hidden_state`` (B, 1 + N, width): the image's mean patch, then its patches row by row."""

    last_hidden_state: Tensor
    attentions: None = None


class _Tower(nn.Module):
    """A pre-trained network whose features become patches; its statistics stay those of the pre-training, in training
    mode too."""

    config: TowerConfig

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.body.train(False)
        return self

    def features(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (B, width, rows, columns) on the grid of patches."""
        raise NotImplementedError

    def forward(self, pixel_values: Tensor, output_attentions: bool = False) -> TowerOutput:
        """Patches of images (B, 3, H, W), normalised per volume; sides are multiples of 16."""
        rows, columns = (length // self.config.patch_size for length in pixel_values.shape[-2:])
        patches = self.features(pixel_values, (rows, columns)).flatten(2).transpose(1, 2)
        return TowerOutput(torch.cat([patches.mean(1, keepdim=True), patches], 1))


class LiteTower(_Tower):
    """EfficientNet-Lite0 whose features of three levels make one grid of patches, 16 px each.

    Features at strides 8, 16 and 32 are brought to stride 16 and scaled to unit variance along their channels, so that
    no level drowns the others.
    """

    LEVELS = (2, 3, 4)
    config = TowerConfig("efficientnet-lite0", 40 + 112 + 320, 16)

    def __init__(self) -> None:
        super().__init__(EfficientNetLite0())

    def features(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        every = self.body(image.contiguous(memory_format=torch.channels_last))
        return torch.cat([_standard(_on_grid(every[level], grid)) for level in self.LEVELS], 1)


def _on_grid(features: Tensor, side: tuple[int, int]) -> Tensor:
    if features.shape[-1] > side[1]:
        return F.adaptive_avg_pool2d(features, side)
    return F.interpolate(features, side, mode="bilinear", align_corners=False)


def _standard(features: Tensor) -> Tensor:
    """Unit variance along the channels of each place."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


class MedSamTower(_Tower):
    """LiteMedSAM's TinyViT, a medical encoder: its 64 × 64 features as patches of 16 px, with unit variance.

    It reads squares of 256 px, each between 0 and 1; other sizes are resampled.
    """

    config = TowerConfig("litemedsam", 256, 16)

    def __init__(self) -> None:
        super().__init__(TinyViT())

    def features(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        image = (image - low) / (high - low).clamp(min=1e-6)
        square = F.interpolate(image, (SIDE, SIDE), mode="bilinear", align_corners=False)
        every = self.body(square.contiguous(memory_format=torch.channels_last))
        return _standard(_on_grid(every, grid))


TOWERS: dict[str, type[LiteTower | MedSamTower]] = {"efficientnet-lite0": LiteTower, "litemedsam": MedSamTower}
"""Networks by their name in the registry of weights, which is also their model type."""


def load_tower(name: str) -> LiteTower | MedSamTower:
    """A tower with the weights of the registry.

    Raises
    ------
    UserError
        If they are not on this machine, damaged, or of another network.
    """
    tower = TOWERS[name]()
    given = load_file(find(name) / SAFETENSORS)
    own = tower.body.state_dict()
    wanted = {key: _published(key, tower) for key in own if not key.endswith("num_batches_tracked")}
    if any(other not in given or given[other].shape != own[key].shape for key, other in wanted.items()):
        raise UserError(f"the weights {name!r} do not fit the network", remedy=f"Run: amvlm weights fetch {name}")
    tower.body.load_state_dict({**own, **{key: given[other] for key, other in wanted.items()}})
    return tower


def _published(key: str, tower: LiteTower | MedSamTower) -> str:
    """The name that a tensor has in the published file."""
    return flat_name(key) if isinstance(tower, LiteTower) else f"image_encoder.{key}"
