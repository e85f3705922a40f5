"""Smaller copies of a scan and its masks for the three-dimensional view: drawing a large volume whole takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from amvlm.imaging import to_display

_STEPS = ((4_000_000, 1), (30_000_000, 2))
"""Voxels up to which a volume is shown whole, or at half size; larger ones at a quarter."""


def twins(
    ras: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    limits: Any,
    masks: Mapping[str, NDArray[np.uint8]],
    colours: Mapping[str, str],
    shown: str,
) -> list[Any]:
    """An image layer and one layer for each mask (canonical arrays), of which ``shown`` is visible."""
    size = int(np.prod(ras.shape[:3]))
    step = next((step for voxels, step in _STEPS if size <= voxels), 4)
    where: dict[str, Any] = {"scale": np.array(spacing_mm[::-1]) * step, "metadata": {"amvlm_twin": True}}
    small = np.ascontiguousarray(to_display(ras)[(slice(None, None, step),) * 3])
    found: list[Any] = [
        Image(
            small, name="3-D image", rgb=small.ndim == 4, rendering="mip", opacity=0.35, contrast_limits=limits, **where
        )
    ]
    for name, mask in masks.items():
        colour: dict[int | None, str] = {None: "transparent", 0: "transparent", 1: colours[name]}
        found.append(
            Labels(any_of_block(to_display(mask), step), name=f"3-D {name.lower()}", opacity=1.0, visible=name == shown,
                   colormap=DirectLabelColormap(color_dict=colour), **where)
        )  # fmt: skip
    return found


def any_of_block(mask: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Smaller, keeping what is thin: a small voxel is set where any voxel of its block is."""
    padded = np.pad(mask, [(0, -n % step) for n in mask.shape])
    z, y, x = (n // step for n in padded.shape)
    small: NDArray[np.uint8] = padded.reshape(z, step, y, step, x, step).max((1, 3, 5))
    return small
