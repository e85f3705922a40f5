"""One scan in all 48 axis orders and flips, through ``amvlm segment``: python benchmarks/axis_orders.py [SCAN]"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff

from amvlm.cli import main as amvlm
from amvlm.imaging import Volume, read_volume, to_canonical, write_volume
from amvlm.sample.study import first_scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path, nargs="?", default=first_scan())
    parser.add_argument("--prompt", default="anterior hippocampus")
    arguments = parser.parse_args()
    scan = read_volume(arguments.scan)
    worst, wanted, own_grid = 1.0, None, 0
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "scan.nii.gz", Path(folder) / "mask.nii.gz"
        for axes in itertools.permutations(range(3)):
            for flips in itertools.product((1, -1), repeat=3):
                orientation = np.array(list(zip(axes, flips, strict=True)))
                affine = scan.affine @ inv_ornt_aff(orientation, scan.shape)
                other = Volume(apply_orientation(scan.array, orientation), affine)
                write_volume(source, other)
                amvlm(["segment", str(source), "--prompt", arguments.prompt, "-o", str(output)])
                mask = read_volume(output)
                own_grid += mask.same_grid(other)
                ras = to_canonical(mask).array > 0
                wanted = ras if wanted is None else wanted
                worst = min(worst, 2 * float((ras & wanted).sum()) / float(ras.sum() + wanted.sum()))
    print(f"48 orders: {own_grid} masks on their own grid, lowest Dice to the first in world space {worst:.4f}")


if __name__ == "__main__":
    main()
