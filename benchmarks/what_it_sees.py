"""What the network sees of a slice: by steps, on the encoder's square, and by minutes, on the plan's grid.

    python benchmarks/what_it_sees.py docs/images/what_it_sees.png
    python benchmarks/what_it_sees.py PICTURE --source ../shared/data/acdc        # an MSD folder: not to be published

Needs matplotlib. A row for a slice of an accepted case: the scan with the expert's outline, the same slice on the 64-px
square, and a patch of the plan; below, the largest Dice that each grid allows, over all labelled cases.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes

from amvlm.exchange import import_study
from amvlm.imaging.regrid import resampled, resampled_labels
from amvlm.imaging.resample import SliceGrid
from amvlm.learning.fingerprinting import fingerprint_of
from amvlm.learning.prepared import PreparedStudy
from amvlm.learning.study import Study, open_study
from amvlm.models.planned import grown_box
from amvlm.models.scan import stack_of
from amvlm.planning import Machine, Plan, bounding_box, make_plan
from amvlm.sample import copy_sample_study
from amvlm.store import LabelStore

SQUARE = 64


def plan_of(study: Study, minutes: float) -> Plan:
    """The plan on a machine of one second per megapixel."""
    steps = fingerprint_of(study, minutes, Machine(seconds_per_megapixel=1.0))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return make_plan(end.value)


def union(study: Study, case_id: str) -> np.ndarray:
    """All structures of a case as numbers, (slices, rows, columns)."""
    revisions = study.training[case_id]
    volume = study.store.read_image(study.cases[case_id])
    masks = [study.store.read_mask(revisions[name]) * (number + 1) for number, name in enumerate(study.names)]
    return stack_of(volume.with_array(np.max(masks, axis=0)), AXIS)[0]


def ceilings(study: Study, plan: Plan) -> tuple[float, float]:
    """Mean Dice of the experts' masks after the way to each grid and back: what no network on it can exceed."""
    found: list[tuple[float, float]] = []
    for case_id in study.training:
        volume = study.store.read_image(study.cases[case_id])
        grid = SliceGrid.of(volume, SQUARE, plan.axis)
        labels = union(study, case_id)
        own = PREPARED.case(case_id, {}).shape
        for number in range(1, len(study.names) + 1):
            truth = (labels == number).astype(np.float32)
            there = torch.from_numpy(truth[:, None])
            square = grid.from_square((grid.to_square(there) > 0.5).float())[:, 0].numpy() > 0.5
            kept = resampled_labels([truth], own, exclusive=False)
            native = resampled(torch.from_numpy(kept).float(), truth.shape)[:, 0].numpy() > 0.5
            found.append((dice(square, truth > 0), dice(native, truth > 0)))
    first, second = np.nanmean(found, axis=0)
    return float(first), float(second)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if other.any() and total else float("nan")


def show(axes: Axes, image: np.ndarray, outline: np.ndarray | None, title: str) -> None:
    axes.imshow(image, cmap="gray", interpolation="nearest")
    if outline is not None:
        for number in np.unique(outline[outline > 0]):
            axes.contour(outline == number, [0.5], colors=[f"C{int(number)}"], linewidths=1.2)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def main() -> None:
    global AXIS, PREPARED
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("into", type=Path)
    parser.add_argument("--source", type=Path, help="an MSD folder instead of the sample study")
    parser.add_argument("--cases", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.source is None:
            store = copy_sample_study(Path(folder) / "study")
        else:
            import_study(given.source, Path(folder) / "study", split="train", accept_fraction=0.05)
            store = LabelStore(Path(folder) / "study")
        study = open_study(store)
        plan = plan_of(study, 10)
        AXIS, PREPARED = plan.axis, PreparedStudy(store, plan)
        for _ in PREPARED.prepare([study.cases[case_id] for case_id in study.training]):
            pass
        rows = list(study.training)[: given.cases]
        figure, table = pyplot.subplots(len(rows), 3, figsize=(9, 3.2 * len(rows)), layout="constrained", squeeze=False)
        for line, case_id in zip(table, rows, strict=True):
            draw(line, study, plan, case_id)
        first, second = ceilings(study, plan)
        figure.supxlabel(
            f"Best Dice that each grid allows on {len(study.training)} labelled cases: {first:.3f} at {SQUARE} px, "
            f"{second:.3f} on the plan's", fontsize=9,
        )  # fmt: skip
        figure.savefig(given.into, dpi=110)
        print(plan.sentence(), f"ceiling {first:.3f} {second:.3f}")


def draw(line: np.ndarray, study: Study, plan: Plan, case_id: str) -> None:
    labels = union(study, case_id)
    z = int((labels > 0).sum((1, 2)).argmax())
    volume = study.store.read_image(study.cases[case_id])
    stack, spacing = stack_of(volume, plan.axis)
    show(line[0], stack[z], labels[z], f"the scan's slice, {stack.shape[1]}×{stack.shape[2]} px, {spacing[2]:.3g} mm")
    grid = SliceGrid.of(volume, SQUARE, plan.axis)
    square = grid.to_square(torch.from_numpy(np.ascontiguousarray(stack[z]).astype(np.float32))[None, None])
    show(line[1], square[0, 0].numpy(), None, f"by steps: all of it on {SQUARE}×{SQUARE} px")
    case = PREPARED.case(case_id, study.training[case_id])
    middle = min(case.shape[0] - 1, round(z * case.shape[0] / len(stack)))
    box = bounding_box(np.asarray(case.labels).max(axis=1)) or (slice(0, 1),) * 3
    own = grown_box(box, [1.0, *(float(side) for side in plan.patch[1:])], case.shape)
    patch = np.array(case.image[middle, 0])[own[1], own[2]]
    inside = f"{plan.patch[1]}×{plan.patch[2]} px, {case.spacing_mm[2]:.3g} mm"
    show(line[2], patch, None, f"by minutes: a patch of {inside}")


if __name__ == "__main__":
    main()
