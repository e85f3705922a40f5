"""How far one box goes: python benchmarks/first_label.py TORSO --structures spleen kidney_right …

``TORSO`` is a folder with ct_torso_3mm.nii.gz and its label map (TotalSegmentator's names in the header). Each
structure gets one box, on the slice where it is largest, one voxel wider than its mask there; the mask is carried
through the other slices (LiteMedSAM, soft-tissue window). Dice of that slice, and of the whole structure. One action.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from amvlm.imaging import Volume, to_canonical
from amvlm.inference.boxes import BoxReader
from amvlm.inference.carrying import Box, doubt_of
from amvlm.models.lite_medsam import load_lite_medsam

USUAL = ("spleen", "kidney_right", "kidney_left", "liver", "stomach", "aorta", "gallbladder", "pancreas",
         "urinary_bladder", "vertebrae_L1")  # fmt: skip


def read(path: Path) -> tuple[Volume, dict[str, int]]:
    stored = nib.load(path)
    names: dict[str, int] = {}
    for extension in stored.header.extensions:
        content = extension.get_content()
        text = content.decode() if isinstance(content, bytes) else str(content)
        names |= {name: int(key) for key, name in re.findall(r'Key="(\d+)".*?CDATA\[(.*?)\]', text)}
    return Volume(np.asanyarray(stored.dataobj), stored.affine), names


def dice(one: np.ndarray, truth: np.ndarray) -> float:
    return 2 * int((one & truth).sum()) / int(one.sum() + truth.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--structures", nargs="+", default=list(USUAL))
    given = parser.parse_args()
    torch.set_num_threads(1)
    scan, _ = read(given.folder / "ct_torso_3mm.nii.gz")
    labels, names = read(given.folder / "ct_torso_3mm_seg.nii.gz")
    values = np.moveaxis(to_canonical(labels).array, 2, 0)
    reader = BoxReader(load_lite_medsam(), Volume(scan.array, scan.affine, modality="CT"), 2)
    found = []
    print("| structure | slice | whole | slices | CPU-seconds | said of the box |")
    print("|---" * 6 + "|")
    for name in given.structures:
        truth = values == names[name]
        start = int(truth.sum((1, 2)).argmax())
        tight = Box.around(truth[start])
        if tight is None:
            continue
        box, mask, began = tight.grown(1, reader.shape[1:]), np.zeros(truth.shape, bool), time.process_time()
        for index, own in reader.structure(start, box):
            mask[index] = own
        seconds = time.process_time() - began
        found.append(dice(mask, truth))
        cells = (name, f"{dice(mask[start], truth[start]):.3f}", f"{found[-1]:.3f}", int(mask.any((1, 2)).sum()))
        print("| " + " | ".join(map(str, cells)), f"| {seconds:.0f} | {doubt_of(mask[start], box)} |", flush=True)
    print(f"| median | | {np.median(found):.3f} | | | |")


if __name__ == "__main__":
    main()
