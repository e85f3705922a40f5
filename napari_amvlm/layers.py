"""The layers of an open scan: three linked views that share one image, geometry kept.

Every array is a copy-free view of a canonical (RAS) array in display order (S→I, A→P, R→L), so all planes are
radiological and painting reaches the array that is saved.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from amvlm.imaging import to_display
from napari_amvlm.engine import Mask, OpenCase
from napari_amvlm.panels.prompt import MASK_COLOURS

if TYPE_CHECKING:
    import napari

OPACITY = 0.55
PLACEHOLDER = "amvlm_placeholder"
TEXT_MASK, PREDICTION, LABEL = "Text mask", "Prediction", "Your label"
COLOURS = dict(zip((TEXT_MASK, PREDICTION, LABEL), MASK_COLOURS, strict=True))


class CaseLayers:
    """Three cells of image and mask: text mask, prediction, your label.

    Parameters
    ----------
    viewer : napari.Viewer
    opened : OpenCase
    reuse : CaseLayers, optional
        The layers of the scan before. Images and masks are shown anew in them: napari needs seconds to take six
        layers away and to make six others. The label layer is always a new one, since its undo history must not
        reach into another scan.
    """

    def __init__(self, viewer: napari.viewer.Viewer, opened: OpenCase, reuse: CaseLayers | None = None) -> None:
        self._viewer_ref = weakref.ref(viewer)
        self.opened = opened
        shape = opened.ras.shape[:3]
        self.probs: dict[str, Mask] = {name: np.zeros(shape, np.uint8) for name in (TEXT_MASK, PREDICTION, "merged")}
        self.masks: dict[str, Mask] = {name: np.zeros(shape, np.uint8) for name in COLOURS}
        if opened.label is not None:
            self.masks[LABEL][:] = opened.label
        self.images: list[Image] = []
        self.labels: dict[str, Labels] = {}
        if reuse is not None and not (reuse.present() and reuse.opened.ras.ndim == opened.ras.ndim):
            reuse.remove()
            reuse = None
        if reuse is not None:
            self._take_over(reuse)
        else:
            self._add()
        label = self.labels[LABEL]
        label.brush_size = max(2, min(self.masks[LABEL].shape) // 8)
        label.selected_label = 1
        self._viewer.layers.selection.active = label

    @property
    def _viewer(self) -> napari.viewer.Viewer:
        viewer = self._viewer_ref()
        if viewer is None:
            raise RuntimeError("the viewer is gone")
        return viewer

    @property
    def _common(self) -> dict[str, Any]:
        volume = self.opened.volume
        metadata = {"amvlm": True, "affine": volume.affine, "sides_known": volume.sides_known}
        return {"scale": self.opened.spacing_mm[::-1], "metadata": metadata}

    def _image_name(self, mask: str) -> str:
        return f"{self.opened.title} ({mask.lower()})"

    def _add(self) -> None:
        for layer in [layer for layer in self._viewer.layers if layer.metadata.get(PLACEHOLDER)]:
            self._viewer.layers.remove(layer)
        shown = to_display(self.opened.ras)
        limits = _contrast_limits(self.opened.ras)
        for name in COLOURS:
            image = Image(
                shown, name=self._image_name(name), contrast_limits=limits, rgb=shown.ndim == 4,
                interpolation2d="linear", **self._common,
            )  # fmt: skip
            self._viewer.add_layer(image)
            self.images.append(image)
            self._add_mask(name)
        _link(self.images)

    def _add_mask(self, name: str) -> None:
        colours: dict[int | None, str] = {None: "transparent", 0: "transparent", 1: COLOURS[name]}
        mask = Labels(
            to_display(self.masks[name]), name=name, opacity=OPACITY, colormap=DirectLabelColormap(color_dict=colours),
            **self._common,
        )  # fmt: skip
        mask.editable = name == LABEL
        self._viewer.add_layer(mask)
        _name_in_cell(mask, COLOURS[name])
        self.labels[name] = mask

    def _take_over(self, reuse: CaseLayers) -> None:
        shown = to_display(self.opened.ras)
        limits = _contrast_limits(self.opened.ras)
        self.images = reuse.images
        for image, name in zip(self.images, COLOURS, strict=True):
            image.data = shown
            image.name = self._image_name(name)
            image.scale, image.metadata = self._common["scale"], self._common["metadata"]
            if limits is not None:
                image.contrast_limits_range = limits
        if limits is not None:
            self.images[0].contrast_limits = limits  # the other two follow
        for name in (TEXT_MASK, PREDICTION):
            mask = self.labels[name] = reuse.labels[name]
            mask.data = to_display(self.masks[name])
            mask.scale, mask.metadata = self._common["scale"], self._common["metadata"]
        self._viewer.layers.remove(reuse.labels[LABEL])
        self._add_mask(LABEL)

    def show_slices(self, axis: int, indices: list[int], found: dict[str, Mask], threshold: float) -> None:
        """Write probabilities of some slices (canonical ``axis``) in place and refresh the masks."""
        for name, probs in found.items():
            np.moveaxis(self.probs[name], axis, 0)[indices] = probs
            if name in self.labels:
                np.moveaxis(self.masks[name], axis, 0)[indices] = probs >= _level(threshold)
                self.labels[name].refresh()

    def apply_threshold(self, threshold: float) -> None:
        """Cut both masks anew; your label is not touched."""
        for name in (TEXT_MASK, PREDICTION):
            np.greater_equal(self.probs[name], _level(threshold), out=self.masks[name], casting="unsafe")
            self.labels[name].refresh()

    def mask_to_start_from(self, source: str, threshold: float) -> Mask:
        """A new label array from "merged", the text mask, the prediction, or nothing."""
        if source not in self.probs:
            return np.zeros_like(self.masks[LABEL])
        cut: Mask = (self.probs[source] >= _level(threshold)).astype(np.uint8)
        return cut

    def replace_label(self, wanted: Mask) -> int:
        """Write a whole label as one undoable step in napari's own history; returns how many voxels changed."""
        label = self.labels[LABEL]
        shown = to_display(wanted)
        changed = np.nonzero(label.data != shown)
        if changed[0].size:
            label.data_setitem(changed, shown[changed])
        return int(changed[0].size)

    def side_by_side(self, on: bool) -> None:
        """Three linked cells, or everything stacked on one image."""
        grid = self._viewer.canvas.grid
        grid.stride, grid.shape, grid.enabled = 2, (1, 3), on
        for image in self.images[1:]:
            image.visible = on
        for name, mask in self.labels.items():
            mask.name_overlay.visible = on
            mask.contour = 0 if on or name == LABEL else 1
            mask.opacity = OPACITY if on else {LABEL: 0.3}.get(name, 1.0)
        self._viewer.reset_view()

    def fullest_slice(self, axis: int) -> int | None:
        """The canonical slice with the largest text mask or prediction; None where both are empty."""
        areas = sum(
            np.moveaxis(self.masks[name], axis, 0).sum((1, 2), dtype=np.int64) for name in (TEXT_MASK, PREDICTION)
        )
        return int(np.argmax(areas)) if np.any(areas) else None

    def is_empty_at(self, axis: int, index: int) -> bool:
        """True when neither mask touches a canonical slice."""
        return not any(np.moveaxis(self.masks[name], axis, 0)[index].any() for name in (TEXT_MASK, PREDICTION))

    def present(self) -> bool:
        """False once the person removed one of the layers."""
        return all(layer in self._viewer.layers for layer in [*self.images, *self.labels.values()])

    def remove(self) -> None:
        for layer in [*self.images, *self.labels.values()]:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)


def _level(threshold: float) -> int:
    return max(1, round(threshold * 255))


def _contrast_limits(ras: NDArray[Any]) -> tuple[float, float] | None:
    if ras.ndim == 4:
        return None
    sample = ras.reshape(-1)[:: max(1, ras.size // 200_000)].astype(np.float64)
    low, high = (float(value) for value in np.nanquantile(sample[np.isfinite(sample)], (0.005, 0.995)))
    return (low, high) if high > low else (low, low + 1)


def _name_in_cell(layer: Labels, colour: str) -> None:
    overlay = layer.name_overlay
    overlay.visible = True
    overlay.position = "top_left"
    overlay.font_size = 12
    overlay.color = colour


def _link(images: list[Image]) -> None:
    from napari.experimental import link_layers

    link_layers(images, ("contrast_limits", "gamma", "colormap"))
