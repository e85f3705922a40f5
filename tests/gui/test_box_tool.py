"""One box, one organ: dragged with the mouse on the canvas, as a person does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QAbstractButton, QMessageBox

from amvlm import weights
from amvlm.models import lite_medsam
from amvlm.store import LabelStore
from napari_amvlm import napari_bridge
from napari_amvlm.layers import LABEL

STRUCTURE = "anterior hippocampus"


class Shrinking:
    """In the place of LiteMedSAM: three pixels less than the box on each side, so that a structure comes to its end."""

    def embed(self, image: torch.Tensor) -> tuple[int, int]:
        return tuple(image.shape[-2:])

    def logits(self, shape: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[torch.Tensor, float]:
        top, left, bottom, right = box
        found = torch.full(shape, -1.0)
        found[top + 3 : bottom - 2, left + 3 : right - 2] = 1
        return found, 1.0


class Nothing(Shrinking):
    def logits(self, shape: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[torch.Tensor, float]:
        return torch.full(shape, -1.0), 0.0


class Ring(Shrinking):
    def logits(self, shape: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[torch.Tensor, float]:
        found, quality = super().logits(shape, box)
        top, left, bottom, right = box
        found[top + 6 : bottom - 5, left + 6 : right - 5] = -1
        return found, quality


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LiteMedSAM is there, and says what the given network says."""

    def use(network: type) -> None:
        monkeypatch.setattr(weights, "find", lambda _: Path())
        monkeypatch.setattr(lite_medsam, "load_lite_medsam", network)

    return use


def drag(window: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    """The left button from one pixel of the slice on screen to another: (row, column) in display order."""
    viewer, canvas = window.viewer, napari_bridge.canvas(window.viewer)
    label = window.controller.layers.labels[LABEL]

    def on_canvas(place: tuple[int, int]) -> QPoint:
        camera, shown = viewer.scene.camera, list(viewer.dims.displayed)
        voxel = np.zeros(3)
        voxel[shown] = place
        down, across = (np.array(label.data_to_world(voxel))[shown] - np.array(camera.center)[-2:]) * camera.zoom
        middle = canvas.width() * (5 / 6 if viewer.canvas.grid.enabled else 1 / 2)
        return QPoint(round(middle + across), round(canvas.height() / 2 + down))

    first, last = on_canvas(start), on_canvas(end)
    middle = QPoint((first.x() + last.x()) // 2, (first.y() + last.y()) // 2)
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    window.qtbot.mousePress(canvas, left, none, first)
    for place in (middle, last):
        window.qtbot.mouseMove(canvas, place)
        window.qtbot.wait(20)
    window.qtbot.mouseRelease(canvas, left, none, last)
    window.idle()


def take_box(window: Any) -> None:
    button = next(b for b in window.prompt.findChildren(QAbstractButton) if b.text() == "Box")
    window.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def opened(window: Any, study: Path) -> np.ndarray:
    """A case that nobody judged, shown; your label in display order, empty."""
    window.viewer.window.show()
    store = LabelStore(study)
    cases = [case.case_id for case in store.cases("train")]
    window.open(study, next(case_id for case_id in cases if store.state(case_id, STRUCTURE) == "unknown"))
    label: np.ndarray = window.controller.layers.labels[LABEL].data
    assert not label.any()
    return label


def test_a_box_outlines_its_slice_and_is_carried_through_the_scan(window: Any, study: Path, reads: Any) -> None:
    reads(Shrinking)
    label = opened(window, study)
    take_box(window)
    drag(window, (8, 6), (30, 24))
    at = window.viewer.dims.current_step[0]
    assert np.flatnonzero(label.any((1, 2))).tolist() == [at]
    rows, columns = np.nonzero(label[at])
    assert abs(rows.min() - 11) <= 1
    assert abs(rows.max() - 27) <= 1
    assert abs(columns.min() - 9) <= 1
    assert abs(columns.max() - 21) <= 1
    assert "voxels changed" in window.notice
    first = label[at].copy()
    window.qtbot.mouseClick(window.prompt._take, Qt.MouseButton.LeftButton)  # carry it
    window.idle()
    assert not window.prompt._offer.isVisibleTo(window.prompt)
    slices = np.flatnonzero(label.any((1, 2)))
    assert len(slices) > 3
    assert slices.tolist() == list(range(slices[0], slices[-1] + 1))
    assert np.array_equal(label[at], first)
    assert label[at - 1].sum() < first.sum()
    window.controller.layers.labels[LABEL].undo()
    assert np.flatnonzero(label.any((1, 2))).tolist() == [at]
    window.controller.layers.labels[LABEL].undo()
    assert not label.any()


def test_what_a_box_gave_is_accepted_with_its_origin(window: Any, study: Path, reads: Any) -> None:
    reads(Shrinking)
    label = opened(window, study)
    case_id = window.controller.open_case_id
    take_box(window)
    drag(window, (8, 6), (30, 24))
    at = window.viewer.dims.current_step[0]
    label[at, 0, 0] = 1  # and a stroke
    window.controller.label.painted()
    window.controller.judging.accept()
    window.idle()
    (revision,) = [r for r in LabelStore(study).history(case_id, STRUCTURE) if r.kind == "accepted"]
    assert revision.source == "imported"
    assert revision.prompt == "boxes, read by LiteMedSAM"
    assert revision.edited_voxels == 1


def test_a_second_box_decides_anew_what_it_holds(window: Any, study: Path, reads: Any) -> None:
    reads(Shrinking)
    label = opened(window, study)
    take_box(window)
    drag(window, (6, 6), (36, 28))
    at = window.viewer.dims.current_step[0]
    before = label[at].copy()
    drag(window, (6, 6), (20, 28))
    assert not label[at, 18:20].any()  # inside the second box, outside what it says
    assert np.array_equal(label[at, 23:], before[23:])


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_box_lies_in_the_plane_and_the_view_where_it_was_drawn(
    window: Any, study: Path, reads: Any, side_by_side: bool
) -> None:
    reads(Shrinking)
    label = opened(window, study)
    window.controller.show_side_by_side(side_by_side)
    window.controller.viewing.show_plane("Coronal")
    window.qtbot.wait(100)
    take_box(window)
    drag(window, (6, 8), (24, 26))
    at = window.viewer.dims.current_step[1]
    assert np.flatnonzero(label.any((0, 2))).tolist() == [at]
    rows, columns = np.nonzero(label[:, at])
    assert abs(rows.min() - 9) <= 1
    assert abs(columns.max() - 23) <= 1


def test_the_keys_take_the_tool_and_carry_on(window: Any, study: Path, reads: Any) -> None:
    reads(Shrinking)
    label = opened(window, study)
    canvas = napari_bridge.canvas(window.viewer)
    window.qtbot.keyClick(canvas, Qt.Key.Key_8)
    drag(window, (8, 6), (30, 24))
    window.qtbot.keyClick(canvas, Qt.Key.Key_9)
    window.idle()
    assert label.any((1, 2)).sum() > 3
    window.qtbot.keyClick(canvas, Qt.Key.Key_8)
    assert not window.controller.boxing._armed


def test_a_slip_is_no_box_and_painting_ends_the_tool(window: Any, study: Path, reads: Any) -> None:
    reads(Shrinking)
    label = opened(window, study)
    take_box(window)
    drag(window, (8, 6), (9, 7))
    assert "no box" in window.notice
    window.controller.correcting.use_copy_brush("Prediction")
    assert not window.controller.boxing._armed
    window.controller.correcting.stop()
    window.controller.boxing.carry()
    assert "box first" in window.notice
    assert not label.any()


def test_a_ring_is_said(window: Any, study: Path, reads: Any) -> None:
    reads(Ring)
    opened(window, study)
    take_box(window)
    drag(window, (4, 4), (38, 30))
    assert "ring" in window.notice


def test_a_box_that_holds_nothing_takes_nothing_away(window: Any, study: Path, reads: Any) -> None:
    reads(Nothing)
    label = opened(window, study)
    at = window.viewer.dims.current_step[0]
    label[at, 10:20, 10:20] = 1
    take_box(window)
    drag(window, (6, 6), (30, 28))
    assert "Nothing was found" in window.notice
    assert label[at, 10:20, 10:20].all()


def test_weights_are_asked_for_before_anything_is_downloaded(
    window: Any, study: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    def missing(_: str) -> Path:
        raise weights.MissingWeightsError(weights.known("litemedsam"))

    monkeypatch.setattr(weights, "find", missing)
    label = opened(window, study)
    take_box(window)
    said = answer("", button=QMessageBox.StandardButton.No)
    drag(window, (8, 6), (30, 24))
    assert "39 MB" in said[0]
    assert "amvlm weights fetch litemedsam" in window.notice
    assert not label.any()


def test_another_scan_puts_the_tool_away(window: Any, study: Path, reads: Any) -> None:
    reads(Shrinking)
    opened(window, study)
    take_box(window)
    window.controller.opening.next_case()
    window.idle()
    assert not window.controller.boxing._armed
    window.controller.boxing.carry()
    assert "box first" in window.notice
