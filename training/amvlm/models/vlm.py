"""The vision-language model: two encoders and the heads that bring them into one space (METHOD §1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from amvlm.config import EncoderSettings
from amvlm.models.encoders import EncoderRecipe, load_image_encoder, load_text_encoder, tokenise


def _head(width: int, embedding_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, embedding_size),
        nn.LayerNorm(embedding_size),
        nn.ReLU(),
        nn.Linear(embedding_size, embedding_size),
    )


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
        if image is None or text is None or tokenizer is None:
            self.image_recipe, self.image_encoder = load_image_encoder(settings.image_encoder, settings.image_size)
            self.text_recipe, self.text_encoder, self.tokenizer = load_text_encoder(settings.text_encoder)
        else:
            self.image_recipe, self.image_encoder = image, image.build()
            self.text_recipe, self.text_encoder, self.tokenizer = text, text.build(), tokenizer
        image_config: Any = self.image_encoder.config
        text_config: Any = self.text_encoder.config
        image_width, text_width = int(image_config.hidden_size), int(text_config.hidden_size)
        self.image_width, self.patch = image_width, int(image_config.patch_size)
        self.longest_text = int(getattr(text_config, "max_position_embeddings", 512))
        self.image_head = _head(image_width, settings.embedding_size)
        self.patch_head = _head(image_width, settings.embedding_size)
        self.text_head = _head(text_width, settings.embedding_size)

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
        tokens = self.image_encoder(pixel_values=image, interpolate_pos_encoding=True).last_hidden_state
        rows, columns = image.shape[-2] // self.patch, image.shape[-1] // self.patch
        patches = tokens[:, -rows * columns :].transpose(1, 2)
        return tokens[:, 0], patches.reshape(*patches.shape[:2], rows, columns)

    def embed_image(self, image: Tensor) -> Tensor:
        """Global image embedding, (B, D), L2-normalised, float32."""
        return F.normalize(self.image_head(self.image_tokens(image)[0]).float(), dim=-1)

    def embed_text(self, texts: list[str]) -> Tensor:
        """Global text embedding t, (B, D), L2-normalised, float32; equal texts are encoded once.

        Raises
        ------
        UserError
            If a text is longer than the encoder reads.
        """
        unique = list(dict.fromkeys(texts))
        ids, mask = tokenise(self.tokenizer, unique, self.longest_text)
        device = next(self.text_head.parameters()).device
        tokens = self.text_encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        embeddings = F.normalize(self.text_head(tokens[:, 0]).float(), dim=-1)
        position = {text: index for index, text in enumerate(unique)}
        return embeddings[torch.tensor([position[text] for text in texts], device=device)]
