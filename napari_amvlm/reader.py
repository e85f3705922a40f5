"""Reader contribution: scans in radiological display, with their geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Take one or several volumes; what holds several series or volumes is refused in words, *Open scan* asks."""
    paths = [path] if isinstance(path, str) else path
    return read if all(name.lower().endswith(SUFFIXES) for name in paths) else None


def read(path: str | list[str]) -> list[LayerData]:
    """Read scans as image layers: a copy-free view in the order (S→I, A→P, R→L), scale in mm, affine in metadata."""
    from amvlm.imaging import read_volume, to_canonical, to_display

    layers: list[LayerData] = []
    for name in [path] if isinstance(path, str) else path:
        volume = read_volume(name)
        canonical = to_canonical(volume)
        layers.append(
            (
                to_display(canonical.array),
                {
                    "name": Path(name).name,
                    "scale": tuple(canonical.spacing_mm[::-1]),
                    "metadata": {"amvlm": True, "affine": volume.affine, "sides_known": volume.sides_known},
                },
                "image",
            )
        )
    return layers
