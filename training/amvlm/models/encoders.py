"""Image and text encoders, built with transformers: built-in ``tiny``, a hub id, or a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from amvlm.errors import UserError

_TINY_IMAGE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
_TINY_TEXT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
_PICKLED = "It must hold config.json and model.safetensors (transformers format; pickled weights are not read)."


@dataclass(frozen=True)
class EncoderRecipe:
    """What rebuilds an encoder without a hub: a transformers model type and its configuration."""

    model_type: str
    config: dict[str, Any]

    def build(self) -> nn.Module:
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(self.model_type, **self.config)
        model: nn.Module = AutoModel.from_config(config, **_POOLERLESS.get(self.model_type, {}))
        return model


_POOLERLESS: dict[str, dict[str, Any]] = {
    name: {"add_pooling_layer": False} for name in ("vit", "deit", "bert", "roberta", "electra")
}


def load_image_encoder(name: str, image_size: int) -> tuple[EncoderRecipe, nn.Module]:
    """``tiny`` (ViT from scratch, patch 8), a hub id or a local folder."""
    if name == "tiny":
        recipe = EncoderRecipe("vit", {**_TINY_IMAGE, "image_size": image_size, "patch_size": 8, "num_channels": 3})
        return recipe, recipe.build()
    return _pretrained(name)


def load_text_encoder(name: str) -> tuple[EncoderRecipe, nn.Module, Tokenizer]:
    """``tiny`` (BERT from scratch with our word list), a hub id or a local folder with a fast tokeniser."""
    if name == "tiny":
        tokenizer = medical_tokenizer()
        config = {**_TINY_TEXT, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 128}
        recipe = EncoderRecipe("bert", config)
        return recipe, recipe.build(), tokenizer
    from transformers import AutoTokenizer

    recipe, model = _pretrained(name)
    try:
        fast = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            "the text encoder has no fast tokeniser", file=name, remedy="It needs tokenizer.json."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return recipe, model, tokenizer


def _pretrained(name: str) -> tuple[EncoderRecipe, nn.Module]:
    from transformers import AutoConfig, AutoModel

    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError("the encoder folder is not complete", file=name, remedy=_PICKLED)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        options = _POOLERLESS.get(config.model_type, {})
        model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the encoder {Path(name).name!r} could not be loaded", remedy=_PICKLED) from error
    plain = {key: value for key, value in config.to_diff_dict().items() if key not in ("model_type", "dtype")}
    return EncoderRecipe(config.model_type, plain), model


def medical_tokenizer() -> Tokenizer:
    """WordPiece over our list of radiology words, falling back to letters, so no Latin word is unknown."""
    words = resources.files("amvlm.text").joinpath("vocabulary.txt").read_text("utf-8").split()
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters), *words]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def tokenise(tokenizer: Tokenizer, texts: list[str], longest: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (B, T), int64.

    Raises
    ------
    UserError
        If a text has more tokens than the encoder reads: nothing is cut off silently.
    """
    encodings = tokenizer.encode_batch(texts)
    lengths = [len(encoding.ids) for encoding in encodings]
    if max(lengths) > longest:
        worst = texts[lengths.index(max(lengths))]
        raise UserError(
            f"the text “{worst[:40]}…” has {max(lengths)} tokens, the encoder reads {longest}",
            remedy="Shorten it, or choose a text encoder that reads more.",
        )
    ids = torch.zeros(len(texts), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : lengths[row]] = torch.tensor(encoding.ids)
        mask[row, : lengths[row]] = 1
    return ids, mask
