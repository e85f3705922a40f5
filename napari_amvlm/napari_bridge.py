"""Every private part of napari that the plugin touches, in one place; each has a test of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer


def main_window(viewer: napari.viewer.Viewer) -> QMainWindow | None:
    """The Qt window of a viewer; None without one."""
    window: QMainWindow | None = getattr(viewer.window, "_qt_window", None)
    return window


def canvas(viewer: napari.viewer.Viewer) -> QWidget | None:
    """The widget that shows the slices and hears the keys; None without a window."""
    shown: Any = getattr(viewer.window, "_qt_viewer", None)
    return None if shown is None else shown.canvas.native


def focus_canvas(viewer: napari.viewer.Viewer) -> None:
    """Let keys go to the scan."""
    if (widget := canvas(viewer)) is not None:
        widget.setFocus()


def dock_of(panel: QWidget) -> QDockWidget | None:
    """The dock that a panel lies in; None while it lies in none."""
    parent = panel.parentWidget()
    while parent is not None and not isinstance(parent, QDockWidget):
        parent = parent.parentWidget()
    return parent


def give_height(viewer: napari.viewer.Viewer, panel: QWidget, share: float) -> None:
    """Give a panel's dock this share of the window's height, as far as its neighbours can spare it."""
    window, dock = main_window(viewer), dock_of(panel)
    if window is not None and dock is not None:
        window.resizeDocks([dock], [int(share * window.height())], Qt.Orientation.Vertical)


def tab_together(viewer: napari.viewer.Viewer, panel: QWidget, others: list[QWidget]) -> None:
    """Put a panel's dock on a tab of the dock where one of the others lies, and bring it to the front.

    napari stacks docks that are opened from its menu, which leaves a hand's breadth for each.
    """
    window, dock = main_window(viewer), dock_of(panel)
    if window is None or dock is None or dock.isFloating():
        return
    docks = [other for other in map(dock_of, others) if other is not None and other is not dock]
    home = next((other for other in docks if not other.isFloating() and not other.isHidden()), None)
    if home is None:
        return
    if home not in window.tabifiedDockWidgets(dock):
        window.tabifyDockWidget(home, dock)
    dock.show()
    dock.raise_()


def hide_in_list(viewer: napari.viewer.Viewer, hidden: Collection[Layer]) -> None:
    """Leave these layers out of the window's layer list, and no others; in the viewer they stay."""
    shown: Any = getattr(viewer.window, "_qt_viewer", None)
    if shown is None:
        return
    from napari._qt.containers._base_item_model import ItemRole

    view = shown.layers
    for row in range(view.model().rowCount()):
        layer = view.model().index(row, 0).data(ItemRole)
        view.setRowHidden(row, any(layer is other for other in hidden))


def is_light(viewer: napari.viewer.Viewer) -> bool:
    """Whether the window shows dark letters on a light ground."""
    from napari.utils.theme import get_theme

    red, green, blue = get_theme(viewer.theme).background.as_rgb_tuple()[:3]
    return bool(0.299 * red + 0.587 * green + 0.114 * blue > 127)
