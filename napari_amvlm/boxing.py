"""One box, one organ: a box dragged on a slice becomes a mask there, and is carried through the scan (LiteMedSAM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers.labels._labels_constants import Mode
from qtpy.QtCore import QPoint, QRect, Qt
from qtpy.QtWidgets import QRubberBand

from napari_amvlm import napari_bridge
from napari_amvlm.engine import Box, BoxMask, Mask
from napari_amvlm.jobs import PROMPT, Job
from napari_amvlm.layers import LABEL

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller
    from napari_amvlm.layers import CaseLayers

SMALLEST = 3
"""Pixels of the scan that a box has at least on each side: less is a click that slipped."""


@dataclass
class _Drawn:
    """A box on a slice of a scan, and what it gave so far."""

    layers: CaseLayers
    axis: int
    index: int
    box: Box
    strokes: int
    masks: dict[int, Mask] = field(default_factory=dict)
    doubt: str = ""


class Boxing:
    """The box tool. A box decides anew what lies inside it on its slice; carried on, it adds to the other slices."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._armed = False
        self._last: _Drawn | None = None
        self._band: QRubberBand | None = None
        self._complete = False
        controller.viewer.mouse_drag_callbacks.append(self._drag)

    # -- the tool ----------------------------------------------------------------------------------------------

    def toggle(self) -> None:
        """Take the tool, or put it away."""
        self.use(not self._armed)

    def use(self, on: bool) -> None:
        """Take the tool or put it away; painting pauses meanwhile."""
        controller, layers = self._controller, self._controller.layers
        if on and (layers is None or not layers.present()):
            controller.notice("Open a scan first.", True)
            on = False
        if on and layers is not None:
            controller.correcting.stop()
            controller.viewer.layers.selection.active = layers.labels[LABEL]
            layers.labels[LABEL].mode = Mode.PAN_ZOOM
            controller.notice("Drag a box close around the structure, on a slice where it is large. 8 ends it.")
        elif self._armed:
            controller.notice("")
        self._armed = on
        canvas = napari_bridge.canvas(controller.viewer)
        if canvas is not None:
            canvas.setCursor(Qt.CursorShape.CrossCursor) if on else canvas.unsetCursor()
        if controller.panel is not None:
            controller.panel.show_box_tool(on)

    def scan_left(self) -> None:
        """Another scan is coming."""
        self._last = None
        if self._armed:
            self.use(False)

    def _drag(self, viewer: Any, event: Any) -> Iterator[None]:
        layers = self._controller.layers
        flat = viewer.dims.ndim == 3 and viewer.dims.ndisplay == 2
        if not self._armed or layers is None or event.button != 1 or not flat:
            return
        start, pixel = self._voxel(layers, event), QPoint(*(int(side) for side in event.pos[:2]))
        event.handled = True
        yield
        while event.type == "mouse_move":
            self._stretch(pixel, QPoint(*(int(side) for side in event.pos[:2])))
            event.handled = True
            yield
        self._stretch(None, None)
        end = self._voxel(layers, event)
        self._controller.guard(lambda: self._box(layers, start, end))

    def _stretch(self, start: QPoint | None, end: QPoint | None) -> None:
        """Show the box while it is dragged; nothing ends that."""
        if self._band is None and (canvas := napari_bridge.canvas(self._controller.viewer)) is not None:
            self._band = QRubberBand(QRubberBand.Shape.Rectangle, canvas)
        if self._band is not None:
            if start is not None and end is not None:
                self._band.setGeometry(QRect(start, end).normalized())
            self._band.setVisible(start is not None)

    def _voxel(self, layers: CaseLayers, event: Any) -> tuple[int, ...]:
        """The canonical voxel under the mouse; outside the scan its nearest one."""
        label = layers.labels[LABEL]
        place = np.round(label.world_to_data(event.position)).astype(int)
        shape = np.array(label.data.shape)
        return tuple(int(n) for n in (shape - 1 - np.clip(place, 0, shape - 1))[::-1])

    # -- a box -------------------------------------------------------------------------------------------------

    def _box(self, layers: CaseLayers, start: tuple[int, ...], end: tuple[int, ...]) -> None:
        """Both corners were given, as canonical voxels: outline what the box holds on its slice."""
        controller = self._controller
        if controller.layers is not layers:
            return
        axis = 2 - int(controller.viewer.dims.order[0])
        rows, columns = (sorted((start[other], end[other])) for other in range(3) if other != axis)
        if min(rows[1] - rows[0], columns[1] - columns[0]) + 1 < SMALLEST:
            controller.notice("That was no box. Drag from one corner of the structure to the opposite one.", True)
            return
        index = controller.prompting.visible_slice(axis)
        box: Box = (rows[0], columns[0], rows[1], columns[1])
        self._with_weights(_Drawn(layers, axis, index, box, controller.label.strokes), whole=False)

    def carry(self) -> None:
        """Carry the last box's mask through the neighbouring slices."""
        last = self._last
        if last is None or last.layers is not self._controller.layers:
            self._controller.notice("Drag a box first (8).", True)
        else:
            self._controller.withdraw_offer()
            drawn = _Drawn(last.layers, last.axis, last.index, last.box, self._controller.label.strokes)
            self._with_weights(drawn, whole=True)

    def _with_weights(self, drawn: _Drawn, whole: bool) -> None:
        """Once LiteMedSAM's weights are on this machine; ask before anything is downloaded."""
        controller, opened = self._controller, drawn.layers.opened
        if controller.judging.saving or controller.worker.has_job_of(opened, PROMPT):
            controller.notice("Wait until the prompt has finished, or cancel it.", True)
            return

        def go_on() -> None:
            self._complete = True
            self._run(drawn, whole)

        if self._complete:
            go_on()
        else:
            controller.with_weights(
                controller.engine.missing_box_weights, go_on,
                title="Download LiteMedSAM?", text="Looking for LiteMedSAM …", owner=opened,
            )  # fmt: skip

    def _run(self, drawn: _Drawn, whole: bool) -> None:
        controller, layers = self._controller, drawn.layers
        limits = layers.images[0].contrast_limits if layers.opened.ras.ndim == 3 else None
        window = None if limits is None else (float(limits[0]), float(limits[1]))

        def arrived(found: BoxMask) -> None:
            drawn.masks[found.index] = found.mask
            drawn.doubt = drawn.doubt or found.doubt
            controller.workspace.go_on(0, 0, f"{len(drawn.masks)} slices …", job)

        def ended(_: bool) -> None:
            controller.workspace.end(job)
            if controller.layers is layers and layers.present():
                self._put(drawn, whole)

        def failed(sentence: str) -> None:
            controller.workspace.end(job)
            controller.fail(sentence)

        def work() -> Iterator[BoxMask]:
            return controller.engine.boxed(layers.opened.volume, drawn.axis, drawn.index, drawn.box, window, whole)

        job = Job(work, owner=layers.opened, kind=PROMPT, on_result=arrived, on_end=ended, on_error=failed)
        controller.workspace.begin("Reading the slice …", job)
        controller.worker.submit(job)

    def _put(self, drawn: _Drawn, whole: bool) -> None:
        """Write what was found into your label, as one undoable step."""
        controller = self._controller
        if controller.label.strokes != drawn.strokes:
            controller.notice("The label changed meanwhile: nothing was done.", True)
            return
        if not any(mask.any() for mask in drawn.masks.values()):  # cancelled, or nothing there: the label stays
            controller.notice(drawn.doubt, bool(drawn.doubt))
            return
        wanted = drawn.layers.masks[LABEL].copy(order="K")
        planes = np.moveaxis(wanted, drawn.axis, 0)
        for index, mask in drawn.masks.items():
            planes[index] |= mask
        if not whole:
            top, left, bottom, right = drawn.box
            inside = (drawn.index, slice(top, bottom + 1), slice(left, right + 1))
            planes[inside] = drawn.masks[drawn.index][inside[1:]]
        self._last = drawn
        changed = controller.label.boxed(wanted)
        controller.overview.show_state()
        if drawn.doubt:
            controller.notice(drawn.doubt, True)
        elif whole:
            controller.notice(f"{len(drawn.masks)} slices. Check both ends. Draw another box to fix a slice.")
        else:
            controller.notice(f"Box: {changed:,} voxels changed.")
            controller.offer("This slice is outlined.", "Carry it through the scan (9)",
                             "Outline the structure in the neighbouring slices too", self.carry)  # fmt: skip
