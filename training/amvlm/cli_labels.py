"""The commands that judge, correct and look up labels without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from amvlm import console
from amvlm.errors import UserError

StoreFolder = Annotated[Path, typer.Argument(help="the study", show_default=False)]
CaseId = Annotated[str, typer.Argument(help="for example case-00001", show_default=False)]
StructureName = Annotated[str, typer.Argument(help="for example liver", show_default=False)]
Verdict = Literal["accept", "absent", "skip", "reject", "undo"]


def judge(
    store: StoreFolder,
    case: CaseId,
    structure: StructureName,
    verdict: Annotated[Verdict, typer.Argument(help="accept needs --mask", show_default=False)],
    mask: Annotated[Path | None, typer.Option(help="the mask to accept, on the scan's own grid")] = None,
    prompt: Annotated[str, typer.Option(help="the words that the mask came from")] = "",
) -> None:
    """Accept a mask, or mark a case absent, skipped or rejected, as the window does."""
    import numpy as np

    from amvlm.imaging import read_volume
    from amvlm.store import LabelStore

    opened = LabelStore(store)
    if verdict == "accept":
        if mask is None:
            raise UserError("there is no mask to accept", remedy="Give it with --mask.")
        found, scan = read_volume(mask), opened.read_image(opened.case(case))
        if not found.same_grid(scan):
            raise UserError(f"the mask's grid {found.shape} is not its image's {scan.shape}", file=mask,
                            remedy="Resample the mask onto its image.")  # fmt: skip
        values = set(np.unique(found.array).tolist())
        if not values <= {0, 1}:
            raise UserError("the mask holds values other than 0 and 1", file=mask,
                            remedy="Accept one structure at a time, 0 and 1.")  # fmt: skip
        if 1 not in values:
            raise UserError("the mask is empty", file=mask, remedy="If the structure is not there, use absent.")
        opened.accept(case, structure, found.array.astype(np.uint8), prompt=prompt)
    elif verdict == "absent":
        opened.mark_absent(case, structure, prompt=prompt)
    elif verdict == "undo":
        opened.undo(case, structure)
    else:
        opened.mark(case, structure, "skipped" if verdict == "skip" else "rejected")
    console.result(f"{structure} in {case}: {opened.state(case, structure)}")


def history(store: StoreFolder, case: CaseId, structure: StructureName) -> None:
    """Every revision of a label: when, who, from what, how much by hand."""
    from amvlm.store import LabelStore

    opened = LabelStore(store)
    opened.require(case, structure)
    columns = ("revision", "when", "who", "what", "source", "prompt", "model", "edits")
    rows = [
        (r.revision_id, r.time[:16], r.author, r.kind, r.source, r.prompt, r.model_fingerprint[:8], r.edited_voxels)
        for r in opened.history(case, structure)
    ]
    console.table(f"{structure} in {case}", columns, rows, left=columns, width=140)


def restore(
    store: StoreFolder, revision: Annotated[int, typer.Argument(help="see amvlm history", show_default=False)]
) -> None:
    """Make an earlier revision count again, as a new one."""
    from amvlm.store import LabelStore

    new = LabelStore(store).restore(revision)
    console.result(f"{new.structure} in {new.case_id}: revision {revision} counts again, as {new.revision_id}")


def edit(
    mask: Annotated[Path, typer.Argument(help="a mask, 0 and 1", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help=".nii.gz, .nii, .nrrd or .mha", show_default=False)],
    smooth: Annotated[float, typer.Option(min=0, max=1000, help="sigma of the Gaussian, mm; 0 leaves it out")] = 0.0,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="in each slice")] = False,
    largest_part: Annotated[bool, typer.Option("--largest-part", help="keep the largest connected part only")] = False,
    interpolate: Annotated[bool, typer.Option("--interpolate", help="between painted slices")] = False,
) -> None:
    """Correct a mask: interpolate, fill, smooth, keep the largest part, in this order, across the coarsest axis."""
    import numpy as np

    from amvlm.imaging import check_target, editing, read_volume, slice_axis, to_canonical, to_original, write_volume

    check_target(output)
    volume = read_volume(mask)
    canonical = to_canonical(volume)
    axis = slice_axis(canonical.spacing_mm, canonical.planar)
    spacing = (float(canonical.spacing_mm[0]), float(canonical.spacing_mm[1]), float(canonical.spacing_mm[2]))
    found = (canonical.array > 0).astype(np.uint8)
    before = int(found.sum())
    if interpolate:
        found = editing.interpolate(found, axis, spacing)
    if fill_holes:
        found = editing.fill_holes(found, axis)
    if smooth:
        found = editing.smooth(found, spacing, smooth)
    if largest_part:
        found = editing.largest_component(found)
    write_volume(output, volume.with_array(np.ascontiguousarray(to_original(found, volume))))
    console.result(f"{output.name}: {before:,} → {int(found.sum()):,} voxels")
