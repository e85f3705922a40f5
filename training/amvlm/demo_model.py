"""``make demo-model``: make the bundled model from the start set with the project's own commands.

Five labelled volumes (the start set), the pool's images without labels, nothing of the validation and test cases.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from amvlm.cli import main
from amvlm.sample.study import bundled_model_folder, copy_sample_study

NAME = "hippocampus-demo"
TEXT_ENCODER = "minilm"
"""Frozen, and named by its hash in the model; a study that starts from the bundled model keeps it."""
LICENCE = "CC BY-SA 4.0, made from Medical Segmentation Decathlon Task04 (see ATTRIBUTION.md of the sample study)."


def make_model(into: Path) -> None:
    """Pre-train and train on a fresh copy of the sample study, then replace the folder ``into``."""
    from amvlm.models import AmvlmModel

    with tempfile.TemporaryDirectory() as temporary:
        study = Path(temporary) / "study"
        store = copy_sample_study(study)
        common = ["--seed", "0", "--precision", "bf16"]
        sizes = ["--image-size", "64", "--batch-size", "16", "--text-encoder", TEXT_ENCODER]
        main(["pretrain", str(study), "--name", "base", "--steps", "400", "--generator-steps", "400", *sizes, *common])
        main(["train", str(study), "--model", "base", "--name", NAME, "--steps", "2000", *common])
        model = AmvlmModel.load(store.folder / "models" / NAME)
        model.card = model.card.model_copy(update={"licence": LICENCE})
        model.save(store.folder / "models" / NAME)
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(store.folder / "models" / NAME, into)


if __name__ == "__main__":
    make_model(bundled_model_folder())
