"""Contrastive losses of global embeddings, with shared positives (METHOD §2: L_ita; §3: L_tg)."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
import torch.nn.functional as F
from torch import Tensor


def positive_pairs(captions: Sequence[str], captions_of_image: Sequence[Set[str]]) -> Tensor:
    """Which caption is true of which image.

    Parameters
    ----------
    captions : B normalised strings
    captions_of_image : B sets of normalised strings, all captions of each image

    Returns
    -------
    Tensor, (B, B), bool
        [i, j] is True when caption j equals any caption of image i.
    """
    return torch.tensor([[caption in own for caption in captions] for own in captions_of_image])


def bag_similarity(slab_embeddings: Tensor, present: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Cosine of each text with each image, an image being a bag of slabs (slices rule c).

    v = Σ_z softmax_z(⟨v_z, t⟩/τ)·v_z, so a text looks at the slabs that agree with it.

    Parameters
    ----------
    slab_embeddings : Tensor, (B, K, D), L2-normalised
    present : Tensor, (B, K), bool; every bag holds at least one slab
    text : Tensor, (T, D), L2-normalised

    Returns
    -------
    Tensor, (B, T), float32, in [-1, 1]
    """
    slab_embeddings, text = slab_embeddings.float(), text.float()
    if slab_embeddings.shape[1] == 1:
        return slab_embeddings[:, 0] @ text.T
    scores = torch.einsum("bkd,td->btk", slab_embeddings, text)
    weights = (scores / temperature).masked_fill(~present[:, None], float("-inf")).softmax(-1)
    pooled = F.normalize(torch.einsum("btk,bkd->btd", weights, slab_embeddings), dim=-1)
    return torch.einsum("btd,td->bt", pooled, text)


def attended_bag(slab_embeddings: Tensor, present: Tensor, own_text: Tensor) -> Tensor:
    """Which slab of each bag agrees most with its own caption: (B, K, D), (B, K), (B, D) → (B,), int64."""
    scores = torch.einsum("bkd,bd->bk", slab_embeddings.detach().float(), own_text.detach().float())
    return scores.masked_fill(~present, float("-inf")).argmax(1)


def multi_positive_info_nce(similarity: Tensor, positives: Tensor, temperature: float | Tensor) -> Tensor:
    """Symmetric InfoNCE whose target mass is shared among all true pairs (L_ita).

    Parameters
    ----------
    similarity : Tensor, (B, B), images × texts
    positives : Tensor, (B, B), bool

    Returns
    -------
    Tensor, scalar, float32, ≥ 0
        Rows without a negative or without a positive are dropped; 0 when none is left.
    """
    logits = similarity.float() / temperature
    images = _one_way(logits, positives)
    texts = _one_way(logits.T, positives.T)
    return 0.5 * (images + texts)


def _one_way(logits: Tensor, positives: Tensor) -> Tensor:
    usable = positives.any(1) & ~positives.all(1)
    target = positives.float() / positives.sum(1, keepdim=True).clamp(min=1)
    entropy = logits.logsumexp(1) - (target * logits).sum(1)
    return (entropy * usable).sum() / usable.sum().clamp(min=1)


def extended_info_nce(features: Tensor, mask_probs: Tensor, text: Tensor, positives: Tensor, scale: Tensor) -> Tensor:
    """ExtendedInfoNCE (TCL): features pooled under every image × text mask must name their text (L_tg).

    Parameters
    ----------
    features : Tensor, (B, D, H, W), L2-normalised over D
    mask_probs : Tensor, (B, B, H, W) in [0, 1]: mask of image i under text j
    text : Tensor, (B, D), L2-normalised
    positives : Tensor, (B, B), bool
    scale : Tensor, scalar, 1/τ

    Returns
    -------
    Tensor, scalar
    """
    features, mask_probs, text = features.float(), mask_probs.float(), text.float()
    pooled = torch.einsum("bdhw,bthw->btd", features, mask_probs)
    similarity = torch.einsum("btd,td->bt", F.normalize(pooled, dim=-1), text)
    return multi_positive_info_nce(similarity, positives, 1.0 / scale)
