"""A text encoder of the registry: a model names it by hash, and does not hold its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from amvlm import weights
from amvlm.errors import UserError
from amvlm.models.description import Header, NamedWeights, header_of
from amvlm.models.encoders import UNUSED, registered, text_tensors

if TYPE_CHECKING:
    from amvlm.models.vlm import VisionLanguageModel

PREFIX = "vlm.text_encoder."


def named_text_encoder(vlm: VisionLanguageModel) -> NamedWeights | None:
    """What to write instead of the text encoder's weights: only where they are, bit for bit, the registry's."""
    name = registered(vlm.settings.text_encoder)
    if not name:
        return None
    try:
        kept = text_tensors(weights.find(name))
    except UserError:  # not at hand to compare with: the model keeps its own copy
        return None
    own = vlm.text_encoder.state_dict()
    same = own.keys() == kept.keys() and all(torch.equal(own[key].cpu(), tensor) for key, tensor in kept.items())
    return NamedWeights(name=name, sha256=weights.known(name).files[0].sha256) if same else None


def folder_of(named: NamedWeights, model: Path) -> Path:
    """The folder of the weights that a model names.

    Raises
    ------
    MissingWeightsError
        If they are not on this machine.
    UserError
        If they are damaged, or this release knows no such weights.
    """
    entry = weights.REGISTRY.get(named.name)
    if entry is None or entry.files[0].sha256 != named.sha256:
        raise UserError(
            "the model names a text encoder that this release does not know", file=model,
            remedy="Use the release of amvlm that made it, or another model.",
        )  # fmt: skip
    return weights.find(named.name)


def text_header(folder: Path) -> Header:
    """Dtypes and shapes of its tensors, as a model's file would have them."""
    header = header_of(folder / weights.SAFETENSORS)
    return {PREFIX + name: entry for name, entry in header.items() if not name.startswith(UNUSED)}


def lock(text_encoder: nn.Module, setting: str) -> None:
    """Freeze an encoder of the registry, so that a model can go on naming it."""
    if registered(setting):
        text_encoder.requires_grad_(False)
