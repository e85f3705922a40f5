"""The layers of an open scan: three linked views that share one image, geometry kept.

Every array is a copy-free view of a canonical (RAS) array in display order (S→I, A→P, R→L), so all planes are
radiological and painting reaches the array that is saved.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from amvlm.imaging import evenly_spread, to_display
from napari_amvlm.engine import Mask, OpenCase
from napari_amvlm.panels.measures import MASK_COLOURS
from napari_amvlm.twins import twins
from napari_amvlm.wording import unmarked

if TYPE_CHECKING:
    import napari

OPACITY = 0.55
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
PLACEHOLDER, OURS = "amvlm_placeholder", "amvlm_case"
TEXT_MASK, PREDICTION, LABEL = "Text mask", "Prediction", "Your label"
COLOURS = dict(zip((TEXT_MASK, PREDICTION, LABEL), MASK_COLOURS, strict=True))
STRIDE = 3
TEXT_ONLY, PREDICTION_ONLY, FIRST_OTHER, LAST_OTHER = 1, 2, 3, 255
"""What the outlines hold: where the two masks disagree, then other structures of the scan."""


class CaseLayers:
    """Three cells of image, mask and outlines: text mask, prediction, your label.

    The outlines of a cell share one array: other structures of the scan, and in the cell of your label also where text
    mask and prediction disagree.

    Parameters
    ----------
    viewer : napari.Viewer
    opened : OpenCase
    reuse : CaseLayers, optional
        The layers of the scan before. This one is shown in them: napari needs seconds to take nine layers away and
        to make nine others. The label's undo history is forgotten, since it must not reach into another scan.
    threshold : float
        Probability from which a voxel belongs to a mask.
    """

    def __init__(
        self, viewer: napari.viewer.Viewer, opened: OpenCase, reuse: CaseLayers | None = None, threshold: float = 0.5
    ) -> None:
        self._viewer_ref = weakref.ref(viewer)
        self.opened = opened
        shape = opened.ras.shape[:3]
        self.probs: dict[str, Mask] = {name: _empty(shape) for name in (TEXT_MASK, PREDICTION, "merged")}
        self.masks: dict[str, Mask] = {name: _empty(shape) for name in COLOURS}
        self.others: dict[str, Mask] = dict(opened.others)
        self.outlined: Mask = _empty(shape)
        if opened.label is not None:
            self.masks[LABEL][:] = opened.label
        self.images: list[Image] = []
        self.labels: dict[str, Labels] = {}
        self.outlines: list[Labels] = []
        self._twins: list[Any] = []
        self._areas: dict[int, NDArray[np.int64]] = {}
        self.was_prompted = False  # whether a prompt ran to its end for the structure at hand
        self.predicts = False  # whether there is a prediction that the text mask could disagree with
        self.threshold = threshold
        if reuse is not None and not (reuse.present() and reuse.opened.ras.ndim == opened.ras.ndim):
            reuse.remove()
            reuse = None
        if reuse is not None:
            self._take_over(reuse)
        else:
            self._add()
        label = self.labels[LABEL]
        label.brush_size = max(3, sorted(self.outlined.shape)[1] // 16)
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
        metadata = {"amvlm": True, OURS: True, "affine": volume.affine, "sides_known": volume.sides_known}
        return {"scale": self.opened.spacing_mm[::-1], "metadata": metadata}

    @property
    def all(self) -> list[Any]:
        """Every layer of the scan, in the viewer's order."""
        cells = zip(self.images, self.labels.values(), self.outlines, strict=True)
        return [layer for cell in cells for layer in cell]

    @property
    def copies(self) -> list[Any]:
        """Layers that only repeat or annotate others: a person needs the scan and the three masks."""
        return [*self.images[1:], *self.outlines]

    def _image_name(self, mask: str) -> str:
        own = self.opened.title
        return unmarked(own if mask == TEXT_MASK else f"{own} ({mask.lower()})")

    # -- making and reusing -----------------------------------------------------------------------------------

    def _add(self) -> None:
        for layer in [layer for layer in self._viewer.layers if layer.metadata.get(PLACEHOLDER)]:
            self._viewer.layers.remove(layer)
        shown = to_display(self.opened.ras)
        limits = contrast_limits(self.opened.ras)
        for name in COLOURS:
            image = Image(
                shown, name=self._image_name(name), contrast_limits=limits, rgb=shown.ndim == 4,
                interpolation2d="linear", **self._common,
            )  # fmt: skip
            self._viewer.add_layer(image)
            self.images.append(image)
            self._add_mask(name)
            self._add_outlines(name)
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

    def _add_outlines(self, cell: str) -> None:
        name = f"Outlines ({cell.lower()})"
        layer = Labels(to_display(self.outlined), name=name, colormap=self._outline_colours(cell), **self._common)
        layer.opacity = 1.0
        layer.contour = 1
        layer.editable = False
        self._viewer.add_layer(layer)
        self.outlines.append(layer)

    def _outline_colours(self, cell: str) -> DirectLabelColormap:
        disagreement = cell == LABEL
        colours: dict[int | None, str] = {
            None: "transparent", 0: "transparent",
            TEXT_ONLY: COLOURS[TEXT_MASK] if disagreement else "transparent",
            PREDICTION_ONLY: COLOURS[PREDICTION] if disagreement else "transparent",
        }  # fmt: skip
        for number, name in enumerate(self.others):
            colour = self.opened.colours.get(name, "")
            colours[min(FIRST_OTHER + number, LAST_OTHER)] = colour if _COLOUR.fullmatch(colour) else "#d0d0d0"
        return DirectLabelColormap(color_dict=colours)

    def _take_over(self, reuse: CaseLayers) -> None:
        """Show this scan in another's layers."""
        shown = to_display(self.opened.ras)
        limits = contrast_limits(self.opened.ras)
        self.images, self.outlines = reuse.images, reuse.outlines
        for image, name in zip(self.images, COLOURS, strict=True):
            image.data = shown
            image.name = self._image_name(name)
            image.scale, image.metadata = self._common["scale"], self._common["metadata"]
            if limits is not None:
                image.contrast_limits_range = limits
        if limits is not None:
            self.images[0].contrast_limits = limits  # the other two follow
        self.labels = reuse.labels
        for name, layer in self.labels.items():
            self._show_in(layer, self.masks[name])
            layer.name = name
        for layer, cell in zip(self.outlines, COLOURS, strict=True):
            self._show_in(layer, self.outlined)
            layer.colormap = self._outline_colours(cell)
        label = self.labels[LABEL]
        mode = str(label.mode)
        label.editable = False  # forgets the undo history
        label.editable = True
        label.mode = mode

    def _show_in(self, layer: Labels, array: Mask) -> None:
        layer.data = to_display(array)
        layer.scale, layer.metadata = self._common["scale"], self._common["metadata"]

    # -- masks ------------------------------------------------------------------------------------------------

    def write_slices(self, axis: int, indices: list[int], found: dict[str, Mask]) -> None:
        """Write probabilities of some slices (canonical ``axis``) and cut the masks; runs in the worker.

        Slice by slice: that is how the arrays lie in memory, and numpy lets the window run meanwhile.
        """
        areas = self._areas.setdefault(axis, np.zeros(self.outlined.shape[axis], np.int64))
        for place, index in enumerate(indices):
            at = _slice(axis, index)
            areas[index] = 0
            for name, probs in found.items():
                self.probs[name][at] = probs[place]
                if name in self.labels:
                    areas[index] += self._cut(name, at)
            self._outline(at)

    def apply_threshold(self, axis: int, indices: list[int]) -> None:
        """Cut both masks anew in some slices of a canonical axis; your label is not touched."""
        for index in indices:
            at = _slice(axis, index)
            for name in (TEXT_MASK, PREDICTION):
                self._cut(name, at)
            self._outline(at)

    def _cut(self, name: str, at: tuple[Any, ...]) -> int:
        """Cut one slice of a mask at the threshold; its area in voxels."""
        cut = self.probs[name][at] >= level(self.threshold)
        self.masks[name][at] = cut
        return int(np.count_nonzero(cut))

    def threshold_everywhere(self) -> Iterator[bool]:
        """The same for the whole volume, some slices at a time; runs in the worker."""
        count = self.outlined.shape[2]
        for first in range(0, count, 16):
            self.apply_threshold(2, list(range(first, min(first + 16, count))))
            yield True

    def outline_everywhere(self) -> Iterator[bool]:
        """Draw the outlines of the whole volume anew; runs in the worker."""
        for index in range(self.outlined.shape[2]):
            self._outline(_slice(2, index))
        yield True

    def _outline(self, at: tuple[Any, ...]) -> None:
        """What the outlines hold in one slice: disagreement over the other structures."""
        found = np.zeros_like(self.outlined[at])
        for number, other in enumerate(self.others.values()):
            found[other[at] > 0] = min(FIRST_OTHER + number, LAST_OTHER)
        if self.predicts:
            text, prediction = self.masks[TEXT_MASK][at], self.masks[PREDICTION][at]
            found[text > prediction] = TEXT_ONLY
            found[prediction > text] = PREDICTION_ONLY
        self.outlined[at] = found

    def keep_as_other(self, name: str, mask: Mask) -> None:
        """A structure's mask (canonical) is to be an outline in all three cells; an empty one is taken away."""
        if mask.any():
            self.others[name] = mask
        else:
            self.others.pop(name, None)

    def colour_outlines(self) -> None:
        """The outlines' colours follow the structures that there are."""
        for layer, cell in zip(self.outlines, COLOURS, strict=True):
            layer.colormap = self._outline_colours(cell)

    def refresh(self) -> None:
        """Draw masks and outlines as their arrays are now."""
        for layer in (self.labels[TEXT_MASK], self.labels[PREDICTION], *self.outlines):
            layer.refresh(extent=False)

    def clear_masks(self) -> None:
        """Nothing was prompted yet."""
        for array in (*self.probs.values(), self.masks[TEXT_MASK], self.masks[PREDICTION]):
            array[:] = 0
        self._areas.clear()
        self.predicts = False

    def compare(self, masks: list[Mask], names: list[str]) -> None:
        """Show two other masks in the cells of text mask and prediction, their disagreement in the third."""
        self.predicts = True
        for kind, mask, name in zip((TEXT_MASK, PREDICTION), masks, names, strict=True):
            self.masks[kind][:] = mask
            self.labels[kind].name = name

    def end_comparison(self, names: list[str]) -> None:
        """The model's masks and their names again."""
        self.predicts = bool(self.probs[PREDICTION].any())
        for kind, name in zip((TEXT_MASK, PREDICTION), names, strict=True):
            self.labels[kind].name = name

    def mask_to_start_from(self, source: str) -> Mask:
        """A new label array from "merged", the text mask, the prediction, or nothing."""
        if source not in self.probs:
            return np.zeros_like(self.masks[LABEL])
        cut: Mask = (self.probs[source] >= level(self.threshold)).view(np.uint8)
        return cut

    def replace_label(self, wanted: Mask) -> int:
        """Write a whole label as one undoable step in napari's own history; returns how many voxels changed."""
        label, mask = self.labels[LABEL], self.masks[LABEL]
        planes = np.flatnonzero(wanted.view(np.bool_).any((0, 1)) | mask.view(np.bool_).any((0, 1)))
        found = [np.stack(np.nonzero(mask[:, :, z] != wanted[:, :, z])) for z in planes]
        count = [part.shape[1] for part in found]
        if not sum(count):
            return 0
        across = np.concatenate(found, 1)
        where = np.stack([across[0], across[1], np.repeat(planes, count)])
        shown = tuple((np.array(mask.shape)[:, None] - 1 - where)[::-1])
        label.data_setitem(shown, wanted[tuple(where)])
        return sum(count)

    # -- the view ---------------------------------------------------------------------------------------------

    def side_by_side(self, on: bool) -> None:
        """Three linked cells, or everything stacked on one image."""
        _change(self._viewer.canvas.grid, stride=STRIDE, shape=(1, 3), enabled=on)
        for layer in (*self.images[1:], *self.outlines[:2]):
            _change(layer, visible=on)
        for name, mask in self.labels.items():
            _change(mask.name_overlay, visible=on)
            opacity = OPACITY if on else {LABEL: 0.3}.get(name, 1.0)
            _change(mask, contour=0 if on or name == LABEL else 1, opacity=opacity)
        self._viewer.reset_view()

    def show_masks(self, on: bool) -> None:
        """Hide every mask to look at the image alone, or show them again."""
        for layer in (*self.labels.values(), *self.outlines):
            layer.opacity = (OPACITY if layer in self.labels.values() else 1.0) if on else 0.0

    def show_3d(self, on: bool, side_by_side: bool) -> None:
        """Smaller twins of image and masks stand in while the view is three-dimensional."""
        for layer in self._twins:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        self._twins = []
        for layer in self.all:
            layer.visible = not on
        for layer in (*self.labels.values(), *self.outlines):
            layer.contour = 0 if on or layer not in self.outlines else 1  # napari draws none in three dimensions
        if not on:
            self._viewer.layers.selection.active = self.labels[LABEL]
            self.side_by_side(side_by_side)
            return
        self._viewer.canvas.grid.enabled = False
        limits = self.images[0].contrast_limits if self.opened.ras.ndim == 3 else None
        self._twins = twins(self.opened.ras, self.opened.spacing_mm, limits, self.masks, COLOURS, LABEL)
        for layer in self._twins:
            self._viewer.add_layer(layer)

    def fullest_slice(self, axis: int) -> int | None:
        """The canonical slice where a prompt found most; None where it found nothing."""
        areas = self._areas.get(axis)
        return int(np.argmax(areas)) if areas is not None and areas.any() else None

    def is_empty_at(self, axis: int, index: int) -> bool:
        """True when neither mask touches a canonical slice."""
        return not any(np.moveaxis(self.masks[name], axis, 0)[index].any() for name in (TEXT_MASK, PREDICTION))

    def present(self) -> bool:
        """False once the person removed one of the layers."""
        return all(layer in self._viewer.layers for layer in self.all)

    def put_back(self) -> None:
        """Show layers again that were removed from the list, at their places."""
        for place, layer in enumerate(self.all):
            if layer not in self._viewer.layers:
                self._viewer.layers.insert(place, layer)
        self.come_first()
        self._viewer.layers.selection.active = self.labels[LABEL]

    def come_first(self) -> None:
        """Keep our layers first in the list, in order: napari fills the three views by a layer's place."""
        layers = self._viewer.layers
        for place, layer in enumerate(self.all):
            if layers.index(layer) != place:
                layers.move(layers.index(layer), place)

    def remove(self) -> None:
        for layer in [*self._twins, *self.all]:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)


def _slice(axis: int, index: int) -> tuple[Any, ...]:
    return tuple(index if a == axis else slice(None) for a in range(3))


def _empty(shape: tuple[int, ...]) -> Mask:
    """Zeros whose axial slices lie together in memory: those are stepped through."""
    return np.zeros(shape, np.uint8, order="F")


def level(threshold: float) -> int:
    """A threshold in [0, 1] as masks hold probabilities, 1 to 255."""
    return max(1, round(threshold * 255))


def contrast_limits(ras: NDArray[Any]) -> tuple[float, float] | None:
    """The 0.5 to 99.5 % range of a volume's finite voxels; None for RGB."""
    if ras.ndim == 4:
        return None
    sample = evenly_spread(ras).astype(np.float64)
    low, high = (float(value) for value in np.nanquantile(sample[np.isfinite(sample)], (0.005, 0.995)))
    return (low, high) if high > low else (low, low + 1)


def _change(model: Any, **values: Any) -> None:
    """Set what is not so yet: napari lays out and draws the whole canvas anew at each of these."""
    for name, value in values.items():
        if getattr(model, name) != value:
            setattr(model, name, value)


def _name_in_cell(layer: Labels, colour: str) -> None:
    overlay = layer.name_overlay
    overlay.visible = True
    overlay.position = "top_left"
    overlay.font_size = 8  # clear of the letter in the middle, on a small screen too
    overlay.color = colour


def _link(images: list[Image]) -> None:
    from napari.experimental import link_layers

    link_layers(images, ("contrast_limits", "gamma", "colormap"))
