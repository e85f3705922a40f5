"""Writer contribution: a layer of ours back onto its scan's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_layer(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write an image or mask as NIfTI, NRRD or MetaImage, in the storage order and place of the scan it belongs to.

    In a window, what cannot be written is said in a sentence; a script gets the error.

    Raises
    ------
    UserError
        If the layer has no geometry of ours: which side is left cannot be known.
    """
    from napari_amvlm.saying import said_in_window

    written: list[str] = []
    with said_in_window():
        _write(path, data, attributes)
        written.append(path)
    return written


def _write(path: str, data: Any, attributes: dict[str, Any]) -> None:
    from nibabel.orientations import io_orientation

    from amvlm.errors import UserError
    from amvlm.imaging import Volume, from_display, to_original, write_volume

    metadata = attributes.get("metadata", {})
    if "affine" not in metadata or np.ndim(data) != 3:
        raise UserError(
            "this layer does not say where it lies in the patient", file=path,
            remedy="Open the scan with this plugin, then save.",
        )  # fmt: skip
    affine = np.asarray(metadata["affine"])
    canonical = from_display(np.asarray(data))
    stored = tuple(canonical.shape[int(axis)] for axis, _ in io_orientation(affine))
    grid = Volume(np.broadcast_to(np.uint8(0), stored), affine, bool(metadata.get("sides_known", False)))
    write_volume(Path(path), grid.with_array(np.ascontiguousarray(to_original(canonical, grid))))
