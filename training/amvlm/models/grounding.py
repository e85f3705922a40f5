"""Text masks without any mask to learn from: where patches agree with a text."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu
from torch import Tensor

from amvlm.models.vlm import VisionLanguageModel


@torch.no_grad()
def patch_similarity(vlm: VisionLanguageModel, image: Tensor, text: Tensor) -> Tensor:
    """⟨patch, t⟩ of each image's own text, upsampled bilinearly: (B, 3, H, W), (B, D) → (B, H, W), in [-1, 1]."""
    tokens = vlm.encode_image(image).tokens
    similarity = torch.bmm(tokens, text[:, :, None])[..., 0]
    grid = similarity.view(len(image), 1, image.shape[-2] // vlm.patch, -1)
    return F.interpolate(grid, image.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def otsu_mask(similarity: Tensor) -> Tensor:
    """Each map (H, W) above its own Otsu threshold; a constant map is empty. (B, H, W) → bool."""
    masks = []
    for each in similarity.cpu().numpy():
        flat = float(np.ptp(each)) < 1e-6
        masks.append(np.zeros(each.shape, bool) if flat else each > threshold_otsu(each))
    return torch.from_numpy(np.stack(masks))
