"""The vision-language model: two encoders and the heads that bring them into one space (METHOD §1)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from amvlm.config import EncoderSettings
from amvlm.models.encoders import EncoderRecipe, TokenisedTexts, load_image_encoder, load_text_encoder, tokenise
from amvlm.models.registered import lock
from amvlm.text import normalise_caption, swap_sides


def _head(width: int, embedding_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, embedding_size),
        nn.LayerNorm(embedding_size),
        nn.ReLU(),
        nn.Linear(embedding_size, embedding_size),
    )


class Tokens(NamedTuple):
    """One modality of a batch in the common space, float32, L2-normalised; ``importance`` is detached.

    ``cls`` (B, D); ``tokens`` (B, T, D); ``mask`` (B, T), bool; ``importance`` (B, T), the last layer's CLS attention.
    """

    cls: Tensor
    tokens: Tensor
    mask: Tensor
    importance: Tensor


class RawTokens(NamedTuple):
    """One modality of a batch as a frozen encoder says it, before the heads.

    ``cls`` (B, width); ``tokens`` (B, T, width), of texts the words, each the sum of its sub-words; ``importance``
    (B, T), the last layer's CLS attention.
    """

    cls: Tensor
    tokens: Tensor
    importance: Tensor


class Heads(nn.Module):
    """The four heads into the common space, alone: they learn from :class:`RawTokens` of locked encoders."""

    image_head: nn.Sequential
    patch_head: nn.Sequential
    text_head: nn.Sequential
    word_head: nn.Sequential

    @classmethod
    def of(cls, vlm: Heads) -> Heads:
        """The heads of a model, the very same and not copies."""
        heads = cls()
        for name in ("image_head", "patch_head", "text_head", "word_head"):
            setattr(heads, name, getattr(vlm, name))
        return heads

    def read_image(self, image: Tensor) -> RawTokens:
        """Encode images (B, 3, H, W)."""
        raise NotImplementedError

    def read_text(self, texts: TokenisedTexts) -> RawTokens:
        """Encode texts."""
        raise NotImplementedError

    def encode_image(self, image: Tensor | RawTokens) -> Tokens:
        """CLS and patches after their heads, (B, D) and (B, N, D), of images (B, 3, H, W) or of what was read."""
        raw = image if isinstance(image, RawTokens) else self.read_image(image)
        mask = torch.ones(raw.tokens.shape[:2], dtype=torch.bool, device=raw.tokens.device)
        return Tokens(_unit(self.image_head(raw.cls)), _unit(self.patch_head(raw.tokens)), mask, raw.importance)

    def encode_text(self, texts: TokenisedTexts, raw: RawTokens | None = None) -> Tokens:
        """CLS and words after their heads, (U, D) and (U, T, D); ``raw`` is what was read of these texts."""
        raw = self.read_text(texts) if raw is None else raw
        mask = texts.words >= 0
        words = _unit(self.word_head(raw.tokens)) * mask[..., None]
        return Tokens(_unit(self.text_head(raw.cls)), words, mask, raw.importance)


class VisionLanguageModel(Heads):
    """Image and text encoders with heads to D, then L2.

    Parameters
    ----------
    settings : EncoderSettings
    image, text : EncoderRecipe, optional
        Rebuild from a saved model instead of loading pre-trained weights.
    tokenizer : Tokenizer, optional
    """

    def __init__(
        self,
        settings: EncoderSettings,
        image: EncoderRecipe | None = None,
        text: EncoderRecipe | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.unswapped: tuple[str, ...] | None = None
        if image is None or text is None or tokenizer is None:
            self.image_recipe, self.image_encoder = load_image_encoder(settings.image_encoder, settings.image_size)
            self.text_recipe, self.text_encoder, self.tokenizer = load_text_encoder(settings.text_encoder)
        else:
            self.image_recipe, self.image_encoder = image, image.build()
            self.text_recipe, self.text_encoder, self.tokenizer = text, text.build(), tokenizer
        lock(self.text_encoder, settings.text_encoder)
        image_config: Any = self.image_encoder.config
        text_config: Any = self.text_encoder.config
        image_width, text_width = int(image_config.hidden_size), int(text_config.hidden_size)
        self._text_width = text_width
        self.image_width, self.patch = image_width, int(image_config.patch_size)
        self.channels = int(getattr(image_config, "num_channels", 3))
        accepted = inspect.signature(self.image_encoder.forward).parameters
        self._image_options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self.longest_text = int(getattr(text_config, "max_position_embeddings", 512))
        if text_config.model_type in ("roberta", "xlm-roberta", "camembert"):
            self.longest_text -= 2  # their positions begin after the padding index
        self.image_head = _head(image_width, settings.embedding_size)
        self.patch_head = _head(image_width, settings.embedding_size)
        self.text_head = _head(text_width, settings.embedding_size)
        self.word_head = _head(text_width, settings.embedding_size)

    def requires_grad_(self, requires_grad: bool = True) -> VisionLanguageModel:
        """As for any network, but a text encoder of the registry never learns: a model names it by its hash."""
        super().requires_grad_(requires_grad)
        lock(self.text_encoder, self.settings.text_encoder)
        return self

    def _read_image(self, image: Tensor, attention: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """CLS (B, width), patches (B, N, width), and the last layer's CLS attention on patches (B, N)."""
        if self.channels == 1:
            image = image.mean(1, keepdim=True)
        found = self.image_encoder(pixel_values=image, output_attentions=attention, **self._image_options)
        count = (image.shape[-2] // self.patch) * (image.shape[-1] // self.patch)
        row: Tensor | None = None
        if attention and found.attentions is not None:
            row = found.attentions[-1][:, :, 0].float().mean(1)[:, -count:].detach()
        return found.last_hidden_state[:, 0], found.last_hidden_state[:, -count:], row

    def image_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder outputs before the heads.

        Parameters
        ----------
        image : Tensor, (B, 3, H, W), normalised per volume

        Returns
        -------
        image_cls : Tensor, (B, width)
        patch_tokens : Tensor, (B, width, rows, columns)
        """
        image_cls, patches, _ = self._read_image(image, attention=False)
        return image_cls, patches.transpose(1, 2).reshape(*patches.shape[::2], image.shape[-2] // self.patch, -1)

    def read_image(self, image: Tensor) -> RawTokens:
        """What the image encoder says of images (B, 3, H, W); patches weigh alike where it has no attention."""
        image_cls, patches, importance = self._read_image(image, attention=True)
        if importance is None:
            importance = torch.ones(patches.shape[:2], device=patches.device)
        return RawTokens(image_cls, patches, importance)

    def embed_image(self, image: Tensor) -> Tensor:
        """Global image embedding, (B, D), L2-normalised, float32."""
        return _unit(self.image_head(self._read_image(image, attention=False)[0]))

    def read_image_sides(self, unswapped: Sequence[str]) -> None:
        """Swap left and right of every text from now on: for a model taught by captions of the image's sides.

        This is the one place where such a model of an earlier release is told apart: whoever calls names the patient's
        sides.

        Parameters
        ----------
        unswapped : sequence of str
            Texts that are read as they are: the wordings of structures, whose masks lie on the side that they name.
        """
        self.unswapped = tuple(map(normalise_caption, unswapped))

    @property
    def card_laterality(self) -> Literal["patient", "image"]:
        """What the card of a model made with these encoders says."""
        return "patient" if self.unswapped is None else "image"

    def _own_words(self, text: str) -> str:
        return text if self.unswapped is None or text in self.unswapped else swap_sides(text)

    def tokenise(self, texts: Sequence[str]) -> TokenisedTexts:
        """Token ids and words of texts that name the patient's sides.

        Raises
        ------
        UserError
            If a text is longer than the encoder reads.
        """
        return tokenise(self.tokenizer, [*map(self._own_words, texts)], self.longest_text)

    def read_text(self, texts: TokenisedTexts) -> RawTokens:
        """What the text encoder says of texts."""
        found = self.text_encoder(input_ids=texts.ids, attention_mask=texts.attended, output_attentions=True)
        hidden, width = found.last_hidden_state, texts.words.shape[1]
        place = torch.where(texts.word_of < 0, width, texts.word_of)
        summed = hidden.new_zeros(len(hidden), width + 1, hidden.shape[2])
        summed = summed.scatter_add(1, place[..., None].expand_as(hidden), hidden)[:, :-1]
        row = found.attentions[-1][:, :, 0].float().mean(1).detach()
        importance = row.new_zeros(len(row), width + 1).scatter_add(1, place, row)[:, :-1]
        return RawTokens(hidden[:, 0], summed, importance)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Global text embedding t, (B, D), L2-normalised, float32; equal texts are encoded once.

        Raises
        ------
        UserError
            If a text is longer than the encoder reads.
        """
        return self.embed_prompt(texts)[:, : self.settings.embedding_size]

    @property
    def prompt_size(self) -> int:
        """Width of :meth:`embed_prompt`."""
        return self.settings.embedding_size + self._text_width

    def embed_prompt(self, texts: Sequence[str]) -> Tensor:
        """What a text mask generator reads, (B, D + width), float32: t, then the mean of the words before any head.

        The contrast makes t forget what no image has told apart yet, sides first; the words still say it.
        """
        unique = list(dict.fromkeys(texts))
        device = next(self.text_head.parameters()).device
        tokenised = self.tokenise(unique).to(device)
        hidden = self.text_encoder(input_ids=tokenised.ids, attention_mask=tokenised.attended).last_hidden_state
        in_word = (tokenised.word_of >= 0).to(hidden.dtype)[..., None]
        words = (hidden * in_word).sum(1) / in_word.sum(1).clamp(min=1)
        embeddings = torch.cat([_unit(self.text_head(hidden[:, 0])), words.float()], 1)
        position = {text: index for index, text in enumerate(unique)}
        return embeddings[torch.tensor([position[text] for text in texts], device=device)]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
