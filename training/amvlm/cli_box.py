"""``amvlm box``: a box on one slice becomes a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amvlm import console

Voxel = tuple[int, int, int]


def box(
    volume: Annotated[Path, typer.Argument(help="the scan", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="the mask: .nii.gz, .nii, .nrrd or .mha", show_default=False)
    ],
    first: Annotated[Voxel, typer.Option("--from", help="a corner, as voxel of the file, from 0", show_default=False)],
    last: Annotated[Voxel, typer.Option("--to", help="the opposite corner, on the same slice", show_default=False)],
    whole: Annotated[bool, typer.Option("--whole", help="carry the mask through the neighbouring slices")] = False,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="least and largest intensity to look at [soft tissue on CT, else 0.5–99.5 %]"),
    ] = None,
    volume_index: Annotated[int | None, typer.Option(help="which volume of a 4-D file, from 0")] = None,
    series: Annotated[int | None, typer.Option(help="which series of a DICOM folder, from 0")] = None,
) -> None:
    """Outline what a box around it holds, by LiteMedSAM; no model of yours is needed."""
    import numpy as np

    from amvlm.imaging import Volume, check_target, read_volume, to_original, write_volume
    from amvlm.inference.boxes import BoxReader, box_of_voxels
    from amvlm.inference.carrying import doubt_of, largest_part
    from amvlm.models.lite_medsam import load_lite_medsam

    check_target(output)
    scan = read_volume(volume, volume_index, series)
    for note in scan.notes:
        console.say(note, "note")
    axis, start, drawn = box_of_voxels(scan, first, last)
    reader = BoxReader(load_lite_medsam(), scan, axis, window)
    masks = np.zeros(reader.shape, np.uint8)
    slices = 0
    with console.status("Reading the slice …") as update:
        found = reader.structure(start, drawn) if whole else iter([(start, largest_part(reader.mask(start, drawn)))])
        for index, mask in found:
            masks[index], slices = mask, slices + int(mask.any())
            update(f"{slices} slices …")
    if doubt := doubt_of(masks[start] > 0, drawn):
        console.say(doubt, "note")
    mask = to_original(np.ascontiguousarray(np.moveaxis(masks, 0, axis)), scan)
    write_volume(output, Volume(np.ascontiguousarray(mask), scan.affine, scan.sides_known, scan.planar))
    voxels = int(mask.sum())
    console.result(f"{output.name}: {voxels:,} voxels on {slices} slices, {voxels * scan.voxel_ml:.2f} ml")
