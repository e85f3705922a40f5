"""What the network sees of a slice: by steps, on the encoder's square, and by minutes, on the plan's grid.

    python benchmarks/what_it_sees.py docs/images/what_it_sees.png
    python benchmarks/what_it_sees.py PICTURE --source ../shared/data/acdc        # an MSD folder: not to be published

A row for each labelled case: its slice with the experts' outlines, the same slice on the 64-px square, and a patch of
the plan. Prints the largest Dice that each grid allows: of the experts' masks after the way there and back.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from amvlm.exchange import import_study
from amvlm.imaging.regrid import resampled, resampled_labels
from amvlm.imaging.resample import SliceGrid
from amvlm.learning.fingerprinting import fingerprint_of
from amvlm.learning.patches import PreparedCase
from amvlm.learning.prepared import PreparedStudy
from amvlm.learning.study import Study, open_study
from amvlm.models.planned import grown_box
from amvlm.models.scan import stack_of
from amvlm.planning import Machine, Plan, bounding_box, make_plan
from amvlm.sample import copy_sample_study
from amvlm.store import LabelStore

SQUARE, SHOWN, HEAD, GAP = 64, 320, 26, 10
COLOURS = ((47, 181, 210), (242, 169, 59), (224, 69, 123))


def plan_of(study: Study) -> Plan:
    """The plan for ten minutes on a machine of one second per megapixel."""
    steps = fingerprint_of(study, 10, Machine(seconds_per_megapixel=1.0))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return make_plan(end.value)


@dataclass(frozen=True)
class Seen:
    """One labelled case on its own grid, on the square and on the plan's grid."""

    image: NDArray[np.generic]
    labels: NDArray[np.uint8]
    spacing: float
    square: SliceGrid
    prepared: PreparedCase

    def ceilings(self, structures: int) -> list[tuple[float, float]]:
        """Dice of each structure's mask after the way to the square, and to the plan's grid, and back."""
        found = []
        for number in range(1, structures + 1):
            truth = self.labels == number
            there = torch.from_numpy(truth.astype(np.float32))[:, None]
            small = self.square.from_square((self.square.to_square(there) > 0.5).float())[:, 0].numpy() > 0.5
            kept = torch.from_numpy(resampled_labels([truth.astype(np.uint8)], self.prepared.shape, exclusive=False))
            native = resampled(kept.float(), (len(truth), truth.shape[1], truth.shape[2]))[:, 0].numpy() > 0.5
            found.append((_dice(small, truth), _dice(native, truth)))
        return found

    def row(self, plan: Plan) -> list[tuple[str, NDArray[np.uint8]]]:
        """Three pictures with their titles."""
        z = int((self.labels > 0).sum((1, 2)).argmax())
        own = np.asarray(self.image[z], np.float32)
        square = self.square.to_square(torch.from_numpy(own.copy())[None, None])[0, 0].numpy()
        shape = self.prepared.shape
        box = bounding_box(np.asarray(self.prepared.labels).max(axis=1)) or (slice(0, 1),) * 3
        _, rows, columns = grown_box(box, [1.0, float(plan.patch[1]), float(plan.patch[2])], shape)
        patch = np.asarray(self.prepared.image[min(shape[0] - 1, z), 0], np.float32)[rows, columns]
        sides = f"{plan.patch[1]} x {plan.patch[2]} px of {plan.spacing_mm[2]:.3g} mm"
        return [
            (f"the slice: {own.shape[0]} x {own.shape[1]} px of {self.spacing:.3g} mm", _outlined(own, self.labels[z])),
            (f"by steps: {SQUARE} x {SQUARE} px of {self.spacing * max(own.shape) / SQUARE:.2g} mm", _grey(square)),
            (f"by minutes: {sides}", _grey(patch)),
        ]


def _dice(one: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return 2 * int((one & truth).sum()) / int(one.sum() + truth.sum()) if truth.any() else float("nan")


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """RGB in which every pixel of the image is a square of its own."""
    low, high = np.quantile(image, (0.005, 0.995))
    grey = np.clip((image - low) / max(1e-6, high - low) * 255, 0, 255).astype(np.uint8)
    factor = max(1, SHOWN // max(grey.shape))
    return np.repeat(np.kron(grey, np.ones((factor, factor), np.uint8))[..., None], 3, axis=2)


def _outlined(image: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = _grey(image)
    factor = picture.shape[0] // image.shape[0]
    for number in np.unique(labels[labels > 0]):
        inside = np.kron(labels == number, np.ones((factor, factor), bool))
        picture[inside & ~ndimage.binary_erosion(inside, iterations=2)] = COLOURS[(int(number) - 1) % len(COLOURS)]
    return picture


def seen(store: LabelStore, study: Study, plan: Plan) -> list[Seen]:
    """Every labelled case."""
    prepared = PreparedStudy(store, plan)
    for _ in prepared.prepare([study.cases[case_id] for case_id in study.training]):
        pass
    found = []
    for case_id, revisions in study.training.items():
        volume = store.read_image(study.cases[case_id])
        masks = [store.read_mask(revisions[name]) * np.uint8(n + 1) for n, name in enumerate(study.names)]
        stack, spacing = stack_of(volume, plan.axis)
        labels = stack_of(volume.with_array(np.max(masks, axis=0)), plan.axis)[0]
        square = SliceGrid.of(volume, SQUARE, plan.axis)
        found.append(Seen(stack, labels, spacing[2], square, prepared.case(case_id, revisions)))
    return found


def drawn(rows: list[list[tuple[str, NDArray[np.uint8]]]]) -> Image.Image:
    """Rows of pictures under their titles, on black."""
    canvas = Image.new("RGB", (3 * (SHOWN + GAP) + GAP, len(rows) * (SHOWN + HEAD + GAP)), "black")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for number, row in enumerate(rows):
        for column, (title, picture) in enumerate(row):
            left, top = GAP + column * (SHOWN + GAP), number * (SHOWN + HEAD + GAP)
            pen.text((left, top + 5), title, fill="white", font=font)
            canvas.paste(Image.fromarray(picture), (left, top + HEAD))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("into", type=Path)
    parser.add_argument("--source", type=Path, help="an MSD folder instead of the sample study")
    parser.add_argument("--share", type=float, default=0.05, help="of its masks to accept")
    parser.add_argument("--cases", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.source is None:
            store = copy_sample_study(Path(folder) / "study")
        else:
            import_study(given.source, Path(folder) / "study", split="train", accept_fraction=given.share)
            store = LabelStore(Path(folder) / "study")
        study = open_study(store)
        plan = plan_of(study)
        cases = seen(store, study, plan)
        drawn([case.row(plan) for case in cases[: given.cases]]).save(given.into, optimize=True)
        square, native = np.nanmean([pair for case in cases for pair in case.ceilings(len(study.names))], axis=0)
        print(plan.sentence())
        print(f"{len(cases)} labelled cases: at most {square:.3f} at {SQUARE} px, {native:.3f} on the plan's grid")


if __name__ == "__main__":
    main()
