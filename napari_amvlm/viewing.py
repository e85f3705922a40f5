"""How a scan is looked at: plane, window, wheel, patient-side letters, three dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.components._viewer_mouse_bindings import dims_scroll
from napari.components.overlays import TextOverlay
from qtpy.QtCore import QObject

from amvlm.imaging import evenly_spread
from napari_amvlm import napari_bridge
from napari_amvlm.layers import contrast_limits

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller

PLANES = {"Axial": (0, 1, 2), "Coronal": (1, 0, 2), "Sagittal": (2, 0, 1)}
"""Display axes run S→I, A→P and R→L; the first of an order is the one that is scrolled."""
ENDS = (("S", "I"), ("A", "P"), ("R", "L"))
WINDOWS = {"Lung": (-600, 1500), "Bone": (400, 1800), "Soft tissue": (40, 400), "Brain": (40, 80)}
"""CT presets as level and width in Hounsfield units, in the usual radiological settings."""
FULL = "Full range"
EDGES = {"amvlm_left": "middle_left", "amvlm_right": "middle_right", "amvlm_top": "top_center",
         "amvlm_bottom": "bottom_center"}  # fmt: skip
LETTER_COLOUR, DARK_LETTERS = "#ffe08a", "#7a4b00"
_ZOOM_STEP = 1.15


class Viewing(QObject):
    """Planes, windows and letters of one viewer."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._controller = controller
        self._compared = False
        viewer = controller.viewer
        for name, position in EDGES.items():
            viewer.canvas.overlays[name] = TextOverlay(
                position=position, font_size=14, color=LETTER_COLOUR, gridded=True, visible=True, text=""
            )
        viewer.dims.events.order.connect(self._letters)

        def into_three_dimensions(_: Any = None) -> None:
            self._into_three_dimensions()

        # napari calls its own callbacks before anybody else's, and would slice every layer whole
        into_three_dimensions.__module__ = "napari.napari_amvlm"
        viewer.dims.events.ndisplay.connect(into_three_dimensions, position="first")
        viewer.dims.events.ndisplay.connect(self._out_of_three_dimensions, position="last")
        if dims_scroll in viewer.mouse_wheel_callbacks:
            viewer.mouse_wheel_callbacks.remove(dims_scroll)
        viewer.mouse_wheel_callbacks.append(self._wheel)
        viewer.mouse_drag_callbacks.append(self._drag_window)
        self.masks_shown = True
        self.use_theme()

    # -- one view or three ------------------------------------------------------------------------------------

    @property
    def shows_three(self) -> bool:
        """Three linked views: as the person chose, else from the first masks that can be compared."""
        chosen = self._controller.workspace.side_by_side
        return self._compared if chosen is None else chosen

    def arrange(self) -> None:
        """Lay the views out."""
        self.masks_shown = True
        layers = self._controller.layers
        if layers is not None and self._controller.viewer.dims.ndisplay == 2:
            layers.side_by_side(self.shows_three)

    def compare(self) -> None:
        """There is something to compare."""
        before, self._compared = self.shows_three, True
        if self.shows_three != before:
            self.arrange()

    def use_theme(self) -> None:
        """Letters that can be read on the canvas, which is light in a light theme."""
        viewer = self._controller.viewer
        light = napari_bridge.is_light(viewer)
        for name in EDGES:
            viewer.canvas.overlays[name].color = DARK_LETTERS if light else LETTER_COLOUR

    def opened(self) -> None:
        """Another scan is on screen."""
        controller = self._controller
        layers = controller.layers
        if layers is None:
            return
        volume = layers.opened.volume
        if volume.planar:
            self.show_plane("Axial")
        if controller.panel is not None:
            windows = [FULL, *WINDOWS] if self._may_be_ct() else [FULL]
            controller.panel.show_view_choices(windows, planes=not volume.planar)
        self._letters()
        self._show_levels()

    def begin(self) -> None:
        """A scan was opened: CT is shown in the window for soft tissue."""
        if self._is_ct():
            self.show_window("Soft tissue")

    def _may_be_ct(self) -> bool:
        """True for CT, and where no header says what else it is."""
        layers = self._controller.layers
        return layers is not None and layers.opened.ras.ndim == 3 and (
            self._is_ct() or (layers.opened.volume.modality == "" and not layers.opened.volume.planar)
        )  # fmt: skip

    def _is_ct(self) -> bool:
        """CT by its header, or signed values as only CT has them where no header says."""
        layers = self._controller.layers
        if layers is None or layers.opened.ras.ndim == 4:
            return False
        modality = layers.opened.volume.modality
        if modality or layers.opened.ras.dtype.kind == "u":
            return modality == "CT"
        sample = evenly_spread(layers.opened.ras, 50_000)
        low = float(np.nanmin(sample))
        return -4000 <= low <= -900 and float(np.nanmax(sample)) > 300

    # -- planes -----------------------------------------------------------------------------------------------

    def show_plane(self, name: str) -> None:
        """Axial, coronal or sagittal; nothing is resampled and painting goes on in that plane."""
        viewer = self._controller.viewer
        if viewer.dims.ndim == 3:
            viewer.dims.order = PLANES[name]
            viewer.reset_view()

    def next_plane(self) -> None:
        """Axial → coronal → sagittal."""
        layers = self._controller.layers
        if layers is not None and not layers.opened.volume.planar:
            names = list(PLANES)
            order = tuple(self._controller.viewer.dims.order)
            now = next((n for n, plane in enumerate(PLANES.values()) if plane == order), -1)
            self.show_plane(names[(now + 1) % 3])

    def _letters(self, _: Any = None) -> None:
        viewer, layers = self._controller.viewer, self._controller.layers
        shown = layers is not None and viewer.dims.ndisplay == 2 and viewer.dims.ndim == 3
        words = dict.fromkeys(EDGES, "")
        if shown:
            vertical, horizontal = viewer.dims.order[1:]
            ends = self.ends()
            words = dict(zip(EDGES, (*ends[horizontal], *ends[vertical]), strict=True))
        for name, word in words.items():
            overlay = viewer.canvas.overlays[name]
            overlay.text = word

    def ends(self) -> list[tuple[str, str]]:
        """The letters at both ends of each display axis of the open scan."""
        ends, layers = list(ENDS), self._controller.layers
        if layers is not None and not layers.opened.volume.sides_known:
            ends[2] = ("R?", "L?")
        if layers is not None and layers.opened.volume.planar:
            ends[1] = ("", "")
        return ends

    # -- window -----------------------------------------------------------------------------------------------

    def show_window(self, name: str) -> None:
        """A CT preset, or the scan's full range."""
        layers = self._controller.layers
        if layers is None or layers.opened.ras.ndim == 4:
            return
        limits = contrast_limits(layers.opened.ras)
        if name in WINDOWS:
            level, width = WINDOWS[name]
            limits = (level - width / 2, level + width / 2)
        if limits is not None:
            self._set_limits(*limits)
        if self._controller.panel is not None:
            self._controller.panel.show_window_chosen(name)

    def next_window(self) -> None:
        """The next preset of the list."""
        panel = self._controller.panel
        if panel is None or panel.windows.count() < 2:
            self._controller.notice("The presets are for CT. Drag with the middle mouse button to change the window.")
        else:
            self.show_window(panel.windows.itemText((panel.windows.currentIndex() + 1) % panel.windows.count()))

    def _set_limits(self, low: float, high: float) -> None:
        layers = self._controller.layers
        if layers is None:
            return
        for image in layers.images:
            old = image.contrast_limits_range
            image.contrast_limits_range = (min(low, old[0]), max(high, old[1]))
        layers.images[0].contrast_limits = (low, high)  # the others follow
        self._show_levels()

    def _show_levels(self) -> None:
        layers, panel = self._controller.layers, self._controller.panel
        if layers is not None and panel is not None and layers.opened.ras.ndim == 3:
            low, high = (float(value) for value in layers.images[0].contrast_limits)
            panel.show_levels((low + high) / 2, high - low)

    def _drag_window(self, _: Any, event: Any) -> Iterator[None]:
        """Middle-button drag (or right-button while not painting): width across, level up and down."""
        layers = self._controller.layers
        painting = layers is not None and layers.labels["Your label"].mode != "pan_zoom"
        if layers is None or layers.opened.ras.ndim == 4 or event.button not in ((3,) if painting else (2, 3)):
            return
        low, high = (float(v) for v in layers.images[0].contrast_limits)
        start, level, width = np.array(event.pos), (low + high) / 2, high - low
        event.handled = True
        yield
        while event.type == "mouse_move":
            across, down = (np.array(event.pos) - start) / 300
            wide = max(width * float(np.exp(across)), 1e-6 * max(1.0, abs(level)))
            middle = level + float(down) * width
            self._set_limits(middle - wide / 2, middle + wide / 2)
            event.handled = True
            yield

    # -- wheel and three dimensions -----------------------------------------------------------------------------

    def _wheel(self, viewer: Any, event: Any) -> None:
        """The wheel scrolls slices, Ctrl+wheel zooms; without a scan of ours napari's own way holds."""
        controls = "Control" in event.modifiers
        ours = self._controller.layers is not None and viewer.dims.ndisplay == 2 and viewer.dims.ndim == 3
        if not ours:
            dims_scroll(viewer, event)
        elif controls:
            viewer.scene.camera.zoom *= _ZOOM_STEP ** float(np.clip(event.delta[1], -3, 3))
            event.handled = True
        elif not event.modifiers:
            step = -int(np.sign(event.delta[1])) * (-1 if event.native is not None and event.native.inverted() else 1)
            axis = viewer.dims.order[0]
            viewer.dims.set_current_step(axis, viewer.dims.current_step[axis] + step)
            event.handled = True

    def _into_three_dimensions(self) -> None:
        layers = self._controller.layers
        if self._controller.viewer.dims.ndisplay == 3 and layers is not None and layers.present():
            layers.show_3d(True, self.shows_three)
            self._letters()

    def _out_of_three_dimensions(self, _: Any = None) -> None:
        layers = self._controller.layers
        if self._controller.viewer.dims.ndisplay == 2 and layers is not None and layers.present():
            layers.show_3d(False, self.shows_three)
            self._letters()

    def toggle_masks(self) -> None:
        """Look at the image alone, and back."""
        if self._controller.layers is not None:
            self.masks_shown = not self.masks_shown
            self._controller.layers.show_masks(self.masks_shown)
            self._controller.companions.draw_soon()
