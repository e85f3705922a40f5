"""The text mask generator (METHOD §3), in two forms that share one product.

Both compute image features that know no text, and from the text a weight vector and a bias; the mask's logits are
their product. A volume's features are therefore computed once and kept, and a further prompt costs a product.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amvlm.config import GeneratorSettings
from amvlm.models.backbones import basic_unet, unet
from amvlm.models.vlm import VisionLanguageModel


def text_product(features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """ℓ = ⟨features, weights⟩ + bias.

    Parameters
    ----------
    features : Tensor, (B, C, h, w)
    weights : Tensor, (B, S, C) or (S, C)
    bias : Tensor, (B, S) or (S,)

    Returns
    -------
    Tensor, (B, S, h, w), float32
    """
    flat = features.flatten(2)
    product = torch.matmul(weights.to(flat.dtype), flat).float() + bias.float()[..., None]
    return product.reshape(*product.shape[:2], *features.shape[2:])


class TextMaskGenerator(nn.Module):
    """Base of the two forms."""

    def features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w); no text enters."""
        raise NotImplementedError

    def text_weights(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts (..., D + width) → weights (..., C) and bias (...)."""
        raise NotImplementedError

    def fit_text(self, texts: Tensor) -> None:
        """Learn what the training set's texts have in common, (T, D); nothing by default."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Text mask logits, (B, S, H, W), for prompts (B, S, D + width) as ``vlm.embed_prompt`` gives them."""
        logits = text_product(self.features(image), *self.text_weights(text))
        if logits.shape[-2:] != image.shape[-2:]:
            logits = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
        return logits


TEXT_AXES = 32
_ROUNDING = 1e-4
"""Of a text's length: what two encodings of the same words may differ by."""


def principal_axes(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and principal axes (D, 32) of texts (T, D), scaled to one variance each; axes not needed are 0.

    Rounding is no difference. Where texts do not differ, the axes are fixed directions, scaled to the texts' length: so
    another text is still read as another one, and noise is not blown up.
    """
    different = torch.unique(texts.float(), dim=0)
    mean = different.mean(0)
    _, singular, axes = torch.linalg.svd(different - mean, full_matrices=False)
    sd = singular / math.sqrt(max(1, len(different) - 1))
    smallest = torch.maximum(1e-3 * sd[0], _ROUNDING * mean.norm().clamp(min=1e-6))
    kept = min(TEXT_AXES, int((sd > smallest).sum()))
    found = texts.new_zeros(texts.shape[1], TEXT_AXES, dtype=torch.float32)
    if not kept:
        width = texts.shape[1]
        directions, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))
        fixed = directions[:, :TEXT_AXES] * math.sqrt(width) / float(mean.norm().clamp(min=1e-6))
        found[:, : fixed.shape[1]] = fixed.to(found.device)
        return mean, found
    found[:, :kept] = axes[:kept].T / sd[:kept] * math.sqrt(TEXT_AXES / max(1, kept))
    return mean, found


def standardised(text: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Where prompts (..., D) lie along the axes, (..., 32)."""
    return ((text.float() - mean) @ axes).clamp(-3, 3)


def _place(image: Tensor) -> Tensor:
    """Each pixel's two coordinates in [-1, 1]: (B, C, H, W) → (B, 2, H, W)."""
    axes = [torch.linspace(-1, 1, size, device=image.device, dtype=image.dtype) for size in image.shape[-2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(image), -1, -1, -1)


class FilmUNet(TextMaskGenerator):
    """A full-resolution U-Net whose decoder output is modulated by the text (FiLM), then read out 1×1.

    With ``position`` each pixel's coordinates enter the network and stand beside its features, so that a text that
    names a side or a level can lean the mask there from the first step on.

    w·(γ(t)⊙F + β(t)) + c = ⟨F, w⊙γ(t)⟩ + (w·β(t) + c): a product with the cached F.
    """

    text_mean: Tensor
    text_axes: Tensor

    def __init__(self, settings: GeneratorSettings, text_size: int, prior: float) -> None:
        super().__init__()
        inputs, channels = 5 if settings.position else 3, settings.channels
        self.unet = (
            basic_unet(inputs, channels)
            if settings.network == "basic_unet"
            else unet(2, inputs, channels, (2,) * (len(channels) - 1))
        )
        self.position = settings.position
        width = channels[0] + (2 if settings.position else 0)
        self.film = nn.Sequential(nn.Linear(TEXT_AXES, 128), nn.GELU(), nn.Linear(128, 2 * width))
        self.read = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.tensor(math.log(prior / (1 - prior))))
        self.register_buffer("text_mean", torch.zeros(text_size))
        self.register_buffer("text_axes", torch.zeros(text_size, TEXT_AXES))

    def fit_text(self, texts: Tensor) -> None:
        """Learn in what the run's texts differ, (T, D + width): their principal axes, scaled to one variance each.

        Sentence embeddings of similar captions are nearly parallel (cosine 0.95 and more), and a word such as "left"
        moves them least of all; without this the text would hardly change the modulation.
        """
        mean, axes = principal_axes(texts)
        self.text_mean.copy_(mean)
        self.text_axes.copy_(axes)

    def features(self, image: Tensor) -> Tensor:
        if not self.position:
            return F.relu(self.unet(image))
        place = _place(image)
        return torch.cat([F.relu(self.unet(torch.cat([image, place], 1))), place], 1)

    def text_weights(self, text: Tensor) -> tuple[Tensor, Tensor]:
        standard = standardised(text, self.text_mean, self.text_axes)
        scale, shift = self.film(standard).float().chunk(2, dim=-1)
        return self.read * (1 + scale), (self.read * shift).sum(-1) + self.bias


class GatedUp(nn.Module):
    """×2 upsampling and a gated 3×3 residual (TCL's decoder block)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x + torch.tanh(self.gate) * F.gelu(self.norm(self.convolve(x)))


class FrozenLinear(TextMaskGenerator):
    """The paper's: encoders frozen; ℓ = s·⟨E, t⟩ + c + κ·(⟨P_raw, t⟩ − m)/sd.

    E is the decoded patch grid, P_raw the undecoded patches (the knowledge-preserving branch); m and sd run over
    training patches. ``vlm`` is held outside the module's parameters and kept in eval mode.
    """

    raw_mean: Tensor
    raw_sd: Tensor

    def __init__(self, vlm: VisionLanguageModel, embedding_size: int, prior: float) -> None:
        super().__init__()
        self._vlm = [vlm]
        width = embedding_size
        self.enter = nn.Conv2d(vlm.image_width, width, 1)
        self.decoder = nn.Sequential(GatedUp(width), GatedUp(width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(math.log(prior / (1 - prior))))
        self.raw_kappa = nn.Parameter(torch.tensor(math.log(math.expm1(0.3))))
        self.contrast = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("raw_mean", torch.zeros(()))
        self.register_buffer("raw_sd", torch.ones(()))
        self.embedding_size = embedding_size

    def features(self, image: Tensor) -> Tensor:
        vlm = self._vlm[0].eval()
        with torch.no_grad():
            patches = vlm.image_tokens(image)[1]
            raw = F.normalize(vlm.patch_head(patches.movedim(1, -1)).float(), dim=-1).movedim(-1, 1)
        decoded = F.normalize(self.decoder(self.enter(patches)).float(), dim=1)
        raw = F.interpolate(raw, decoded.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([decoded, raw], 1)

    def text_weights(self, text: Tensor) -> tuple[Tensor, Tensor]:
        text = text[..., : self.embedding_size]
        kappa = F.softplus(self.raw_kappa) / self.raw_sd
        weights = torch.cat([self.log_scale.exp() * text, kappa * text], -1)
        return weights, (self.bias - kappa * self.raw_mean).expand(text.shape[:-1])

    @torch.no_grad()
    def observe(self, features: Tensor, text: Tensor, momentum: float = 0.01) -> None:
        """Let m and sd follow the similarities of a training batch: features (B, 2D, h, w), text (B, S, D)."""
        similarity = torch.einsum("bdhw,bsd->bshw", features[:, self.embedding_size :].float(), text.float())
        # not in place: the step's earlier logits still need the old values for their gradients
        self.raw_mean = self.raw_mean.lerp(similarity.mean(), momentum)
        self.raw_sd = self.raw_sd.lerp(similarity.std().clamp(min=1e-3), momentum)


def build_generator(settings: GeneratorSettings, vlm: VisionLanguageModel, prior: float) -> TextMaskGenerator:
    """Make the form that the settings name; ``prior`` is the foreground fraction in (0, 1)."""
    prior = min(max(prior, 1e-3), 0.9)
    size = vlm.settings.embedding_size
    if settings.form == "film_unet":
        return FilmUNet(settings, vlm.prompt_size, prior)
    return FrozenLinear(vlm, size, prior)
