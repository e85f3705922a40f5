"""Looking, correcting and reviewing in a real napari window."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QInputDialog, QLabel

from amvlm.imaging import Volume, canonical_mask, read_volume, to_canonical, to_display, write_volume
from amvlm.store import LabelStore
from napari_amvlm.layers import FIRST_OTHER, LABEL, PREDICTION, PREDICTION_ONLY, TEXT_MASK, TEXT_ONLY
from napari_amvlm.viewing import EDGES

STRUCTURE, OTHER = "anterior hippocampus", "posterior hippocampus"


def letters(window: Any) -> str:
    """Left, right, top, bottom."""
    return " ".join(window.viewer.canvas.overlays[name].text for name in EDGES)


def open_scan(window: Any, path: Path) -> Any:
    before = window.controller.layers
    window.controller.studies.open_scan(path)
    window.wait(lambda: window.controller.layers is not before and not window.controller.worker.busy)
    return window.controller.layers


def ct(path: Path, sides: bool = True) -> Path:
    array = np.full((12, 14, 16), -1000, np.int16)
    array[3:9, 3:11, 2:14] = 60
    array[5:7, 5:7, :] = 900
    write_volume(path, Volume(array, np.diag([1.0, 1, 2, 1]), sides))
    return path


# -- looking ------------------------------------------------------------------------------------------------------


def test_letters_and_planes(window: Any, study: Path) -> None:
    window.open(study)
    assert letters(window) == "R L A P"
    window.controller.viewing.show_plane("Coronal")
    assert letters(window) == "R L S I"
    window.controller.viewing.show_plane("Sagittal")
    assert letters(window) == "A P S I"
    window.controller.viewing.next_plane()
    assert letters(window) == "R L A P"
    window.viewer.dims.ndisplay = 3
    assert letters(window).strip() == ""


def test_unknown_sides_are_said(window: Any, tmp_path: Path) -> None:
    open_scan(window, ct(tmp_path / "x.nii.gz", sides=False))
    assert letters(window) == "R? L? A P"
    assert "patient's left" in window.notice


def test_the_whole_sequence_of_planes_shows_the_same_voxel(window: Any, tmp_path: Path) -> None:
    """A mark at the patient's left, front, head shows under L, A and S in every plane."""
    array = np.zeros((20, 24, 28), np.int16)
    array[1, 21, 25] = 1000  # RAS indices: left (low x), front, head
    write_volume(tmp_path / "x.nii.gz", Volume(array, np.diag([1.0, 1, 1, 1])))
    layers = open_scan(window, tmp_path / "x.nii.gz")
    image = layers.images[0].data
    place = np.argwhere(image == 1000)[0]
    shape = np.array(image.shape)
    assert (place < shape / 2).tolist() == [True, True, False]  # near S, near A, and near L (the end of R→L)


def test_windows_are_for_ct_and_follow_a_drag(window: Any, study: Path, tmp_path: Path) -> None:
    layers = open_scan(window, ct(tmp_path / "x.nii.gz"))
    assert [window.prompt.windows.itemText(n) for n in range(window.prompt.windows.count())] == [
        "Full range", "Lung", "Bone", "Soft tissue", "Brain",
    ]  # fmt: skip
    assert layers.images[0].contrast_limits == [-160, 240]
    window.controller.viewing.show_window("Bone")
    assert [image.contrast_limits for image in layers.images] == [[-500, 1300]] * 3
    event = SimpleNamespace(button=3, type="mouse_press", pos=(100, 100), handled=False)
    drag = window.controller.viewing._drag_window(window.viewer, event)
    next(drag)
    assert event.handled
    event.type, event.pos = "mouse_move", (400, 100)
    next(drag)
    low, high = layers.images[2].contrast_limits
    assert high - low == pytest.approx(1800 * np.e)
    assert (high + low) / 2 == pytest.approx(400)
    window.open(study)
    assert window.prompt.windows.count() == 1


def test_the_wheel_scrolls_and_control_zooms(window: Any, study: Path) -> None:
    window.open(study)
    before, zoom = window.viewer.dims.current_step, window.viewer.scene.camera.zoom
    event = SimpleNamespace(modifiers=[], delta=(0, -1), native=None, handled=False)
    window.controller.viewing._wheel(window.viewer, event)
    assert window.viewer.dims.current_step[0] == before[0] + 1
    assert event.handled
    event.modifiers = ["Control"]
    window.controller.viewing._wheel(window.viewer, event)
    assert window.viewer.dims.current_step[0] == before[0] + 1
    assert window.viewer.scene.camera.zoom < zoom


def test_three_dimensions_and_back(window: Any, study: Path) -> None:
    window.open(study)
    window.run()
    layers = window.controller.layers
    names = [layer.name for layer in window.viewer.layers]
    window.viewer.dims.ndisplay = 3
    assert not any(layer.visible for layer in layers.all)
    shown = [layer for layer in window.viewer.layers if layer.visible]
    assert [layer.name for layer in shown] == ["3-D image", "3-D your label"]
    window.viewer.dims.ndisplay = 2
    assert [layer.name for layer in window.viewer.layers] == names
    assert all(layer.visible for layer in layers.all)
    assert window.viewer.layers.selection.active is layers.labels[LABEL]


def test_the_twins_keep_what_is_thin() -> None:
    from napari_amvlm.twins import any_of_block

    mask = np.zeros((9, 8, 7), np.uint8)
    mask[8, 3, 6] = 1
    assert any_of_block(mask, 4).shape == (3, 2, 2)
    assert any_of_block(mask, 4)[2, 0, 1] == 1
    assert any_of_block(mask, 4).sum() == 1


def test_hiding_the_masks(window: Any, study: Path) -> None:
    window.open(study)
    window.controller.viewing.toggle_masks()
    assert not any(layer.opacity for layer in window.controller.layers.labels.values())
    window.controller.viewing.toggle_masks()
    assert all(layer.opacity for layer in window.controller.layers.labels.values())


# -- several structures -------------------------------------------------------------------------------------------


def test_each_line_of_a_prompt_is_a_structure(window: Any, study: Path) -> None:
    window.open(study)
    case_id = window.controller.open_case_id
    window.run(f"{OTHER}\na new thing\n{STRUCTURE}")
    store, layers = LabelStore(study), window.controller.layers
    assert window.controller.structure == STRUCTURE
    assert "a new thing" in [structure.name for structure in store.structures()]  # made on the spot
    assert store.state(case_id, OTHER) == "draft"
    assert OTHER in layers.others
    number = FIRST_OTHER + list(layers.others).index(OTHER)
    assert (layers.outlined == number).any()
    kept = layers.others[OTHER].copy()
    window.controller.structures.choose(OTHER)  # what was an outline is now the label, the label an outline
    window.idle()
    assert np.array_equal(layers.masks[LABEL], kept)
    assert STRUCTURE in layers.others
    window.controller.structures.choose("a new thing")
    window.idle()
    layers.others.clear()
    window.run(f"{OTHER}\n{STRUCTURE}")  # the last line changes the structure; the first runs all the same
    assert window.controller.structure == STRUCTURE
    assert np.array_equal(layers.others[OTHER], kept)


def test_the_outlines_show_where_the_masks_disagree(window: Any, study: Path) -> None:
    window.open(study)
    window.run()
    layers = window.controller.layers
    text, prediction = layers.masks[TEXT_MASK] > 0, layers.masks[PREDICTION] > 0
    assert np.array_equal(layers.outlined == TEXT_ONLY, text & ~prediction)
    assert np.array_equal(layers.outlined == PREDICTION_ONLY, prediction & ~text)
    assert layers.outlines[0].colormap.map(TEXT_ONLY)[3] == 0  # only in the cell of your label
    assert layers.outlines[2].colormap.map(TEXT_ONLY)[3] == 1


def test_doubts_about_a_mask_are_said(window: Any, study: Path, tmp_path: Path) -> None:
    window.open(study)
    window.run("zzz qqq")
    assert "not known here" in window.notice
    open_scan(window, ct(tmp_path / "x.nii.gz"))  # no hippocampus in it
    window.run()
    assert window.notice
    assert "Absent" not in window.notice or not window.controller.layers.masks[PREDICTION].any()


def test_words_that_name_no_structure_leave_the_label_alone(window: Any, study: Path) -> None:
    window.open(study)
    window.run()
    layers, label = window.controller.layers, window.controller.layers.masks[LABEL].copy()
    window.run("spleen")
    assert np.array_equal(layers.masks[LABEL], label)
    assert "names no structure" in window.prompt._offer_text.text()
    assert not (layers.outlined == TEXT_ONLY).any()  # no prediction of it, so nothing to disagree with
    window.prompt._take.click()
    window.idle()
    assert window.controller.structure == "spleen"
    assert not layers.masks[LABEL].any()  # the model does not know it: no guess becomes a label
    assert STRUCTURE in layers.others


def test_completion_and_history(window: Any, study: Path, qtbot: Any) -> None:
    window.open(study)
    edit = window.prompt.prompt
    edit.clear()
    qtbot.keyClicks(edit, "post")
    assert edit._completer.popup().isVisible()
    qtbot.keyClick(edit._completer.popup(), Qt.Key.Key_Down)
    qtbot.keyClick(edit._completer.popup(), Qt.Key.Key_Return)
    assert edit.toPlainText() == OTHER
    assert not window.controller.worker.busy  # Enter took the completion, it did not run


# -- correcting ---------------------------------------------------------------------------------------------------


def stroke(window: Any, start: tuple[float, ...], end: tuple[float, ...]) -> None:
    """Drag the tool at hand over the label, in data coordinates of the display."""
    label = window.controller.layers.labels[LABEL]
    event = SimpleNamespace(button=1, type="mouse_press", position=label.data_to_world(start))
    generator = window.controller.correcting._stroke(label, event)
    next(generator)
    event.type, event.position = "mouse_move", label.data_to_world(end)
    next(generator)
    event.type = "mouse_release"
    with pytest.raises(StopIteration):
        next(generator)


def test_the_copy_brush_takes_a_mask_and_nothing_else(window: Any, study: Path) -> None:
    window.open(study)
    window.run()
    controller, layers = window.controller, window.controller.layers
    controller.label.start_from("empty")
    label = layers.labels[LABEL]
    label.brush_size = 6
    source = to_display(layers.masks[PREDICTION])
    z = int(source.sum((1, 2)).argmax())
    y, x = np.argwhere(source[z]).mean(0).round().astype(int)
    window.prompt._brushes.buttons()[1].click()
    assert controller.correcting._source == PREDICTION
    assert window.prompt._brushes.buttons()[1].isChecked()
    stroke(window, (z, y, x - 4), (z, y, x + 4))
    assert label.data[z].any()
    assert not (label.data > source).any()  # nothing that the prediction does not hold
    assert not np.delete(label.data, z, 0).any()
    after = label.data.copy()
    rows = np.abs(np.argwhere(after[z]) - (y, x))[:, 0]
    assert rows.max() <= 3
    label.undo()
    assert not label.data.any()  # one stroke, one step
    label.redo()
    assert np.array_equal(label.data, after)
    label.mode = "erase"  # another tool ends it
    assert controller.correcting._source == ""
    assert not window.prompt._brushes.buttons()[1].isChecked()


def test_corrections_are_undone_one_by_one_ten_deep(window: Any, study: Path) -> None:
    window.open(study)
    window.run()
    controller, layers = window.controller, window.controller.layers
    label = layers.labels[LABEL]
    states = [label.data.copy()]
    for number in range(10):
        if number in (3, 7):
            controller.correcting.apply(["largest part", "smooth"][number == 7])
            window.idle()
        else:
            label.brush_size = 3
            label.paint((2 * number, 4, 4), 1)
        states.append(label.data.copy())
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(states))
    for state in reversed(states[:-1]):
        label.undo()
        assert np.array_equal(label.data, state)


def test_undo_does_not_reach_into_another_scan(window: Any, study: Path) -> None:
    window.open(study)
    first = window.controller.open_case_id
    label = window.controller.layers.labels[LABEL]
    label.paint((3, 3, 3), 1)
    other = next(c.case_id for c in LabelStore(study).cases() if c.case_id != first)
    window.controller.open_case(other)
    window.idle()
    before = window.controller.layers.masks[LABEL].copy()
    window.controller.layers.labels[LABEL].undo()
    assert np.array_equal(window.controller.layers.masks[LABEL], before)
    window.controller.layers.labels[LABEL].paint((3, 3, 3), 1)
    assert window.controller.label._touched
    assert not np.array_equal(window.controller.layers.masks[LABEL], before)


def test_fill_and_interpolate_in_the_plane_that_is_shown(window: Any, study: Path) -> None:
    window.open(study)
    controller, layers = window.controller, window.controller.layers
    label = layers.labels[LABEL]
    controller.viewing.show_plane("Coronal")
    painted = np.zeros_like(layers.masks[LABEL])
    painted[5:12, 4, 5:12] = painted[5:12, 8, 5:12] = 1
    painted[8, 4, 8] = 0
    controller.label.edited(painted)
    controller.correcting.apply("fill holes")
    window.idle()
    assert layers.masks[LABEL][8, 4, 8] == 1
    controller.correcting.apply("interpolate")
    window.idle()
    assert layers.masks[LABEL][5:12, 4:9, 5:12].all()
    assert layers.masks[LABEL].sum() == 7 * 5 * 7
    assert "voxels changed" in window.notice
    label.undo()
    assert not layers.masks[LABEL][:, 6].any()


def test_undo_by_keyboard_is_kept_in_the_draft(window: Any, study: Path, qtbot: Any) -> None:
    window.open(study)
    case_id, label = window.controller.open_case_id, window.controller.layers.labels[LABEL]
    label.paint((3, 3, 3), 1)
    window.controller.label.autosave()
    window.idle()
    canvas = window.viewer.window._qt_viewer.canvas.native
    qtbot.keyClick(canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert not label.data.any()
    window.controller.label.autosave()
    window.idle()
    assert not any(plane.any() for plane in LabelStore(study).load_draft(case_id, STRUCTURE).values())


def test_strokes_survive_a_skip(window: Any, study: Path) -> None:
    window.open(study)
    case_id = window.controller.open_case_id
    window.controller.layers.labels[LABEL].paint((3, 3, 3), 1)
    painted = window.controller.layers.masks[LABEL].copy()
    window.controller.judging.skip()
    window.idle()
    assert LabelStore(study).state(case_id, STRUCTURE) == "skipped"
    window.controller.open_case(case_id)
    window.idle()
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)


def test_restored_work_can_be_declined(window: Any, study: Path) -> None:
    window.open(study)
    case_id = window.controller.open_case_id
    window.controller.layers.labels[LABEL].paint((3, 3, 3), 1)
    window.controller.label.autosave()
    window.idle()
    window.controller.open_case(LabelStore(study).cases("test")[0].case_id)
    window.idle()
    window.controller.open_case(case_id)
    window.idle()
    assert window.prompt._offer.isVisibleTo(window.prompt)
    window.prompt._take.click()
    window.idle()
    assert not window.controller.layers.masks[LABEL].any()
    assert LabelStore(study).state(case_id, STRUCTURE) == "unknown"


# -- opening ------------------------------------------------------------------------------------------------------


def test_a_question_is_asked_and_answered(window: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "two.nii.gz"
    array = np.stack([np.zeros((6, 7, 8)), np.ones((6, 7, 8))], -1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    asked: list[Any] = []

    def answer(*arguments: Any) -> tuple[str, bool]:
        asked.append(arguments)
        return arguments[3][1], True

    monkeypatch.setattr(QInputDialog, "getItem", staticmethod(answer))
    layers = open_scan(window, path)
    assert asked[0][3] == ("volume 1 of 2", "volume 2 of 2")
    assert (layers.opened.ras == 1).all()


def test_dicom_folders_open_and_say_what_they_are(window: Any, shared_data: Path) -> None:
    layers = open_scan(window, shared_data / "volumes" / "mr_dicom_oblique")
    assert "oblique by 11°" in window.notice
    assert layers.opened.volume.modality == "MR"
    layers = open_scan(window, shared_data / "volumes" / "ct_dicom_jpeg2000")
    assert layers.images[0].contrast_limits == [-160, 240]


@pytest.mark.parametrize("text", ["🫁 lung", "الكبد", "a" * 100_000, "\u202eliver"])
def test_odd_prompts_do_no_harm(window: Any, study: Path, text: str) -> None:
    window.open(study)
    before = LabelStore(study).snapshot()
    window.run(text)
    assert window.notice
    window.run()
    assert window.controller.layers.masks[TEXT_MASK].any()
    assert LabelStore(study).snapshot() == before


def test_written_layers_lie_on_their_scan(window: Any, study: Path, tmp_path: Path) -> None:
    from napari_amvlm.writer import write_layer

    window.open(study)
    window.run()
    layer = window.controller.layers.labels[TEXT_MASK]
    write_layer(str(tmp_path / "mask.nrrd"), layer.data, {"metadata": layer.metadata})
    written, scan = read_volume(tmp_path / "mask.nrrd"), window.controller.layers.opened.volume
    assert written.same_grid(scan)
    assert np.array_equal(canonical_mask(written.array, scan), window.controller.layers.masks[TEXT_MASK])
    assert to_canonical(written).shape == window.controller.layers.opened.ras.shape


# -- reviewing ----------------------------------------------------------------------------------------------------


def test_the_queue_grades_sorts_and_filters(window: Any, study: Path) -> None:
    window.open(study)
    panel, reviewing = window.review, window.controller.reviewing
    window.idle()
    assert all(row.expected is None for row in reviewing.rows())
    panel.assess.click()
    window.idle()
    panel.order_chosen.emit("worst")
    rows = reviewing.rows()
    expected = [row.expected for row in rows if row.expected is not None]
    assert len(expected) == len(rows) > 5
    assert expected == sorted(expected)
    assert panel.queue.cases.rowCount() == len(rows)
    panel.order_chosen.emit("best")
    assert [row.expected for row in reviewing.rows()] == sorted(expected, reverse=True)
    panel.filter_chosen.emit("Accepted")
    assert {row.state for row in reviewing.rows()} == {"✓ accepted"}
    test_cases = {case.case_id for case in LabelStore(study).cases("test")}
    panel.filter_chosen.emit("All")
    assert test_cases.isdisjoint(row.case_id for row in reviewing.rows())


def test_next_goes_on_in_the_order_that_is_chosen(window: Any, study: Path) -> None:
    window.open(study)
    controller, store = window.controller, LabelStore(study)
    waiting = [row.case_id for row in controller.reviewing.rows()]
    assert waiting != sorted(waiting)  # in random order, the same one whenever the study is opened
    assert controller.open_case_id == waiting[0]
    window.review.assess.click()
    window.idle()
    window.review.order_chosen.emit("worst")
    worst = [row.case_id for row in controller.reviewing.rows()]
    controller.open_case(worst[0])
    window.idle()
    controller.judging.mark_absent()
    window.wait(lambda: controller.open_case_id == worst[1])
    window.idle()
    assert store.state(worst[0], STRUCTURE) == "absent"


def test_the_queue_is_judged_by_keyboard(window: Any, study: Path, qtbot: Any) -> None:
    window.open(study)
    window.idle()
    panel, controller, store = window.review, window.controller, LabelStore(study)
    panel.queue.select(1)
    other = panel.queue.case_at(1)
    assert other != controller.open_case_id
    qtbot.keyClick(panel.queue, Qt.Key.Key_N)  # not open yet: it is opened, not judged
    window.wait(lambda: controller.open_case_id == other and not controller.worker.busy)
    assert store.state(other, STRUCTURE) == "unknown"
    qtbot.keyClick(panel.queue, Qt.Key.Key_R)
    assert store.state(other, STRUCTURE) == "rejected"
    window.idle()
    before = controller.open_case_id
    controller.reviewing.step(1)
    window.idle()
    assert controller.open_case_id != before


def test_two_revisions_side_by_side_and_a_way_back(window: Any, study: Path) -> None:
    window.open(study)
    store, case_id = LabelStore(study), window.controller.open_case_id
    case = store.case(case_id)
    first, second = np.zeros((2, *case.shape), np.uint8)
    first[4:10, 4:10, 4:10] = 1
    second[5:10, 4:10, 4:10] = 1
    one = store.accept(case_id, STRUCTURE, first, author="ann")
    two = store.accept(case_id, STRUCTURE, second, author="ben")
    window.controller.open_case(case_id)
    window.idle()
    panel, layers = window.review, window.controller.layers
    assert [panel.history.item(row, 1).text() for row in range(2)] == ["ben", "ann"]
    panel.history.selectAll()
    assert panel._compare.isEnabled()
    panel._compare.click()
    window.idle()
    assert layers.masks[PREDICTION].sum() + layers.masks[TEXT_MASK].sum() == first.sum() + second.sum()
    assert (layers.outlined == TEXT_ONLY).sum() + (layers.outlined == PREDICTION_ONLY).sum() == 36
    assert "Dice 0.91" in panel._said.text()
    assert "ben" in layers.labels[TEXT_MASK].name
    panel._close.click()
    window.idle()
    assert layers.labels[TEXT_MASK].name == TEXT_MASK
    assert not layers.masks[TEXT_MASK].any()
    panel.history.selectRow(1)
    panel._restore.click()
    window.idle()
    current = store.current(case_id, STRUCTURE)
    assert current.mask_sha256 == one.mask_sha256
    assert current.parent == two.revision_id
    assert np.array_equal(window.controller.layers.masks[LABEL], canonical_mask(first, store.read_image(case)))


def test_a_prompt_passes_while_cases_are_assessed(window: Any, study: Path) -> None:
    window.open(study)
    window.run()
    done: list[float] = []
    window.review.assess.click()
    job = window.controller.reviewing._job
    window.prompt.prompt.setPlainText(STRUCTURE)
    window.prompt.prompt.submit()
    layers = window.controller.layers
    window.wait(lambda: not window.controller.worker.has_job_of(layers.opened, "prompt"))
    done.append(time.monotonic())
    assert window.controller.worker.has_job_of(window.controller.store, "assess")
    window.controller.reviewing.cancel()
    window.idle()
    assert job.cancelled.is_set()
    assert LabelStore(study).quality()  # what was graded is kept


def test_the_list_of_keys(window: Any) -> None:
    shown = window.controller.show_keys()
    texts = " ".join(label.text() for label in shown.findChildren(QLabel))
    for word in ("accept your label", "next plane", "Ctrl+Z"):
        assert word in texts
    shown.close()


def test_a_new_model_and_the_way_back(window: Any, study: Path) -> None:
    window.open(study)
    window.idle()
    controller = window.controller
    before = controller.workspace.model.name
    training = controller.training
    training.start_with({"steps": 3}, ["--batch-size", "2", "--channels", "8", "--channels", "16"])
    window.wait(lambda: training.current is None)
    window.idle()
    assert controller.workspace.model.name == before  # offered, not forced
    window.train.use.click()
    assert controller.workspace.model.name == training.new_model != before
    assert before in window.train.back.text()
    window.train.back.click()
    assert controller.workspace.model.name == before
    assert not window.train.back.isVisibleTo(window.train)


def test_validation_labels_that_nobody_corrected_are_counted(study: Path) -> None:
    from napari_amvlm.training_account import unchanged_validation_labels

    store = LabelStore(study)
    before = unchanged_validation_labels(store)
    case = store.cases("val")[0]
    mask = np.ones(case.shape, np.uint8)
    store.accept(case.case_id, STRUCTURE, mask, source="merged", model_fingerprint="abc", edited_voxels=0)
    assert unchanged_validation_labels(store) == before + 1
    store.accept(case.case_id, STRUCTURE, mask, source="merged", model_fingerprint="abc", edited_voxels=7)
    assert unchanged_validation_labels(store) == before
