"""Gaussians of tokens: how far apart two modalities see one sample, and what follows (METHOD §2: CSS, L_pdt)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UncertaintyForm = Literal["exp", "exp_paper", "sigmoid"]
_EPSILON = 1e-6
_SLOPE = 0.357
_SMALLEST_SD_TERM = 1e-3
"""At the start both sides have one σ: their rounding must not be blown up to the size of D_s."""
_COVARIANCE_WEIGHT, _OFFSET = 1 / 200, 4.0


def attended(queries: Tensor, keys: Tensor, key_mask: Tensor, temperature: float) -> Tensor:
    """What each query sees of the other modality: norm(softmax(queries·keysᵀ/τ)·keys).

    Parameters
    ----------
    queries : Tensor, (B, Q, D), L2-normalised
    keys : Tensor, (B, K, D), L2-normalised
    key_mask : Tensor, (B, K), bool; a sample without a key sees zeros

    Returns
    -------
    Tensor, (B, Q, D), float32
    """
    queries, keys = queries.float(), keys.float()
    scores = torch.bmm(queries, keys.transpose(1, 2)) / temperature
    scores = scores.masked_fill(~key_mask[:, None], float("-inf"))
    seen = torch.bmm(torch.nan_to_num(scores.softmax(-1)), keys)
    return F.normalize(seen, dim=-1)


def pairwise_squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a_j − b_k‖² by ‖a‖² + ‖b‖² − 2⟨a, b⟩, clamped at 0: (B, J, D), (B, K, D) → (B, J, K), float32."""
    a, b = a.float(), b.float()
    squares = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None, :]
    return torch.baddbmm(squares, a, b.transpose(1, 2), alpha=-2).clamp(min=0)


def pairwise_wasserstein(mean: Tensor, sd: Tensor, other_mean: Tensor, other_sd: Tensor) -> tuple[Tensor, Tensor]:
    """Squared 2-Wasserstein distances of diagonal Gaussians, every j with every k of one sample.

    Returns
    -------
    d_s : Tensor, (B, J, K)
        ‖μ_j − μ̃_k‖²
    d_u : Tensor, (B, J, K)
        d_s + ‖σ_j − σ̃_k‖², exactly W2².
    """
    d_s = pairwise_squared_distance(mean, other_mean)
    return d_s, d_s + pairwise_squared_distance(sd, other_sd)


def similarity_gain(d_s: Tensor, d_u: Tensor, mask: Tensor, form: UncertaintyForm = "exp") -> Tensor:
    """g, by which uncertainty bends a pair's logit: ℓ = 1 − (1 − S/τ)·g.

    u = (a·D_u + b)/(D_s + ε), a = 1/200, b = 4.

    Parameters
    ----------
    d_s, d_u : Tensor, (B, T, T)
        As :func:`on_one_scale` gives them.
    mask : Tensor, (B, T), bool
    form : {"exp", "exp_paper", "sigmoid"}
        "exp": clamp(exp(−0.357·u/median u), 0.3, 1) with g_jj = 1, the median over the sample's valid pairs j ≠ k;
        "exp_paper": exp(−0.357·u); "sigmoid": sigmoid(D_u/(D_s + ε)), the release's form.

    Returns
    -------
    Tensor, (B, T, T), detached, in [0, 1]; 1 on padding.
    """
    d_s, d_u = d_s.detach().float(), d_u.detach().float()
    valid = mask[:, :, None] & mask[:, None, :]
    if form == "sigmoid":
        return torch.sigmoid(d_u / (d_s + _EPSILON)).masked_fill(~valid, 1.0)
    u = (_COVARIANCE_WEIGHT * d_u + _OFFSET) / (d_s + _EPSILON)
    if form == "exp_paper":
        return torch.exp(-_SLOPE * u).masked_fill(~valid, 1.0)
    diagonal = torch.eye(u.shape[1], dtype=torch.bool, device=u.device)
    off = u.masked_fill(~valid | diagonal, float("nan")).flatten(1)
    median = torch.nan_to_num(off.nanmedian(1).values, nan=1.0)[:, None, None]
    g = torch.exp(-_SLOPE * u / median.clamp(min=_EPSILON)).clamp(0.3, 1.0)
    return g.masked_fill(~valid | diagonal, 1.0)


class Scales(NamedTuple):
    """Running means of D_s and of ‖σ_j − σ̃_k‖², scalars."""

    mean: Tensor
    sd: Tensor


def mean_distances(d_s: Tensor, d_u: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of D_s and of D_u − D_s over a batch's valid pairs j ≠ k, and the number of these, detached scalars."""
    pairs = _other_pairs(mask)
    d_s, d_u = d_s.detach(), d_u.detach()
    return (d_s * pairs).sum(), ((d_u - d_s) * pairs).sum(), pairs.sum().float()


def on_one_scale(d_s: Tensor, d_u: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    """D_s, and D_u as the sum of both terms, each divided by its own running mean: neither drowns the other."""
    scaled = d_s / scales.mean.clamp(min=_EPSILON)
    return scaled, scaled + (d_u - d_s) / scales.sd.clamp(min=_SMALLEST_SD_TERM)


def distance_agreement(d_s: Tensor, similarity: Tensor, mask: Tensor, samples: int = 8) -> Tensor:
    """Spearman's correlation of D_s with 1 − S over the valid pairs j ≠ k of each of the first samples, averaged.

    At 1 the Gaussians' means order pairs as the cosine does, and say nothing of their own.
    """
    found = []
    for pairs, one, other in zip(_other_pairs(mask)[:samples], d_s, 1 - similarity, strict=False):
        if int(pairs.sum()) > 2:
            ranks = [x.detach()[pairs].argsort().argsort().double() for x in (one, other)]
            found.append(torch.corrcoef(torch.stack(ranks))[0, 1])
    return torch.stack(found).mean().float() if found else d_s.new_zeros(())


def _other_pairs(mask: Tensor) -> Tensor:
    diagonal = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & ~diagonal


def gain_spread(g: Tensor, mask: Tensor) -> Tensor:
    """Row-wise sd of log g over other tokens (j ≠ k), averaged: below 0.02 g is only another temperature.

    The diagonal is left out, since g_jj = 1 would make a constant g look alive.
    """
    valid = _other_pairs(mask).float()
    count = valid.sum(-1)
    logs = g.float().clamp(min=1e-30).log()
    mean = (valid * logs).sum(-1) / count.clamp(min=1)
    variance = (valid * (logs - mean[..., None]).square()).sum(-1) / count.clamp(min=1)
    rows = (count >= 2).float()
    return (variance.sqrt() * rows).sum() / rows.sum().clamp(min=1)


def token_weights(importance: Tensor, mask: Tensor) -> Tensor:
    """CLS attention clipped to its 10–90 % quantiles among valid tokens, summing to 1: (B, T), detached."""
    importance = importance.detach().float()
    known = importance.masked_fill(~mask, float("nan"))
    low, high = torch.nanquantile(known, torch.tensor([0.1, 0.9], device=known.device), dim=1)
    clipped = torch.minimum(torch.maximum(importance, low[:, None]), high[:, None])
    weights = torch.where(mask, torch.nan_to_num(clipped), 0.0)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


def two_way_cross_entropy(logits: Tensor, same: Tensor | None, weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy over rows and over columns; equal tokens share the target.

    Parameters
    ----------
    logits : Tensor, (B, T, T)
    same : Tensor, (B, T, T), bool, symmetric, or None
        Which tokens are equal; None for each only itself.
    weights : Tensor, (B, T), ≥ 0
    mask : Tensor, (B, T), bool

    Returns
    -------
    per_sample : Tensor, (B,), float32
    counted : Tensor, (B,), bool
        False for a sample in which no token has a negative; its value is 0.
    """
    logits = logits.float()
    if same is None:
        same = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)[None]
    positive = same & mask[:, :, None] & mask[:, None, :]
    share = positive / positive.sum(-1, keepdim=True).clamp(min=1)
    usable = mask & (positive.sum(-1) < mask.sum(-1, keepdim=True))
    weight = weights.float() * usable
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
    ways = []
    for way in (logits, logits.transpose(1, 2)):
        normaliser = way.masked_fill(~mask[:, None], torch.finfo(way.dtype).min).logsumexp(-1)
        ways.append((weight * (normaliser - (share * way).sum(-1))).sum(1))
    return 0.5 * (ways[0] + ways[1]), usable.any(1)


def similarity_supervision(
    similarity: Tensor, g: Tensor, same: Tensor | None, weights: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """One side of L_css: cross-entropy of ℓ = 1 − (1 − S/τ)·g; arguments as :func:`two_way_cross_entropy`.

    g bends the logit: where S ≥ 0, the smaller a negative pair's g, the more softly it is pushed apart.
    """
    logits = 1 - (1 - similarity.float() / temperature) * g
    return two_way_cross_entropy(logits, same, weights, mask)


def standard_deviation_divergence(sd: Tensor, mask: Tensor, prior_sd: float) -> Tensor:
    """KL(N(0, σ²) ‖ N(0, σ₀²)), averaged over valid tokens' elements: (B, T, D) → (B,)."""
    ratio = sd.float() / prior_sd
    divergence = (0.5 * (ratio.square() - 1) - ratio.log()).mean(-1)
    return (divergence * mask).sum(1) / mask.sum(1).clamp(min=1)
