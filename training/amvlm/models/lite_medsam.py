"""LiteMedSAM: a box on a slice gives a mask (Ma et al., Nature Communications 2024; CVPR 2024 challenge's baseline).

Encoder: :mod:`amvlm.models.tiny_vit`. Prompt encoder and mask decoder are those of transformers' SAM, whose layers are
the same under other names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from amvlm.models.tiny_vit import SIDE, TinyViT, fold_batch_norm
from amvlm.weights import SAFETENSORS, find

NAME = "litemedsam"
_GRID = 64
_RENAMED = (
    (r"prompt_encoder\.point_embeddings\.", "prompts.point_embed."),
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "prompts.shared_embedding.positional_embedding"),
    (r"prompt_encoder\.mask_downscaling\.0\.", "prompts.mask_embed.conv1."),
    (r"prompt_encoder\.mask_downscaling\.1\.", "prompts.mask_embed.layer_norm1."),
    (r"prompt_encoder\.mask_downscaling\.3\.", "prompts.mask_embed.conv2."),
    (r"prompt_encoder\.mask_downscaling\.4\.", "prompts.mask_embed.layer_norm2."),
    (r"prompt_encoder\.mask_downscaling\.6\.", "prompts.mask_embed.conv3."),
    (r"prompt_encoder\.", "prompts."),
    (r"mask_decoder\.", "decoder."),
    (r"image_encoder\.", "encoder."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"(decoder\.transformer\.layers\.\d\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"((?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.0\.", r"\1proj_in."),
    (r"((?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.1\.", r"\1layers.0."),
    (r"((?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.2\.", r"\1proj_out."),
)
"""Names of the published state dict, and ours."""


class Embedded(NamedTuple):
    """A slice that the encoder has read: ``features`` (1, 256, 64, 64), and the slice's (rows, columns)."""

    features: Tensor
    shape: tuple[int, int]

    @property
    def scale(self) -> float:
        """Pixels of the network's input per pixel of the slice."""
        return SIDE / max(self.shape)


class LiteMedSam(nn.Module):
    """The box-prompted network; :func:`load_lite_medsam` brings its weights."""

    def __init__(self) -> None:
        super().__init__()
        config = SamConfig(
            vision_config=SamVisionConfig(image_size=SIDE, patch_size=SIDE // _GRID),
            prompt_encoder_config=SamPromptEncoderConfig(image_size=SIDE, patch_size=SIDE // _GRID),
            mask_decoder_config=SamMaskDecoderConfig(),
        )
        config.mask_decoder_config._attn_implementation = "sdpa"
        self.encoder = TinyViT()
        self.prompts = SamPromptEncoder(config)
        self.decoder = SamMaskDecoder(config.mask_decoder_config)

    @torch.no_grad()
    def embed(self, image: Tensor) -> Embedded:
        """Read a slice once, for any number of boxes.

        Parameters
        ----------
        image : Tensor, (H, W) or (3, H, W)
            In any unit; windowed as a person would look at it.
        """
        planes = image.float().expand(3, *image.shape[-2:])
        rows, columns = planes.shape[-2:]
        scale = SIDE / max(rows, columns)
        sides = [max(1, round(side * scale)) for side in (rows, columns)]
        small = F.interpolate(planes[None], sides, mode="bilinear", antialias=True, align_corners=False)
        low, high = small.min(), small.max()
        small = (small - low) / (high - low).clamp(min=1e-8)
        square = F.pad(small, (0, SIDE - sides[1], 0, SIDE - sides[0]))
        return Embedded(self.encoder(square.to(memory_format=torch.channels_last)), (rows, columns))

    @torch.no_grad()
    def logits(self, embedded: Embedded, box: tuple[float, float, float, float]) -> tuple[Tensor, float]:
        """What the box holds.

        Parameters
        ----------
        box : (top, left, bottom, right)
            In pixels of the slice, ends included.

        Returns
        -------
        Tensor, (H, W), float32
            Logits on the slice.
        float
            IoU that the network expects of its own mask.
        """
        top, left, bottom, right = (side * embedded.scale for side in box)
        corners = torch.tensor([[[left, top, right, bottom]]], dtype=torch.float32)
        sparse, dense = self.prompts(None, None, corners, None)
        steps = (torch.arange(_GRID) + 0.5) / _GRID
        places = torch.stack([steps.expand(_GRID, _GRID), steps[:, None].expand(_GRID, _GRID)], -1)
        masks, quality = self.decoder(
            image_embeddings=embedded.features,
            image_positional_embeddings=self.prompts.shared_embedding(places).permute(2, 0, 1)[None],
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
        )  # fmt: skip
        rows, columns = embedded.shape
        sides = [max(1, round(side * embedded.scale)) for side in (rows, columns)]
        square = F.interpolate(masks[0], (SIDE, SIDE), mode="bilinear", align_corners=False)
        inside = square[..., : sides[0], : sides[1]]
        return F.interpolate(inside, (rows, columns), mode="bilinear", align_corners=False)[0, 0], float(quality)


def load_lite_medsam() -> LiteMedSam:
    """The network with its published weights, from this user's cache.

    Raises
    ------
    UserError
        If they are not there: ``amvlm weights fetch litemedsam``.
    """
    network = LiteMedSam()
    network.load_state_dict({_renamed(key): value for key, value in load_file(find(NAME) / SAFETENSORS).items()})
    fold_batch_norm(network)
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _renamed(key: str) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key
