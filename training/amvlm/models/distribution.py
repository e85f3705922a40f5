"""The probability distribution transformer: a token becomes a Gaussian (METHOD §2, PDT)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amvlm.models.attention import attend

START_BIAS = -3.6
START_SD = math.log1p(math.exp(START_BIAS))
"""softplus(−3.6) = 0.027: with D = 128, ‖σ‖ ≈ 0.3 beside ‖μ‖ ≈ 1. The prior of L_pdt's KL."""
_SMALLEST_SD = 1e-6


class Gaussians(NamedTuple):
    """Diagonal Gaussians of tokens, float32; index 0 is the CLS token's."""

    mean: Tensor
    sd: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """z = norm(μ + ε⊙σ) for noise ε of the same shape, (B, 1+T, D)."""
        return F.normalize(self.mean + noise * self.sd, dim=-1)


class DistributionTransformer(nn.Module):
    """One attention layer over [CLS; tokens] whose output, split in halves, moves a mean and sets a spread.

    x' = LN(GELU(Linear x)); μ₀, s₀ = attention(x'); μ = x + μ₀, μ += MLP(LN μ); s = s₀ + MLP(LN s₀);
    σ = softplus(s) + ε; μ is brought to length 1, or it would grow while σ does not, and σ would say nothing beside it.
    The last layers start at zero and s's bias at −3.6, so at first μ = x (tokens have length 1) and σ is small.
    """

    def __init__(self, embedding_size: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads if embedding_size % heads == 0 else 1
        self.enter = nn.Sequential(nn.Linear(embedding_size, embedding_size), nn.GELU(), nn.LayerNorm(embedding_size))
        self.query_key_value = nn.Linear(embedding_size, 3 * embedding_size)
        self.leave = nn.Linear(embedding_size, 2 * embedding_size)
        self.mean_mlp = _mlp(embedding_size)
        self.sd_mlp = _mlp(embedding_size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        with torch.no_grad():
            self.leave.bias[embedding_size:] = START_BIAS

    def forward(self, cls: Tensor, tokens: Tensor, mask: Tensor) -> Gaussians:
        """Gaussians of the CLS and of each token.

        Parameters
        ----------
        cls : Tensor, (B, D)
        tokens : Tensor, (B, T, D)
        mask : Tensor, (B, T), bool
            Padded tokens are attended by none; their own output means nothing.
        """
        x = torch.cat([cls[:, None], tokens], 1)
        seen = F.pad(mask, (1, 0), value=True)
        q, k, v = self.query_key_value(self.enter(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v, seen[:, None, None])
        moved, spread = self.leave(attended.flatten(2)).float().chunk(2, dim=-1)
        mean = x.float() + moved
        mean = F.normalize(mean + self.mean_mlp(mean).float(), dim=-1)
        spread = spread + self.sd_mlp(spread).float()
        return Gaussians(mean, F.softplus(spread) + _SMALLEST_SD)


def _mlp(width: int) -> nn.Sequential:
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)
