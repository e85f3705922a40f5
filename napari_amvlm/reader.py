"""Reader contribution: scans in radiological display, with their geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
LayerData = tuple[Any, ...]
NOTHING: list[LayerData] = [(None,)]
"""What napari takes for "read, but there is no layer to show"."""


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Take one or several volumes; what holds several series or volumes is refused in words, *Open scan* asks."""
    paths = [path] if isinstance(path, str) else path
    return read if all(name.lower().endswith(SUFFIXES) for name in paths) else None


def read(path: str | list[str]) -> list[LayerData]:
    """Read scans as image layers: a copy-free view in the order (S→I, A→P, R→L), scale in mm, affine in metadata.

    In a window, what cannot be read is said in a sentence, and the other files are shown; a script gets the error.
    """
    from napari_amvlm.saying import said_in_window

    layers: list[LayerData] = []
    for name in [path] if isinstance(path, str) else path:
        with said_in_window():
            layers.append(_layer(Path(name)))
    return layers or NOTHING


def _layer(path: Path) -> LayerData:
    from amvlm.errors import ChoiceNeeded, UserError
    from amvlm.imaging import read_volume, to_canonical, to_display
    from amvlm.paths import check_regular
    from napari_amvlm.wording import unmarked

    try:
        volume = read_volume(check_regular(path))
    except ChoiceNeeded as question:
        remedy = "Open scan in the panel Segment with text asks which one."
        raise UserError(question.what, file=path, remedy=remedy) from None
    canonical = to_canonical(volume)
    options = {
        "name": unmarked(path.name),
        "scale": tuple(canonical.spacing_mm[::-1]),
        "metadata": {"amvlm": True, "affine": volume.affine, "sides_known": volume.sides_known},
    }
    return to_display(canonical.array), options, "image"
