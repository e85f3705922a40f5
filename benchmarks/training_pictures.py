"""The pictures of docs/training.md, from one run on the sample study.

    python benchmarks/training_pictures.py docs/images

Needs matplotlib. Curves come from the run's events, the rows of pictures from its TensorBoard folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from experts import accept_expert_masks
from matplotlib import pyplot
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amvlm.events import EventReader, Progress, Validation
from amvlm.sample import copy_sample_study


def curves(events: list[object], into: Path) -> None:
    """Losses as they were reported, and Dice on the validation cases."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    reports = [e for e in events if isinstance(e, Progress) and e.stage == "training"]
    for name in ("L_sup", "L_merged", "L_text_generator"):
        left.plot([e.step for e in reports], [e.losses.get(name, 0.0) for e in reports], label=name)
    found = [e for e in events if isinstance(e, Validation)]
    for kind, label in (("student", "prediction"), ("text_mask", "text mask"), ("merged", "merged")):
        means = {e.step: sum(getattr(e, kind).values()) / len(getattr(e, kind)) for e in found}
        before = means.pop(0, None)
        (line,) = right.plot(means.keys(), means.values(), marker="o", label=label)
        if before is not None:
            right.axhline(before, linestyle=":", color=line.get_color(), label=f"{label}, model in use so far")
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="step", ylabel="Dice on 6 validation cases", ylim=(0.6, 0.9))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(into, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("into", type=Path)
    parser.add_argument("--steps", type=int, default=900)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = copy_sample_study(Path(folder) / "study")
        accept_expert_masks(store, [case.case_id for case in store.cases("val")[:6]])
        subprocess.run(
            [
                sys.executable, "-m", "amvlm", "train", str(store.folder), "--run-name", "shown", "--name", "shown",
                "--steps", str(given.steps), "--validate-every", str(given.steps // 9), "--precision", "bf16",
                "--mode", "text_guided",
            ],
            check=True,
        )  # fmt: skip
        run = store.folder / "runs" / "shown"
        curves(list(EventReader(run / "events.jsonl").new_events()), given.into / "training_curves.png")
        pictures = []
        for path in sorted((run / "tensorboard").glob("*.pictures")):
            found = EventAccumulator(str(path)).Reload()
            for tag in found.Tags()["images"]:
                pictures += [(image.step, image.encoded_image_string) for image in found.Images(tag)]
        target = given.into / "training_targets.png"
        target.write_bytes(max(pictures)[1])
        picture = Image.open(target)
        picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(target)


if __name__ == "__main__":
    main()
