"""The two small views of the planes that the large one does not show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from amvlm.imaging import to_display
from amvlm.store import LabelStore
from napari_amvlm import napari_bridge
from napari_amvlm.layers import LABEL
from napari_amvlm.panels.planes import PlanesPanel
from napari_amvlm.slice_picture import outline, picture_of, sampled, size_in

GREEN = (0, 255, 0)


# -- pictures: numbers only ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "shape", "spacing", "size"),
    [
        ((100, 100), (50, 50), (1, 1), (100, 100)),
        ((100, 100), (10, 50), (5, 1), (100, 100)),  # thick slices: as tall as wide in mm
        ((100, 100), (10, 50), (1, 1), (20, 100)),
        ((40, 100), (50, 50), (1, 1), (40, 40)),
        ((1, 1), (500, 2), (1, 1), (1, 1)),
    ],
)
def test_a_picture_keeps_the_slices_aspect(room: Any, shape: Any, spacing: Any, size: Any) -> None:
    assert size_in(room, shape, spacing) == size


def test_a_picture_takes_the_nearest_voxels() -> None:
    plane = np.array([[1, 2], [3, 4]])
    assert sampled(plane, (4, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert sampled(plane, (1, 1)).tolist() == [[4]]


def test_an_outline_is_one_pixel_wide_and_open_at_the_border() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:4, :4] = True
    assert outline(mask).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_grey_values_lie_in_the_windows_limits_and_masks_on_top() -> None:
    plane = np.array([[-50.0, 0.0, 50.0, np.nan]])
    mask = np.array([[0, 0, 1, 0]], np.uint8)
    picture = picture_of(plane, [(mask, GREEN)], (0, 100), (1, 4))
    assert picture[0].tolist() == [[0, 0, 0], [0, 0, 0], list(GREEN), [0, 0, 0]]
    assert picture_of(plane, [], (0, 100), (1, 4))[0, 2].tolist() == [127, 127, 127]
    assert picture_of(plane, [], (5, 5), (1, 4)).shape == (1, 4, 3)  # limits that are one


# -- in the window -------------------------------------------------------------------------------------


def panel_of(window: Any) -> PlanesPanel:
    panel = window.controller.companions.panel
    assert isinstance(panel, PlanesPanel)
    return panel


def drawn(window: Any) -> list[np.ndarray]:
    """Both pictures, (rows, columns, 3), once nothing waits to be drawn."""
    soon, views = window.controller.companions._soon, panel_of(window).views
    window.wait(lambda: not soon.isActive() and not any(view._image.isNull() for view in views))
    found = []
    for view in views:
        image = view._image
        pixels = image.constBits()
        pixels.setsize(image.sizeInBytes())
        rows = np.frombuffer(bytes(pixels), np.uint8).reshape(image.height(), image.bytesPerLine())
        found.append(rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3))
    return found


def titles(window: Any) -> list[str]:
    return [title.text() for title in panel_of(window)._titles]


def test_the_first_scan_brings_the_other_planes(window: Any, study: Path) -> None:
    window.viewer.window.show()
    assert window.controller.companions.panel is None
    window.open(study)
    assert all(picture.any() for picture in drawn(window))
    assert titles(window) == ["Coronal", "Sagittal"]
    window.controller.viewing.show_plane("Coronal")
    drawn(window)
    assert titles(window) == ["Axial", "Sagittal"]


def test_a_click_goes_there_and_the_large_view_follows(window: Any, study: Path, qtbot: Any) -> None:
    window.viewer.window.show()
    window.open(study)
    drawn(window)
    coronal = panel_of(window).views[0]
    frame = coronal.frame
    slices, _, columns = window.controller.layers.labels[LABEL].data.shape
    place = QPoint(frame.left() + frame.width() // 4, frame.top() + frame.height() // 10)
    qtbot.mouseClick(coronal, Qt.MouseButton.LeftButton, pos=place)
    point = window.controller.companions.point
    assert abs(point[0] - slices / 10) <= 1
    assert abs(point[2] - columns / 4) <= 1
    assert window.viewer.dims.current_step[0] == point[0]
    window.viewer.dims.set_current_step(0, 3)  # scrolling takes the cross-hair along
    assert window.controller.companions.point[0] == 3


def test_masks_and_strokes_are_drawn_where_they_are(window: Any, study: Path) -> None:
    window.viewer.window.show()
    window.open(study)
    controller = window.controller
    point = controller.companions.point
    before = drawn(window)
    label = controller.layers.labels[LABEL]
    at = tuple(slice(max(0, p - 4), p + 5) for p in point)
    label.data[at] = 1
    label.refresh()
    after = drawn(window)
    assert all((old != new).any() for old, new in zip(before, after, strict=True))
    controller.viewing.toggle_masks()
    assert all(np.array_equal(old, new) for old, new in zip(before, drawn(window), strict=True))
    controller.viewing.toggle_masks()
    shown = to_display(controller.layers.masks[LABEL])[:, point[1]]
    rows, columns = np.nonzero(shown)
    coronal = (after[0] != before[0]).any(-1)
    changed_rows, changed_columns = np.nonzero(coronal)
    scale = [side / length for side, length in zip(coronal.shape, shown.shape, strict=True)]
    assert abs(changed_rows.min() / scale[0] - rows.min()) <= 1
    assert abs(changed_rows.max() / scale[0] - rows.max() - 1) <= 1
    assert abs(changed_columns.min() / scale[1] - columns.min()) <= 1


def test_a_press_in_the_large_view_moves_the_point(window: Any, study: Path) -> None:
    window.open(study)
    companions, viewer = window.controller.companions, window.viewer
    spacing = window.controller.layers.opened.spacing_mm[::-1]

    class Press:
        position = tuple(index * mm for index, mm in zip((5, 11, 7), spacing, strict=True))

    for _ in companions._pressed(viewer, Press()):
        pass
    assert companions.point[1:] == [11, 7]
    assert companions.point[0] == viewer.dims.current_step[0]


def test_closing_the_panel_is_respected_and_the_menu_brings_it_back(
    window: Any, study: Path, make_napari_viewer: Callable[..., Any]
) -> None:
    window.viewer.window.show()
    window.open(study)
    first = panel_of(window)
    window.viewer.window.remove_dock_widget(napari_bridge.dock_of(first))
    other = next(case.case_id for case in LabelStore(study).cases() if case.case_id != window.controller.open_case_id)
    window.open(study, other)
    assert not first.isVisible()
    assert not window.viewer.window._qt_window.findChildren(PlanesPanel)
    window.viewer.window.add_plugin_dock_widget("napari-amvlm", "Other planes")
    assert all(picture.any() for picture in drawn(window))
    assert panel_of(window) is not first
