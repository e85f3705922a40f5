"""Networks and how they are kept on disk."""

from amvlm.models.bundle import AmvlmModel, KnownStructure, ModelCard
from amvlm.models.generator import TextMaskGenerator, build_generator, text_product
from amvlm.models.pamr import pamr
from amvlm.models.student import build_student
from amvlm.models.vlm import VisionLanguageModel

__all__ = [
    "AmvlmModel",
    "KnownStructure",
    "ModelCard",
    "TextMaskGenerator",
    "VisionLanguageModel",
    "build_generator",
    "build_student",
    "pamr",
    "text_product",
]
