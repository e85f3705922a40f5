"""Layers that are not ours: never in the way of the views, offered as a scan to label or as a start for your label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from qtpy.QtCore import QTimer

from amvlm.imaging import from_display
from napari_amvlm import napari_bridge
from napari_amvlm.layers import LABEL, OURS, PLACEHOLDER, CaseLayers
from napari_amvlm.reader import SUFFIXES
from napari_amvlm.wording import printable

if TYPE_CHECKING:

    from napari_amvlm.controller import Controller
    from napari_amvlm.engine import Mask

MOST_VALUES = 30
"""Values of a labels layer that a person can be asked to choose from."""


class Guests:
    """Watches the viewer's list of layers."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._moving = False
        layers = controller.viewer.layers
        layers.events.inserted.connect(self._inserted)
        layers.events.removed.connect(lambda _: self._list_starts())
        layers.events.reordered.connect(lambda _: self._put_behind())
        self._soon = QTimer(controller)  # once the list itself has followed
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(controller.slot(self._tidy))
        for event in (layers.events.inserted, layers.events.removed, layers.events.reordered):
            event.connect(lambda _: self._soon.start(0))
        controller.workspace.scan_shown.connect(controller.slot(self._scan_shown))

    def look(self) -> None:
        """Offer a scan that was opened in napari before the panel was."""
        scans = [layer for layer in self._others() if isinstance(layer, Image) and _file_of(layer) is not None]
        if scans and self._controller.layers is None and self._controller.store is None:
            self._offer_scan(scans[-1])

    def _others(self) -> list[Any]:
        return [layer for layer in self._controller.viewer.layers if not is_ours(layer)]

    def _inserted(self, event: Any) -> None:
        layer = event.value
        if not is_ours(layer):
            self._controller.guard(lambda: self._welcome(layer))

    def _welcome(self, layer: Any) -> None:
        self._put_behind()
        self._list_starts()
        if isinstance(layer, Image):
            if self._controller.layers is not None:
                layer.visible = False  # it would lie over the text mask
            if _file_of(layer) is not None:
                self._offer_scan(layer)

    def _offer_scan(self, layer: Any) -> None:
        name = printable(layer.name)
        hidden = " It is hidden: it would cover the views." if not layer.visible else ""
        self._controller.offer(
            f"{name} was opened in napari, outside this panel.{hidden}", "Open it here",
            "Open the file as a scan that can be prompted", lambda: self._take_scan(layer),
        )  # fmt: skip

    def _take_scan(self, layer: Any) -> None:
        path = _file_of(layer)
        if layer in self._controller.viewer.layers:
            self._controller.viewer.layers.remove(layer)
        if path is not None:
            self._controller.studies.open_scan(path)

    def _scan_shown(self) -> None:
        """Layers that were there before are hidden, and come after ours in the list."""
        if self._controller.layers is not None:
            for layer in self._others():
                layer.visible = layer.visible and not isinstance(layer, Image)
        self._put_behind()
        self._list_starts()
        self._soon.start(0)

    def _tidy(self) -> None:
        """The layer list shows the scan and its masks, without the copies that the three views need."""
        layers = self._controller.layers
        napari_bridge.hide_in_list(self._controller.viewer, [] if layers is None else layers.copies)

    def _put_behind(self) -> None:
        layers = self._controller.layers
        if layers is not None and not self._moving and layers.present():
            self._moving = True
            try:
                layers.come_first()
            finally:
                self._moving = False

    # -- a start for your label -------------------------------------------------------------------------------

    def _starts(self, layers: CaseLayers) -> list[Labels]:
        """Labels layers that lie on the grid of the scan on screen."""
        label = layers.labels[LABEL]
        return [
            layer for layer in self._others()
            if isinstance(layer, Labels) and layer.data.shape == label.data.shape
            and np.allclose(layer.scale, label.scale, rtol=1e-3) and np.allclose(layer.translate, label.translate)
        ]  # fmt: skip

    def _list_starts(self) -> None:
        controller = self._controller
        if controller.panel is not None:
            layers = controller.layers
            names = [layer.name for layer in self._starts(layers)] if layers is not None else []
            controller.panel.show_starts([(printable(name), name) for name in names])

    def start_from(self, name: str) -> None:
        """Your label becomes what a labels layer of the viewer holds, as one undoable step."""
        controller, layers = self._controller, self._controller.layers
        guest = next((layer for layer in self._starts(layers) if layer.name == name), None) if layers else None
        if layers is None or guest is None:
            controller.notice("That layer does not lie on the grid of this scan.", True)
            return
        data = np.asarray(guest.data)
        values = [int(value) for value in np.unique(data) if value]
        chosen = values[0] if len(values) == 1 else controller.studies.ask_value(values[:MOST_VALUES]) if values else 0
        if chosen is None:
            return
        mask: Mask = np.asfortranarray(from_display((data == chosen) if chosen else data > 0).astype(np.uint8))
        controller.label.start_from_other(mask, printable(name))
        if not _has_our_geometry(guest, layers):
            controller.notice("Check that it lies on the scan: that layer does not say which side is which.", True)


def is_ours(layer: Any) -> bool:
    """True for the layers of a scan that this plugin shows."""
    return any(layer.metadata.get(key) for key in (OURS, PLACEHOLDER, "amvlm_twin"))


def _has_our_geometry(layer: Any, layers: CaseLayers) -> bool:
    """Whether a layer was made on our display of the scan, as layers are that others make from ours."""
    affine = layer.metadata.get("affine")
    return affine is not None and np.array_equal(affine, layers.opened.volume.affine)


def _file_of(layer: Any) -> Path | None:
    """The scan's file that a layer was read from, if any."""
    name = layer.source.path
    return Path(name) if name and str(name).lower().endswith((*SUFFIXES, ".png", ".tif", ".tiff", ".webp")) else None
