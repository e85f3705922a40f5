"""What benchmarks share: expert masks as perfect corrections, and a base that knows nothing."""

from __future__ import annotations

from collections.abc import Iterable

from amvlm.config import EncoderSettings, GeneratorSettings
from amvlm.models import AmvlmModel, ModelCard, VisionLanguageModel, build_generator
from amvlm.store import LabelStore


def accept_expert_masks(store: LabelStore, case_ids: Iterable[str]) -> None:
    """Accept the reference masks of some cases, every structure that has one."""
    references = store.references()
    for case_id in case_ids:
        for structure in store.structures():
            key = (case_id, structure.name)
            if key in references:
                store.accept(*key, store.masks.read(references[key]).array)


def untrained_model(text_encoder: str = "tiny") -> AmvlmModel:
    """A base with random weights, from torch's generator as it stands: nothing is inherited from it."""
    vlm, form = VisionLanguageModel(EncoderSettings(image_size=64, text_encoder=text_encoder)), GeneratorSettings()
    card = ModelCard(name="untrained", kind="pretrained")
    return AmvlmModel(vlm, build_generator(form, vlm, 0.05), form, None, None, card)
