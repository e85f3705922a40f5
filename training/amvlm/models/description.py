"""What a model's folder says of its networks, checked before anything is built or allocated.

A model may be a stranger's. Every number is bounded, encoders are of known types, and the tensors that the description
asks for are compared with the header of the weights while no memory is taken (torch's meta device).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from amvlm.config import EncoderSettings, GeneratorSettings, PlannedTextSettings, StudentSettings
from amvlm.errors import UserError

LONGEST_CONFIG, LONGEST_TOKENIZER, LONGEST_HEADER = 1 << 20, 32 << 20, 16 << 20
"""Bytes."""
MOST_PARAMETERS = 1_000_000_000
MOST_PATCHES = 128 * 128
IMAGE_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "beit", "data2vec-vision", "vit_mae",
               "vit_msn", "ijepa", "efficientnet-lite0",
               "litemedsam")  # fmt: skip
TEXT_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "albert", "deberta",
              "deberta-v2", "modernbert", "ernie", "biogpt", "megatron-bert", "nomic_bert")  # fmt: skip
_LIMITS = {"vocab_size": 1_000_000, "image_size": 4_096, "max_position_embeddings": 65_536, "patch_size": 128,
           "num_channels": 4}  # fmt: skip
_LIMITS_BY_PART = {"layers": 64, "heads": 128, "size": 16_384, "dim": 16_384, "groups": 64}
_OTHER_LIMIT = 1_000_000
_POSITIVE = ("hidden_size", "patch_size", "image_size", "vocab_size", "num_attention_heads", "num_channels")
_NO_ARCHITECTURE = frozenset({"id2label", "label2id", "architectures", "transformers_version", "problem_type",
                              "task_specific_params", "torch_dtype", "dtype", "num_labels", "finetuning_task",
                              "model_type", "name_or_path"})  # fmt: skip
_CODE = re.compile(r"auto_map|attn_impl|quantization|kernel|trust|backbone|adapter|custom")
_PLAIN_WORD = re.compile(r"[\w.|+-]{0,64}")
_PLAIN_REGEXES = frozenset({" {2,}", r"\s+", " +"})
Header = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name → dtype and shape."""
_FLOATS = {torch.float32, torch.float16, torch.bfloat16}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}


def plain_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's configuration without what builds nothing: labels, names, versions, private keys."""
    return {key: value for key, value in config.items() if key not in _NO_ARCHITECTURE and not key.startswith("_")}


def _checked_recipe(config: dict[str, Any]) -> dict[str, Any]:
    config = plain_recipe(config)
    if len(config) > 200:
        raise ValueError("too many settings")
    for key, value in config.items():
        if _CODE.search(key) or not _PLAIN_WORD.fullmatch(key):
            raise ValueError(f"{key[:40]} is not a setting of an encoder")
        _check_value(key, value)
    return config


def _check_value(key: str, value: Any, depth: int = 0) -> None:
    """A bounded number, a plain word, or a short list or table of these."""
    if isinstance(value, dict | list) and depth < 2 and len(value) <= 200:
        parts = value.items() if isinstance(value, dict) else ((key, part) for part in value)
        for name, part in parts:
            if not isinstance(name, str) or _CODE.search(name):
                raise ValueError(f"{key[:40]} holds an odd name")
            _check_value(name, part, depth + 1)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int | float):
        part = next((limit for word, limit in _LIMITS_BY_PART.items() if word in key), _OTHER_LIMIT)
        lowest = 1 if key in _POSITIVE else -_OTHER_LIMIT
        if not (math.isfinite(value) and lowest <= value <= _LIMITS.get(key, part)):
            raise ValueError(f"{key[:40]} is out of bounds")
    elif not isinstance(value, str) or not _PLAIN_WORD.fullmatch(value):
        raise ValueError(f"{key[:40]} is neither a number nor a word")


Recipe = Annotated[dict[str, Any], AfterValidator(_checked_recipe)]


class NamedWeights(BaseModel):
    """Weights of the registry that a model uses and does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9-]{1,60}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of model.safetensors")


class Architecture(BaseModel):
    """``config.json`` of a model."""

    model_config = ConfigDict(extra="ignore")

    encoders: EncoderSettings
    image: Recipe
    image_type: Literal[IMAGE_TYPES]  # type: ignore[valid-type]
    text: Recipe
    text_type: Literal[TEXT_TYPES]  # type: ignore[valid-type]
    generator: GeneratorSettings | PlannedTextSettings
    student: StudentSettings | None
    plan: dict[str, Any] | None = None
    prior: float = Field(gt=0, lt=1)
    format: Literal[3] = 3
    text_weights: NamedWeights | None = Field(None, description="the text encoder's, where they are the registry's")
    weights_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="of model.safetensors; older ones: none")

    def check_patches(self) -> None:
        """Refuse more patches than any of our encoders reads: attention takes their square.

        Raises
        ------
        ValueError
        """
        patch = self.image.get("patch_size", 16)
        if not isinstance(patch, int) or self.encoders.image_size % patch:
            raise ValueError("patches do not divide the image")
        if (self.encoders.image_size // patch) ** 2 > MOST_PATCHES:
            raise ValueError("too many patches")


@contextmanager
def sentences_from_tokenizers(what: str) -> Iterator[None]:
    """The tokenizers library raises bare ``Exception``, and its panics are ``BaseException``: both become a sentence.

    Raises
    ------
    UserError
    """
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise UserError(what, remedy="Choose another text, or another model.") from error


def safe_tokenizer(content: str) -> Tokenizer:
    """Build a tokeniser that neither pads nor cuts, and whose patterns cannot run for ever.

    Raises
    ------
    UserError
        If the library cannot read it, or it holds a regular expression that we do not know.
    """
    if len(content) > LONGEST_TOKENIZER:
        raise UserError("the tokeniser is too large", remedy="Choose another model.")
    with sentences_from_tokenizers("the tokeniser is damaged"):
        for part in _parts(json.loads(content)):
            if "Regex" in part and part["Regex"] not in _PLAIN_REGEXES:
                raise UserError(
                    "the tokeniser uses a regular expression of its own, which might never end",
                    remedy="Choose a BERT-like text encoder.",
                )
        tokenizer = Tokenizer.from_str(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every table inside a JSON value, except the list of words."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += [inner for key, inner in part.items() if key not in ("vocab", "merges")]
        elif isinstance(part, list):
            waiting += part


def check_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokeniser whose words or special tokens the text encoder has no row for.

    Raises
    ------
    UserError
    """
    with sentences_from_tokenizers("the tokeniser is damaged"):
        ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("a").ids]
    if not ids or max(ids) >= vocab_size:
        raise UserError("the tokeniser does not fit the text encoder", remedy="Copy the model again.")


def header_of(weights: Path) -> Header:
    """Name → dtype and shape of the tensors in a safetensors file, read from its header alone.

    Raises
    ------
    ValueError, OSError, SafetensorError
        If the header is longer than the file, too long, or holds other dtypes than networks of ours.
    """
    size = weights.stat().st_size
    if size > 4 * MOST_PARAMETERS + LONGEST_HEADER:
        raise ValueError("the file is too large")
    with weights.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= min(LONGEST_HEADER, size - 8):
        raise ValueError("the header is longer than the file")
    found: Header = {}
    with safe_open(weights, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            part = tensors.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise ValueError("a tensor is of an unknown type")
            found[name] = (_DTYPES[part.get_dtype()], tuple(part.get_shape()))
    if sum(math.prod(shape) for _, shape in found.values()) > MOST_PARAMETERS:
        raise ValueError("too many parameters")
    return found


def fits(header: Header, networks: Mapping[str, torch.nn.Module]) -> bool:
    """True where a file holds exactly the tensors of some networks, which may be on the meta device."""
    wanted = {
        f"{part}.{name}": tensor for part, network in networks.items() for name, tensor in network.state_dict().items()
    }
    if wanted.keys() != header.keys():
        return False
    return all(
        tuple(tensor.shape) == header[name][1] and _same_kind(tensor.dtype, header[name][0])
        for name, tensor in wanted.items()
    )


def _same_kind(one: torch.dtype, other: torch.dtype) -> bool:
    return one == other or (one in _FLOATS and other in _FLOATS)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """True where no tensor holds NaN or infinity, and no variance is negative."""
    return all(
        bool(tensor.isfinite().all()) and not (name.endswith("running_var") and bool((tensor < 0).any()))
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    )
