"""The text mask generator of a plan (METHOD §3): a half-resolution U-Net on slices of the plan's grid.

Its encoder reads no text. The decoder reads the prompt (FiLM) and where the vision-language model sees it (similarity),
so a further prompt on the same slice costs the decoder alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amvlm.config import PlannedTextSettings
from amvlm.imaging.resample import SliceGrid
from amvlm.models.generator import TEXT_AXES, principal_axes, standardised
from amvlm.models.half_unet import HalfUNet
from amvlm.models.vlm import VisionLanguageModel
from amvlm.planning import Plan
from amvlm.planning.plan import WIDTHS

_ALIKE = 2.0


def plan_of_slices(plan: Plan) -> Plan:
    """The plan as a 2-D network reads it: of a 3-D one the slices of its grid, with neighbours that lie close."""
    if plan.dimensions == 2:
        return plan
    close = plan.spacing_mm[0] <= _ALIKE * max(plan.spacing_mm[1:])
    return plan.model_copy(update={"dimensions": 2, "patch": (1, *plan.patch[1:]), "context": int(close)})


class Frame(NamedTuple):
    """How a slice lies inside the encoder's square: ``window`` (top, left, height, width) of ``size`` px."""

    window: tuple[int, int, int, int]
    size: int

    @classmethod
    def of(cls, grid: SliceGrid) -> Frame:
        return cls(grid.window, grid.size)

    def place(self, plane: Sequence[int], corner: Sequence[int], sides: Sequence[int]) -> Tensor:
        """Where a crop of the plan's grid lies in the square.

        Parameters
        ----------
        plane, corner, sides : rows and columns
            Of the whole slice on the plan's grid; of the crop's first pixel there, which may lie outside; of the crop.

        Returns
        -------
        Tensor, (2, 3), float32
            From the crop's normalised coordinates (x, y; −1 to 1 over its sides) to the square's.
        """
        place = torch.zeros(2, 3)
        for axis in (0, 1):
            first, extent = self.window[axis], self.window[2 + axis]
            per_pixel = extent / plane[axis] / self.size
            place[1 - axis, 1 - axis] = per_pixel * sides[axis]
            place[1 - axis, 2] = 2 * (first / self.size + per_pixel * (corner[axis] + sides[axis] / 2)) - 1
        return place


def composed(outer: Tensor, inner: Tensor) -> Tensor:
    """First ``inner``, then ``outer``: affine maps (B, 2, 3)."""
    linear = outer[:, :, :2]
    return torch.cat([linear @ inner[:, :, :2], linear @ inner[:, :, 2:] + outer[:, :, 2:]], 2)


class PatchFeatures(NamedTuple):
    """What the vision-language model says of the slices in a batch.

    ``grid`` (B, D, rows, columns) covers the encoder's square and is L2-normalised along D; ``place`` (B, 2, 3) leads
    from the network's input to the square, as :meth:`Frame.place` does.
    """

    grid: Tensor
    place: Tensor

    def to(self, device: torch.device) -> PatchFeatures:
        return PatchFeatures(self.grid.to(device), self.place.to(device))

    def sampled(self, values: Tensor, sides: Sequence[int]) -> Tensor:
        """Bring values (B, C, rows, columns) of the square onto the input, (B, C, *sides), bilinear."""
        where = F.affine_grid(self.place, [len(values), 1, *sides], align_corners=False)
        return F.grid_sample(values.float(), where, padding_mode="border", align_corners=False)


@torch.no_grad()
def projected_patches(vlm: VisionLanguageModel, image: Tensor) -> Tensor:
    """The frozen model's patches after their head: (B, 3, size, size) → (B, D, rows, columns), float16, unit length."""
    patches = vlm.image_tokens(image)[1]
    return F.normalize(vlm.patch_head(patches.movedim(1, -1)).float(), dim=-1).movedim(-1, 1).half()


class TextFreeFeatures(NamedTuple):
    """What the encoder makes of a batch: ``levels`` (finest first, the bottleneck last), ``patches``, and the input's
    ``sides`` before it was padded."""

    levels: list[Tensor]
    patches: PatchFeatures | None
    sides: tuple[int, int]


class PlannedFilmUNet(nn.Module):
    """FiLM by the text at the bottleneck and every decoder level, and two inputs from the vision-language model.

    Parameters
    ----------
    settings : PlannedTextSettings
    plan : Plan
    embedding_size : int
        D of the projected patches, and of the first part of a prompt.
    text_size : int
        Width of ``vlm.embed_prompt``.
    prior : float in (0, 1)
        Foreground fraction, where the logits start.
    """

    text_mean: Tensor
    text_axes: Tensor

    def __init__(
        self, settings: PlannedTextSettings, plan: Plan, embedding_size: int, text_size: int, prior: float
    ) -> None:
        super().__init__()
        self.settings, self.plan = settings, plan_of_slices(plan)
        self.embedding_size = embedding_size
        widths = plan.widths if plan.network == "half_unet" else WIDTHS
        self.unet = HalfUNet(self.plan.inputs, 1, widths, plan.decoder, extra=int(settings.similarity))
        if settings.patch_features:
            self.enter = nn.Sequential(
                nn.Conv2d(embedding_size, widths[-1], 1, bias=False), nn.BatchNorm2d(widths[-1])
            )
        if settings.similarity:
            self.scale = nn.BatchNorm2d(1, affine=False)
        self._multiple = 1 << len(widths)
        self._modulated = list(widths[::-1]) if settings.film_levels else [widths[0]]
        self.film = nn.Sequential(nn.Linear(TEXT_AXES, 128), nn.GELU(), nn.Linear(128, 2 * sum(self._modulated)))
        self.register_buffer("text_mean", torch.zeros(text_size))
        self.register_buffer("text_axes", torch.zeros(text_size, TEXT_AXES))
        with torch.no_grad():
            self.unet.read.bias.fill_(math.log(prior / (1 - prior)))  # type: ignore[union-attr]

    @property
    def reads_patches(self) -> bool:
        """Whether it needs the vision-language model's image side."""
        return self.settings.patch_features or self.settings.similarity

    def fit_text(self, texts: Tensor) -> None:
        """Learn in what the study's texts differ, (T, D + width): the axes along which prompts are read."""
        mean, axes = principal_axes(texts)
        self.text_mean.copy_(mean)
        self.text_axes.copy_(axes)

    @torch.no_grad()
    def start_from(self, unet: HalfUNet) -> None:
        """Take over what a network of the same plan has learned of images.

        The last layer, which names structures there, and everything that reads the text or the vision-language model
        start as they are; the decoder's further inputs start at zero.
        """
        own = self.unet.state_dict()
        for name, tensor in unet.state_dict().items():
            if name.startswith("read.") or name not in own or own[name].shape[:1] != tensor.shape[:1]:
                continue
            if own[name].shape == tensor.shape:
                own[name].copy_(tensor)
            else:
                own[name].zero_()
                own[name][:, : tensor.shape[1]].copy_(tensor)

    def encode(self, image: Tensor, patches: PatchFeatures | None = None) -> TextFreeFeatures:
        """Everything that needs no text, (B, inputs, H, W); kept, it makes the next prompt cheaper.

        Raises
        ------
        ValueError
            If the network reads patch features and none are given.
        """
        if self.reads_patches and patches is None:
            raise ValueError("the network reads patch features")
        sides = (image.shape[-2], image.shape[-1])
        missing = [-side % self._multiple for side in sides]
        if any(missing):
            image = F.pad(image, (0, missing[1], 0, missing[0]), mode="replicate")
            patches = None if patches is None else _stretched(patches, sides, image.shape[-2:])
        levels = self.unet.levels(image)
        if self.settings.patch_features and patches is not None:
            seen = self.enter(patches.sampled(patches.grid, levels[-1].shape[-2:]))
            levels[-1] = torch.relu(levels[-1] + seen)
        return TextFreeFeatures(levels, patches if self.settings.similarity else None, sides)

    def decode(self, features: TextFreeFeatures, text: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of one prompt per image, (B, D + width) as ``vlm.embed_prompt`` gives them."""
        film = self.film(standardised(text, self.text_mean, self.text_axes))
        changes = [part[..., None, None].chunk(2, 1) for part in film.split([2 * w for w in self._modulated], 1)]
        similarity = self._similarity(features.patches, text)
        x, depth = features.levels[-1], len(features.levels) - 1
        for level in range(depth + 1):
            if level:
                fine = features.levels[depth - level]
                extra = [] if similarity is None else [features.patches.sampled(similarity, fine.shape[-2:])]  # type: ignore[union-attr]
                x = self.unet.rise(level - 1, x, fine, *extra)
            if len(changes) > 1 or level == depth:
                scale, shift = changes[min(level, len(changes) - 1)]
                x = x * (1 + scale) + shift
        rows, columns = features.sides
        return self.unet.unfolded(x)[..., :rows, :columns]

    def _similarity(self, patches: PatchFeatures | None, text: Tensor) -> Tensor | None:
        """⟨patch, t⟩ on the square's patches, (B, 1, rows, columns), standardised over the training set."""
        if patches is None:
            return None
        own = text[:, : self.embedding_size, None, None].float()
        cosine = (patches.grid.float() * own).sum(1, keepdim=True)  # no matrix product: bf16 would round it away
        standard: Tensor = self.scale(cosine)
        return standard

    def forward(self, image: Tensor, patches: PatchFeatures | None, text: Tensor) -> Tensor:
        return self.decode(self.encode(image, patches), text)


def _stretched(patches: PatchFeatures, sides: Sequence[int], padded: Sequence[int]) -> PatchFeatures:
    """The same place for an input that was padded at its ends."""
    rows, columns = (new / old for new, old in zip(padded, sides, strict=True))
    stretch = torch.tensor([[columns, 0, columns - 1], [0, rows, rows - 1]], device=patches.place.device)
    return PatchFeatures(patches.grid, composed(patches.place, stretch.expand(len(patches.place), -1, -1)))


def planned_film_unet(
    settings: PlannedTextSettings, plan: Plan, vlm: VisionLanguageModel, prior: float
) -> PlannedFilmUNet:
    """The network that reads this vision-language model, with random weights."""
    return PlannedFilmUNet(
        settings, plan, vlm.settings.embedding_size, vlm.prompt_size, min(max(prior, 1e-3), 0.9)
    )
