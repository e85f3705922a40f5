"""Using models: a session per volume, and evaluation of whole splits."""

from amvlm.inference.catalogue import available_models, bundled_model_folder, find_model
from amvlm.inference.evaluate import evaluate
from amvlm.inference.evaluate_vlm import evaluate_vlm
from amvlm.inference.quality import assess, assessing
from amvlm.inference.session import Session, SliceResult

__all__ = [
    "Session",
    "SliceResult",
    "assess",
    "assessing",
    "available_models",
    "bundled_model_folder",
    "evaluate",
    "evaluate_vlm",
    "find_model",
]
