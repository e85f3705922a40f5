"""Training loops: pre-training of the vision-language model, and text-guided semi-supervised training."""

from amvlm.learning.pretrain import pretrain
from amvlm.learning.train import train
from amvlm.store.runs import RunFolder

__all__ = ["RunFolder", "pretrain", "train"]
