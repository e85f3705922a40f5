"""How much of each structure a grid can keep: python benchmarks/grid_ceiling.py TORSO [--minutes 10 60]

``TORSO`` is a folder with ct_torso_3mm.nii.gz and its label map ct_torso_3mm_seg.nii.gz (61 structures of
TotalSegmentator). Each structure's mask goes to a grid and back; its Dice with itself is the most that a perfect
network could reach there. Grids: squares of 64 and 112 px that hold the whole slice, as the encoder's, and the plan's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from amvlm.imaging import Volume, to_canonical
from amvlm.imaging.regrid import grid_shape, resampled, resampled_labels
from amvlm.imaging.resample import SliceGrid
from amvlm.planning import CaseFacts, Fingerprint, Machine, Plan, intensities, make_plan, mask_facts, structure_facts

SMALL = {"adrenal glands": (8, 9), "pancreas": (7,)}
"""By TotalSegmentator's numbers."""


def read(folder: Path) -> tuple[Volume, NDArray[np.uint8]]:
    stored = nib.load(folder / "ct_torso_3mm_seg.nii.gz")
    volume = to_canonical(Volume(np.asanyarray(stored.dataobj).astype(np.uint8), stored.affine))
    return volume, np.moveaxis(volume.array, 2, 0)


def plan_of(volume: Volume, labels: NDArray[np.uint8], minutes: float, seconds_per_megapixel: float) -> Plan:
    """The plan of twenty such scans, all labelled."""
    rows, columns, slices = volume.spacing_mm
    spacing = (slices, rows, columns)
    facts = {int(n): mask_facts(labels == n, spacing) for n in np.unique(labels)[1:]}
    case = CaseFacts(shape=labels.shape, spacing_mm=spacing, modality="CT")  # type: ignore[arg-type]
    together = mask_facts(labels > 0, spacing)
    assert together is not None
    return make_plan(
        Fingerprint(
            cases=(case,) * 20, structures=tuple(structure_facts(str(n), [f] * 20) for n, f in facts.items() if f),
            exclusive=True, foreground=intensities([np.linspace(-200, 300, 1000)]),
            region_mm=together.extent_mm, labelled=20, unlabelled=0, minutes=minutes,
            machine=Machine(seconds_per_megapixel=seconds_per_megapixel),
        )
    )  # fmt: skip


def dice(one: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return 2 * int((one & truth).sum()) / int(one.sum() + truth.sum())


def on_square(truth: NDArray[np.bool_], volume: Volume, size: int) -> float:
    grid = SliceGrid.of(volume, size)
    planes = torch.from_numpy(truth.astype(np.float32))[:, None]
    back = grid.from_square((grid.to_square(planes) > 0.5).float())[:, 0].numpy() > 0.5
    return dice(back, truth)


def on_plan(truth: NDArray[np.bool_], spacing: tuple[float, float, float], plan: Plan) -> float:
    shape = grid_shape(truth.shape, spacing, plan.spacing_mm)  # type: ignore[arg-type]
    there = torch.from_numpy(resampled_labels([truth.astype(np.uint8)], shape, exclusive=False)).float()
    back = resampled(there, truth.shape)[:, 0].numpy() > 0.5  # type: ignore[arg-type]
    return dice(back, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 60.0])
    parser.add_argument("--seconds-per-megapixel", type=float, default=3.75)
    given = parser.parse_args()
    torch.set_num_threads(1)
    volume, labels = read(given.folder)
    rows, columns, slices = volume.spacing_mm
    plans = {f"plan, {m:g} min": plan_of(volume, labels, m, given.seconds_per_megapixel) for m in given.minutes}
    for name, plan in plans.items():
        print(f"{name}: {plan.sentence()}, {plan.widths[0]} channels")
    found: dict[str, dict[int, float]] = {"64 px": {}, "112 px": {}, **{name: {} for name in plans}}
    for number in np.unique(labels)[1:].tolist():
        truth = labels == number
        for size in (64, 112):
            found[f"{size} px"][number] = on_square(truth, volume, size)
        for name, plan in plans.items():
            found[name][number] = on_plan(truth, (slices, rows, columns), plan)
    print("| grid | median of 61 | least | below 0.8 | " + " | ".join(SMALL) + " |")
    print("|---" * (4 + len(SMALL)) + "|")
    for name, own in found.items():
        values = np.array(list(own.values()))
        cells = [f"{np.median(values):.3f}", f"{values.min():.3f}", str(int((values < 0.8).sum()))]
        cells += [" / ".join(f"{own[n]:.3f}" for n in numbers) for numbers in SMALL.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
