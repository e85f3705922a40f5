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


class VisionLanguageModel(nn.Module):
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
        row: Tensor | None = found.attentions[-1][:, :, 0].float().mean(1)[:, -count:].detach() if attention else None
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

    def encode_image(self, image: Tensor) -> Tokens:
        """CLS and patches after their heads, (B, D) and (B, N, D), for images (B, 3, H, W)."""
        image_cls, patches, importance = self._read_image(image, attention=True)
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        if importance is None:
            importance = mask.float()
        return Tokens(_unit(self.image_head(image_cls)), _unit(self.patch_head(patches)), mask, importance)

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

    def encode_text(self, texts: TokenisedTexts) -> Tokens:
        """CLS and words after their heads, (U, D) and (U, T, D); a word is the sum of its sub-words."""
        found = self.text_encoder(input_ids=texts.ids, attention_mask=texts.attended, output_attentions=True)
        hidden, mask = found.last_hidden_state, texts.words >= 0
        place = torch.where(texts.word_of < 0, mask.shape[1], texts.word_of)
        summed = hidden.new_zeros(len(hidden), mask.shape[1] + 1, hidden.shape[2])
        summed = summed.scatter_add(1, place[..., None].expand_as(hidden), hidden)[:, :-1]
        row = found.attentions[-1][:, :, 0].float().mean(1).detach()
        importance = row.new_zeros(len(row), mask.shape[1] + 1).scatter_add(1, place, row)[:, :-1]
        words = _unit(self.word_head(summed)) * mask[..., None]
        return Tokens(_unit(self.text_head(hidden[:, 0])), words, mask, importance)

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
