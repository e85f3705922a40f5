"""What aligns images and captions: L = L_ita + 0.5·L_css + 0.1·L_pdt + 0.1·L_local + 0.1·L_icl (METHOD §2)."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from amvlm.config import PretrainSettings
from amvlm.learning.gathering import gathered, mean_over, summed
from amvlm.learning.pairs import Pairs
from amvlm.losses import (
    Scales,
    attended,
    attended_bag,
    bag_similarity,
    distance_agreement,
    gain_spread,
    intra_modal_contrast,
    local_contrast,
    mean_distances,
    multi_positive_info_nce,
    on_one_scale,
    pairwise_wasserstein,
    similarity_gain,
    similarity_supervision,
    standard_deviation_divergence,
    token_weights,
    two_way_cross_entropy,
)
from amvlm.models.distribution import START_SD, DistributionTransformer, Gaussians
from amvlm.models.vlm import Heads, RawTokens, Tokens, VisionLanguageModel

PRIOR_WEIGHT = 1e-1
_SCALE_STEP = 0.01
_Part = TypeVar("_Part")


class Branch(nn.Module):
    """Encoders, heads, and the distribution transformers of patches and words; the momentum branch is its average.

    Of locked towers it holds the heads without the encoders.
    """

    def __init__(self, vlm: VisionLanguageModel, distributions: bool, locked: bool = False) -> None:
        super().__init__()
        self.vlm = Heads.of(vlm) if locked else vlm
        size = vlm.settings.embedding_size
        self.patches = DistributionTransformer(size) if distributions else None
        self.words = DistributionTransformer(size) if distributions else None


class Keys(NamedTuple):
    """The momentum branch's samples z of one modality: CLS (B, D), tokens (B, T, D), mask (B, T)."""

    cls: Tensor
    tokens: Tensor
    mask: Tensor


class Alignment(nn.Module):
    """The pre-training losses as one module, so that accelerate can run it on several processes.

    A weight of 0 in the settings leaves a part out, networks included. ``scales`` (2, 2) are running means of the two
    distances, of words and of patches.
    """

    scales: Tensor

    def __init__(self, vlm: VisionLanguageModel, settings: PretrainSettings) -> None:
        super().__init__()
        self.settings = settings
        self.css = settings.css_weight > 0
        self.online = Branch(vlm, self.css or settings.icl_weight > 0, settings.locked)
        size = vlm.settings.embedding_size
        self.seen_patches = DistributionTransformer(size) if self.css else None
        self.seen_words = DistributionTransformer(size) if self.css else None
        self._mixed = False
        self.log_distance_temperature = nn.Parameter(torch.zeros(())) if self.css else None
        if self.css:
            self.register_buffer("scales", torch.zeros(2, 2))

    def forward(self, pairs: Pairs, momentum: Branch | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses, and what else is worth logging; ``momentum`` is needed for L_icl."""
        image, slabs, chosen, text = self._encode(pairs)
        keys = None
        if self.settings.icl_weight > 0 and momentum is not None:
            keys = _momentum_tokens(momentum, pairs, chosen)
        self._mixed = torch.is_autocast_enabled(slabs.device.type)
        with torch.autocast(slabs.device.type, enabled=False):  # distances and losses in fp32, METHOD §1
            return self._losses(pairs, image, slabs, text, momentum, keys)

    def _losses(
        self,
        pairs: Pairs,
        image: Tokens,
        slabs: Tensor,
        text: Tokens,
        momentum: Branch | None,
        others: tuple[Tokens, Tokens] | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        settings = self.settings
        every_text = gathered(text.cls)
        similarity = bag_similarity(gathered(slabs), gathered(pairs.present), every_text, settings.temperature)
        positives = gathered(pairs.positives)
        losses = {"L_ita": multi_positive_info_nce(similarity, positives, settings.temperature)}
        notes = {"similarity": similarity.detach()}
        if settings.local_weight > 0:
            losses["L_local"] = settings.local_weight * self._local(image, text, every_text, pairs)
        if self.css:
            found, spreads = self._supervise(image, text, pairs.text.words[pairs.text_row])
            losses |= found
            notes |= spreads
        if momentum is not None and others is not None:
            keys = self._momentum_keys(momentum, others, pairs)
            losses["L_icl"] = settings.icl_weight * self._contrast(image, text, keys, pairs)
        return losses, notes

    def _encode(self, pairs: Pairs) -> tuple[Tokens, Tensor, Tensor, Tokens]:
        """Tokens of each sample's slab that agrees most with its caption, all slabs' embeddings, and the text."""
        vlm = self.online.vlm
        image = pairs.image.flatten(0, 1) if isinstance(pairs.image, Tensor) else pairs.image
        every = vlm.encode_image(image)
        unique = vlm.encode_text(pairs.text, pairs.read_text)
        text = Tokens(*(part[pairs.text_row] for part in unique))
        slabs = every.cls.view(*pairs.present.shape, -1)
        chosen = attended_bag(slabs, pairs.present, text.cls)
        row = torch.arange(len(chosen), device=chosen.device) * pairs.present.shape[1] + chosen
        return Tokens(*(part[row] for part in every)), slabs, chosen, text

    def _local(self, image: Tokens, text: Tokens, every_text: Tensor, pairs: Pairs) -> Tensor:
        """L_local: patches against the batch's texts, words against its images."""
        tau = self.settings.temperature
        positives = gathered(pairs.positives)
        patches = local_contrast(image.tokens, image.mask, every_text, pairs.positives, pairs.own, tau)
        true_images = positives[:, pairs.own].T
        words = local_contrast(text.tokens, text.mask, gathered(image.cls), true_images, pairs.own, tau)
        return 0.5 * (mean_over(*patches) + mean_over(*words))

    def _supervise(
        self, image: Tokens, text: Tokens, word_numbers: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L_css and L_pdt, word side and patch side."""
        settings, tau = self.settings, self.settings.temperature
        same = word_numbers[:, :, None] == word_numbers[:, None, :]
        seen_patches = attended(text.tokens, image.tokens, image.mask, tau)
        seen_words = attended(image.tokens, text.tokens, text.mask, tau)
        has_words = text.mask.any(1)
        sides = {
            "words": (text, seen_patches, image.cls, self.online.words, self.seen_patches, same),
            "patches": (image, seen_words, text.cls, self.online.patches, self.seen_words, None),
        }
        css, pdt, divergence, spreads = [], [], [], {}
        for number, (name, (own, seen, seen_cls, own_pdt, seen_pdt, equal)) in enumerate(sides.items()):
            gaussians = self._gaussians(own_pdt, own.cls.detach(), own.tokens.detach(), own.mask)
            others = self._gaussians(seen_pdt, seen_cls.detach(), seen.detach(), own.mask)
            plain = _distances(gaussians, others)
            d_s, d_u = on_one_scale(*plain, self._scales(number, *plain, own.mask))
            g = similarity_gain(d_s, d_u, own.mask, settings.uncertainty)
            weights = token_weights(own.importance, own.mask)
            cosine = torch.bmm(own.tokens, seen.transpose(1, 2))
            value, counted = similarity_supervision(cosine, g, equal, weights, own.mask, tau)
            css.append(mean_over(value, counted & has_words))
            logits = -d_u / _built(self.log_distance_temperature).exp()
            value, counted = two_way_cross_entropy(logits, equal, weights, own.mask)
            pdt.append(mean_over(value, counted & has_words))
            for each in (gaussians, others):
                kl = standard_deviation_divergence(each.sd[:, 1:], own.mask, START_SD)
                divergence.append(mean_over(kl, has_words))
            spreads[f"sd_log_g_{name}"] = gain_spread(g, own.mask)
            if not self.training:
                spreads[f"spearman_{name}"] = distance_agreement(plain[0], cosine, own.mask)
                spreads[f"sd_to_mean_{name}"] = _sd_to_mean(gaussians, own.mask)
        l_pdt = 0.5 * (pdt[0] + pdt[1]) + PRIOR_WEIGHT * torch.stack(divergence).mean()
        losses = {"L_css": settings.css_weight * 0.5 * (css[0] + css[1])}
        if settings.pdt_weight > 0:
            losses["L_pdt"] = settings.pdt_weight * l_pdt
        return losses, spreads

    @torch.no_grad()
    def _scales(self, side: int, d_s: Tensor, d_u: Tensor, mask: Tensor) -> Scales:
        """Running means of a side's two distances over all processes; in training this batch moves them."""
        over, over_sd, pairs = summed(torch.stack(mean_distances(d_s, d_u, mask))).unbind()
        now, kept = torch.stack([over, over_sd]) / pairs.clamp(min=1), self.scales[side]
        known = torch.where(kept[0] > 0, kept.lerp(now, _SCALE_STEP if self.training else 0.0), now)
        if self.training:
            self.scales[side] = known
        return Scales(known[0], known[1])

    def _contrast(self, image: Tokens, text: Tokens, keys: tuple[Keys, Keys], pairs: Pairs) -> Tensor:
        """L_icl of both modalities; the gradient reaches both online encoders."""
        parts = (
            (self.online.patches, image, pairs.image_noise[0], keys[0]),
            (self.online.words, text, pairs.text_noise[0], keys[1]),
        )
        found = []
        for pdt, own, noise, key in parts:
            gaussians = self._gaussians(pdt, own.cls, own.tokens, own.mask)
            z = gaussians.sample(noise[:, : 1 + own.tokens.shape[1]])
            value, counted = intra_modal_contrast(
                z[:, 0], z[:, 1:], own.mask, gathered(key.cls), gathered(key.tokens), gathered(key.mask),
                pairs.own, pairs.negatives, self.settings.temperature,
            )  # fmt: skip
            found.append(mean_over(value, counted))
        return 0.5 * (found[0] + found[1])

    @torch.no_grad()
    def _momentum_keys(self, momentum: Branch, tokens: tuple[Tokens, Tokens], pairs: Pairs) -> tuple[Keys, Keys]:
        """The momentum branch's samples z of image and caption."""
        keys = []
        parts = ((momentum.patches, tokens[0], pairs.image_noise[1]), (momentum.words, tokens[1], pairs.text_noise[1]))
        for pdt, own, noise in parts:
            gaussians = self._gaussians(pdt, own.cls, own.tokens, own.mask)
            z = gaussians.sample(noise[:, : 1 + own.tokens.shape[1]])
            keys.append(Keys(z[:, 0], z[:, 1:], own.mask))
        return keys[0], keys[1]

    def _gaussians(self, pdt: DistributionTransformer | None, cls: Tensor, tokens: Tensor, mask: Tensor) -> Gaussians:
        """The transformer itself runs in the precision of the encoders."""
        with torch.autocast(cls.device.type, torch.bfloat16, enabled=self._mixed):
            found: Gaussians = _built(pdt)(cls, tokens, mask)
        return found


@torch.no_grad()
def _momentum_tokens(momentum: Branch, pairs: Pairs, chosen: Tensor) -> tuple[Tokens, Tokens]:
    """The other view of image and caption; of a volume's bag the slab ``chosen``, (B,)."""
    rows = torch.arange(len(chosen), device=chosen.device)
    view = pairs.other_view
    if isinstance(view, Tensor):
        image = momentum.vlm.encode_image(view[rows, chosen])
    else:
        rows = rows * pairs.present.shape[1] + chosen
        image = momentum.vlm.encode_image(RawTokens(*(part[rows] for part in view)))
    text = momentum.vlm.encode_text(pairs.other_text, pairs.read_other_text)
    return image, Tokens(*(part[pairs.other_row] for part in text))


def _distances(own: Gaussians, other: Gaussians) -> tuple[Tensor, Tensor]:
    """Between tokens, without the CLS."""
    return pairwise_wasserstein(own.mean[:, 1:], own.sd[:, 1:], other.mean[:, 1:], other.sd[:, 1:])


def _sd_to_mean(gaussians: Gaussians, mask: Tensor) -> Tensor:
    """‖σ‖/‖μ‖ of the tokens, averaged."""
    ratio = gaussians.sd[:, 1:].norm(dim=-1) / gaussians.mean[:, 1:].norm(dim=-1).clamp(min=1e-6)
    found: Tensor = (ratio * mask).sum().detach() / mask.sum().clamp(min=1)
    return found


def _built(part: _Part | None) -> _Part:
    if part is None:
        raise ValueError("this part was switched off in the settings")
    return part
