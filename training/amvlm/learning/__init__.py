"""Training loops: pre-training of the vision-language model, and text-guided semi-supervised training."""

from amvlm.learning.pretrain import pretrain
from amvlm.learning.run_folder import RunFolder
from amvlm.learning.train import train

__all__ = ["RunFolder", "pretrain", "train"]
