"""The two planes that the large view does not show, through one point that follows the work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtGui import QColor

from amvlm.imaging import to_display
from napari_amvlm import napari_bridge
from napari_amvlm.layers import COLOURS, LABEL, PREDICTION, TEXT_MASK
from napari_amvlm.panels.planes import PlanesPanel, PlaneView
from napari_amvlm.slice_picture import Colour, picture_of, size_in
from napari_amvlm.viewing import PLANES

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller
    from napari_amvlm.layers import CaseLayers

TITLE = "Other planes"
_SOON_MS = 40
_SHARE = 0.26
"""Of the window's height."""


class Companions:
    """Draws both views from the arrays, and goes where a click in one of them says.

    The point is held in display order (S→I, A→P, R→L). It moves with the slice on screen, and to where the mouse was
    pressed in the large view.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.panel: PlanesPanel | None = None
        self.point = [0, 0, 0]
        self._offered = False
        self._watched: list[Any] = []
        self._soon = QTimer(controller)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_SOON_MS)
        self._soon.timeout.connect(controller.slot(self.draw))
        viewer = controller.viewer
        viewer.dims.events.current_step.connect(self._stepped)
        viewer.dims.events.order.connect(self.draw_soon)
        viewer.mouse_drag_callbacks.append(self._pressed)

    # -- the panel ---------------------------------------------------------------------------------------------

    def attach(self, panel: PlanesPanel) -> None:
        """Draw into this panel from now on."""
        self.panel, self._offered = panel, True
        panel.pointed.connect(self._controller.slot(self.go_to))
        panel.came_up.connect(self.draw_soon)
        panel.destroyed.connect(lambda: self.detach(panel))
        self.draw_soon()

    def detach(self, panel: PlanesPanel) -> None:
        if self.panel is panel:
            self.panel = None

    def opened(self) -> None:
        """Another scan is on screen; the first one with three dimensions brings the panel along."""
        controller = self._controller
        layers, viewer = controller.layers, controller.viewer
        self._unwatch()
        if layers is None:
            return
        self.point = [int(step) for step in viewer.dims.current_step[:3]]
        for layer in (*layers.labels.values(), layers.images[0]):
            events = [layer.events.set_data]
            events.append(layer.events.labels_update if layer is not layers.images[0] else layer.events.contrast_limits)
            for event in events:
                event.connect(self.draw_soon)
                self._watched.append(event)
        if not (self._offered or layers.opened.volume.planar) and controller.panel is not None:
            panel = PlanesPanel()
            self.attach(panel)
            viewer.window.add_dock_widget(panel, name=TITLE, area="left")
            QTimer.singleShot(0, controller.slot(lambda: napari_bridge.give_height(viewer, panel, _SHARE)))
        self.draw_soon()

    def _unwatch(self) -> None:
        for event in self._watched:
            event.disconnect(self.draw_soon)
        self._watched.clear()

    # -- the point ---------------------------------------------------------------------------------------------

    def _stepped(self, _: Any = None) -> None:
        dims = self._controller.viewer.dims
        if dims.ndim == 3 and dims.ndisplay == 2:
            axis = dims.order[0]
            if self.point[axis] != dims.current_step[axis]:
                self.point[axis] = int(dims.current_step[axis])
                self.draw_soon()

    def _pressed(self, viewer: Any, event: Any) -> Iterator[None]:
        """A press in the large view, to paint or to look: the other planes show that place."""
        layers = self._controller.layers
        if layers is not None and viewer.dims.ndim == 3 and viewer.dims.ndisplay == 2 and len(event.position) == 3:
            place = np.array(event.position) / layers.opened.spacing_mm[::-1]
            shape = to_display(layers.opened.ras).shape[:3]
            for axis in viewer.dims.order[1:]:
                self.point[axis] = int(np.clip(round(float(place[axis])), 0, shape[axis] - 1))
            self.draw_soon()
        yield

    def go_to(self, view: int, down: float, across: float) -> None:
        """A click in one of the views, in parts of its height and width."""
        layers = self._controller.layers
        if layers is None:
            return
        shape = to_display(layers.opened.ras).shape[:3]
        _, vertical, horizontal = PLANES[self.names()[view]]
        self.point[vertical] = int(down * shape[vertical])
        self.point[horizontal] = int(across * shape[horizontal])
        axis = self._controller.viewer.dims.order[0]
        self._controller.viewer.dims.set_current_step(axis, self.point[axis])
        self.draw_soon()

    def names(self) -> list[str]:
        """The planes beside the one in the large view."""
        shown = self._controller.viewer.dims.order[0]
        return [name for name, order in PLANES.items() if order[0] != shown][:2]

    # -- drawing -----------------------------------------------------------------------------------------------

    def draw_soon(self, _: Any = None) -> None:
        """Draw once what happens now is over."""
        if self.panel is not None and self.panel.isVisible() and not self._soon.isActive():
            self._soon.start()

    def draw(self) -> None:
        panel, layers = self.panel, self._controller.layers
        if panel is None:
            return
        if layers is None or layers.opened.volume.planar or layers.opened.ras.ndim == 4 or not layers.present():
            panel.show_titles("", "")
            for view in panel.views:
                view.show_nothing()
            return
        names = self.names()
        panel.show_titles(*names)
        for name, view in zip(names, panel.views, strict=True):
            self._draw(layers, name, view)

    def _draw(self, layers: CaseLayers, name: str, view: PlaneView) -> None:
        scrolled, vertical, horizontal = PLANES[name]
        shown = to_display(layers.opened.ras)
        spacing = layers.opened.spacing_mm[::-1]
        at = min(self.point[scrolled], shown.shape[scrolled] - 1)
        plane = np.moveaxis(shown, scrolled, 0)[at]
        masks = [
            (np.moveaxis(to_display(layers.masks[kind]), scrolled, 0)[at], _rgb(COLOURS[kind]))
            for kind in (TEXT_MASK, PREDICTION, LABEL)
            if self._controller.viewing.masks_shown
        ]
        low, high = (float(value) for value in layers.images[0].contrast_limits)
        size = size_in(view.room, plane.shape[:2], (spacing[vertical], spacing[horizontal]))
        cross = tuple((self.point[axis] + 0.5) / shown.shape[axis] for axis in (vertical, horizontal))
        ends = self._controller.viewing.ends()
        letters = (*ends[horizontal], *ends[vertical])
        view.show_picture(picture_of(plane, masks, (low, high), size).tobytes(), size, (cross[0], cross[1]), letters)


def _rgb(colour: str) -> Colour:
    parts = QColor(colour)
    return parts.red(), parts.green(), parts.blue()
