"""``make demo-model``: make the bundled model with the project's own commands.

Five labelled volumes (the start set) and the pool's images without labels teach it. The validation cases' expert masks
choose α and calibrate expected Dice; nothing of the test cases is seen. A third structure, the whole hippocampus, is
the union of the two parts.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from amvlm.cli import main
from amvlm.sample.study import accept_references, bundled_model_folder, copy_sample_study, sample_splits
from amvlm.store import LabelStore, Revision

NAME, WHOLE = "hippocampus-demo", "whole hippocampus"
MINUTES = 10.0
TEXT_ENCODER = "minilm"
"""Frozen, and named by its hash in the model; a study that starts from the bundled model keeps it."""
LICENCE = "CC BY-SA 4.0, made from Medical Segmentation Decathlon Task04 (see ATTRIBUTION.md of the sample study)."


def make_model(into: Path, minutes: float = MINUTES) -> None:
    """Pre-train and train on a fresh copy of the sample study, then replace the folder ``into``."""
    from amvlm.models import AmvlmModel

    with tempfile.TemporaryDirectory() as temporary:
        study = Path(temporary) / "study"
        store = copy_sample_study(study)
        accept_whole(store)
        encoders = ["--preset", "tiny", "--image-size", "64", "--text-encoder", TEXT_ENCODER]
        stages = ["--steps", "400", "--generator-steps", "0", "--batch-size", "16"]
        main(["pretrain", str(study), "--name", "base", "--seed", "0", *encoders, *stages])
        main(["train", str(study), "--model", "base", "--name", NAME, "--seed", "0", "--minutes", f"{minutes:g}"])
        model = AmvlmModel.load(store.folder / "models" / NAME)
        model.card = model.card.model_copy(update={"licence": LICENCE})
        model.save(store.folder / "models" / NAME)
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(store.folder / "models" / NAME, into)


def accept_whole(store: LabelStore) -> None:
    """Accept the validation cases' expert masks, and in every judged case the union of the parts."""
    accept_references(store, [name for name, split in sample_splits().items() if split == "val"])
    judged: dict[str, list[Revision]] = {}
    for revision in store.snapshot().revisions:
        judged.setdefault(revision.case_id, []).append(revision)
    store.add_structure(WHOLE, aliases=["hippocampus"])
    for case_id, revisions in sorted(judged.items()):
        masks = [store.read_mask(revision) > 0 for revision in revisions]
        store.accept(case_id, WHOLE, np.any(masks, axis=0).astype(np.uint8))


if __name__ == "__main__":
    make_model(bundled_model_folder())
