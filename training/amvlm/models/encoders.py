"""Image and text encoders, built with transformers: a preset's name, a hub id, or a local folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from amvlm.errors import UserError
from amvlm.models.attention import attention_scores, plain_attention
from amvlm.models.description import (
    IMAGE_TYPES,
    TEXT_TYPES,
    plain_recipe,
    safe_tokenizer,
    sentences_from_tokenizers,
)
from amvlm.models.towers import TOWERS, load_tower
from amvlm.text import medical_words
from amvlm.weights import REGISTRY, SAFETENSORS, find

_TINY = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "initializer_range": 128**-0.5}
"""BERT's usual 0.02 is meant for a width of 768: at 128 every image then starts with one and the same CLS, and the
contrast does not leave ln B for hundreds of steps."""
_TINY_IMAGE, _TINY_TEXT = {**_TINY, "num_hidden_layers": 4}, {**_TINY, "num_hidden_layers": 2}
PRETRAINED = {
    "small": ("facebook/deit-small-patch16-224", "minilm"),
    "paper": ("facebook/deit-base-patch16-224", "emilyalsentzer/Bio_ClinicalBERT"),
}
"""Behind the presets, at the hub or in the registry of weights: image encoder, text encoder. ``tiny`` is built here,
from scratch."""
UNUSED = ("pooler.", "embeddings.position_ids")
"""Tensors of published text encoders that no model of ours has."""
_PICKLED = "It must hold config.json and model.safetensors (transformers format; pickled weights are not read)."


@dataclass(frozen=True)
class EncoderRecipe:
    """What rebuilds an encoder without a hub: a transformers model type and its configuration."""

    model_type: str
    config: dict[str, Any]

    def build(self) -> nn.Module:
        if self.model_type in TOWERS:
            return TOWERS[self.model_type]()
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(self.model_type, **self.config)
        model: nn.Module = AutoModel.from_config(config, **_POOLERLESS.get(self.model_type, {}))
        return _ready(model)


_POOLERLESS: dict[str, dict[str, Any]] = {
    name: {"add_pooling_layer": False} for name in ("vit", "deit", "bert", "roberta", "electra")
}


def load_image_encoder(name: str, image_size: int) -> tuple[EncoderRecipe, nn.Module]:
    """``tiny`` (ViT from scratch, patch 8), ``small``, ``paper``, a tower of the registry, a hub id or a local folder.

    Raises
    ------
    UserError
        If it cannot be loaded, or cuts no square patches.
    """
    if name in TOWERS:
        known: Any = TOWERS[name].config
        _check_divides(known.patch_size, image_size)
        return EncoderRecipe(known.model_type, known.recipe()), load_tower(name)
    if name == "tiny":
        recipe = EncoderRecipe("vit", {**_TINY_IMAGE, "image_size": image_size, "patch_size": 8, "num_channels": 3})
        return recipe, recipe.build()
    recipe, model = _pretrained(PRETRAINED[name][0] if name in PRETRAINED else name)
    config: Any = model.config
    if not isinstance(getattr(config, "patch_size", None), int) or not hasattr(config, "hidden_size"):
        raise UserError(
            f"{Path(name).name!r} ({config.model_type}) is not an image encoder with patches",
            remedy="Choose a vision transformer, for example a ViT or DeiT.",
        )
    _check_divides(config.patch_size, image_size)
    return recipe, model


def _check_divides(patch: int, image_size: int) -> None:
    if image_size % patch:
        raise UserError(
            f"an image of {image_size} px cannot be cut into patches of {patch} px",
            remedy=f"Choose an image size that {patch} divides.",
        )


def load_text_encoder(name: str) -> tuple[EncoderRecipe, nn.Module, Tokenizer]:
    """``tiny`` (BERT from scratch with our word list), ``minilm``, ``small``, ``paper``, a hub id or a local folder.

    Raises
    ------
    UserError
        If it cannot be loaded, has no fast tokeniser, or does not read text.
    """
    if name == "tiny":
        tokenizer = medical_tokenizer()
        config = {**_TINY_TEXT, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 128}
        recipe = EncoderRecipe("bert", config)
        return recipe, recipe.build(), tokenizer
    from transformers import AutoTokenizer

    if registered(name):
        folder = find(registered(name))
        recipe, model = _registered(folder)
        name = str(folder)
    else:
        name = PRETRAINED[name][1] if name in PRETRAINED else name
        recipe, model = _pretrained(name)
    if not hasattr(model.config, "vocab_size") or not hasattr(model.config, "hidden_size"):
        raise UserError(
            f"{Path(name).name!r} is not a text encoder", remedy="Choose a BERT-like encoder, for example a MiniLM."
        )
    try:
        fast = AutoTokenizer.from_pretrained(**_place(name), use_fast=True, trust_remote_code=False)
        content = fast.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            "the text encoder has no fast tokeniser", file=name, remedy="It needs tokenizer.json."
        ) from error
    return recipe, model, safe_tokenizer(content)


def registered(text_encoder: str) -> str:
    """The registry's name behind a setting ("small" is built on "minilm"), or "" for an encoder of another origin."""
    name = PRETRAINED[text_encoder][1] if text_encoder in PRETRAINED else text_encoder
    return name if name in REGISTRY else ""


def text_tensors(folder: Path) -> dict[str, Tensor]:
    """Name → tensor of a published text encoder, less what our models do not have."""
    tensors = load_file(folder / SAFETENSORS)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}


def _registered(folder: Path) -> tuple[EncoderRecipe, nn.Module]:
    """A text encoder of the registry, whose bytes are known: no loader has anything to report."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    recipe = EncoderRecipe(config.model_type, plain_recipe(config.to_diff_dict()))
    model = recipe.build()
    model.load_state_dict(text_tensors(folder))
    return recipe, model


def _pretrained(name: str) -> tuple[EncoderRecipe, nn.Module]:
    from transformers import AutoConfig, AutoModel

    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError("the encoder folder is not complete", file=name, remedy=_PICKLED)
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else the hub is asked to convert pickles in the background
    try:
        config = AutoConfig.from_pretrained(**_place(name), trust_remote_code=False)
        options = _POOLERLESS.get(config.model_type, {})
        model = AutoModel.from_pretrained(**_place(name), trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"the encoder {Path(name).name!r} could not be loaded", remedy=_PICKLED) from error
    if config.model_type not in (*IMAGE_TYPES, *TEXT_TYPES):
        raise UserError(
            f"encoders of type {config.model_type!r} are not known here", remedy="Choose a ViT, or a BERT-like encoder."
        )
    return EncoderRecipe(config.model_type, plain_recipe(config.to_diff_dict())), _ready(model)


def _place(name: str) -> dict[str, str]:
    """What transformers is told: a folder, or a hub id with its revision ("owner/name@revision"; "main" without)."""
    if Path(name).exists() or "@" not in name:
        return {"pretrained_model_name_or_path": name}
    hub_id, revision = name.rsplit("@", 1)
    return {"pretrained_model_name_or_path": hub_id, "revision": revision}


_ATTENTION = "amvlm_cls_row"


def _ready(model: nn.Module) -> nn.Module:
    """No dropout (views and noise are keyed by case, so that several processes repeat one), and CLS attention kept."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    _register_attention()
    known: Any = model
    try:
        known.set_attn_implementation(_ATTENTION)
    except (ValueError, AttributeError):
        known.set_attn_implementation("eager")
    return model


@functools.cache
def _register_attention() -> None:
    """Teach transformers an attention that is its fast one and also says where the CLS token looks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, output_attentions: bool = False, **rest: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            return plain_attention(query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5)
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        if not output_attentions:
            return output, None
        with torch.no_grad():
            scores = attention_scores(query[:, :, :1], key, attention_mask, scaling or query.shape[-1] ** -0.5)
            return output, scores.float().softmax(-1)

    AttentionInterface.register(_ATTENTION, attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def medical_tokenizer() -> Tokenizer:
    """WordPiece over our list of radiology words, falling back to letters, so no Latin word is unknown."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters), *medical_words()]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


@dataclass(frozen=True)
class TokenisedTexts:
    """Texts as an encoder reads them, and how sub-words make words.

    ``ids`` and ``attended`` are (U, L), int64; ``word_of`` (U, L) gives each sub-word's word, −1 for specials and
    punctuation; ``words`` (U, T) numbers the words, equal ones alike, −1 for padding.
    """

    ids: Tensor
    attended: Tensor
    word_of: Tensor
    words: Tensor

    def to(self, device: torch.device) -> TokenisedTexts:
        return TokenisedTexts(*(sent(part, device) for part in (self.ids, self.attended, self.word_of, self.words)))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> TokenisedTexts:
    """Token ids, and words as sums of sub-words; specials and punctuation belong to no word.

    Raises
    ------
    UserError
        If a text has more tokens than the encoder reads: nothing is cut off silently.
    """
    with sentences_from_tokenizers("the text cannot be split into words by this model"):
        encodings = tokenizer.encode_batch(list(texts))
    lengths = [len(encoding.ids) for encoding in encodings]
    if max(lengths) > longest:
        worst = texts[lengths.index(max(lengths))]
        raise UserError(
            f"the text “{worst[:40]}…” has {max(lengths)} tokens, the encoder reads {longest}",
            remedy="Shorten it, or choose a text encoder that reads more.",
        )
    ids = torch.zeros(len(texts), max(lengths), dtype=torch.int64)
    attended, word_of = torch.zeros_like(ids), torch.full_like(ids, -1)
    numbers: dict[str, int] = {}
    rows: list[list[int]] = []
    for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        ids[row, : lengths[row]] = torch.tensor(encoding.ids)
        attended[row, : lengths[row]] = 1
        pieces: dict[int, list[int]] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                pieces.setdefault(word, []).append(place)
        spelled = [(encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1], own) for own in pieces.values()]
        kept = [(text[first:last], own) for first, last, own in spelled if any(map(str.isalnum, text[first:last]))]
        for number, (_, own) in enumerate(kept):
            word_of[row, own] = number
        rows.append([numbers.setdefault(word.strip().lower(), len(numbers)) for word, _ in kept])
    words = torch.full((len(texts), max(1, *map(len, rows)) if rows else 1), -1, dtype=torch.int64)
    for row, own_words in enumerate(rows):
        words[row, : len(own_words)] = torch.tensor(own_words, dtype=torch.int64)
    return TokenisedTexts(ids, attended, word_of, words)
