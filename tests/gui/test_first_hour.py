"""The first hour as a person has it: docks from the menu, keys to the widget that has the focus, new studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QDockWidget, QInputDialog, QMessageBox

from amvlm import weights
from amvlm.imaging import to_display
from amvlm.models import bundle
from amvlm.store import LabelStore
from napari_amvlm import napari_bridge
from napari_amvlm.controller import Controller
from napari_amvlm.guests import is_ours
from napari_amvlm.layers import LABEL, PREDICTION, TEXT_MASK

STRUCTURE = "anterior hippocampus"
PANELS = ("Segment with text", "Review pseudo-labels", "Train")
WAIT_MS = 180_000


class Person:
    """A window whose panels were opened from the menu, and hands on keyboard and mouse."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        self.viewer, self.qtbot = viewer, qtbot
        self.main = napari_bridge.main_window(viewer)
        viewer.window.resize(1366, 768)
        viewer.window.show()
        self.open_panel(PANELS[0])
        self.controller = Controller.of(viewer)

    def open_panel(self, name: str) -> Any:
        _, panel = self.viewer.window.add_plugin_dock_widget("napari-amvlm", name)
        QApplication.processEvents()
        QApplication.processEvents()
        return panel

    @property
    def panel(self) -> Any:
        return self.controller.panel

    def idle(self) -> None:
        self.qtbot.waitUntil(lambda: not self.controller.worker.busy, timeout=WAIT_MS)

    def open(self, study: Path) -> None:
        self.controller.studies.open_study(study)
        self.qtbot.waitUntil(lambda: self.controller.layers is not None, timeout=WAIT_MS)
        self.idle()

    def press(self, key: Any) -> None:
        """A key to whatever has the focus."""
        widget = self.main.focusWidget()
        assert widget is not None
        self.qtbot.keyClick(widget, key)

    def type_prompt(self, text: str) -> None:
        self.panel.prompt.setFocus()
        self.panel.prompt.selectAll()
        self.qtbot.keyClicks(self.main.focusWidget(), text)
        self.press(Qt.Key.Key_Return)
        self.idle()

    def judged(self, case_id: str) -> None:
        """Wait for the next case."""
        self.qtbot.waitUntil(lambda: self.controller.open_case_id not in ("", case_id), timeout=WAIT_MS)
        self.idle()

    @property
    def label(self) -> np.ndarray:
        return self.controller.layers.masks[LABEL]

    def paint(self) -> None:
        layer = self.controller.layers.labels[LABEL]
        layer.brush_size = 3
        layer.paint(tuple(n // 2 for n in layer.data.shape), 1)


@pytest.fixture
def person(make_napari_viewer: Callable[..., Any], qtbot: Any) -> Iterator[Person]:
    opened = Person(make_napari_viewer(), qtbot)
    yield opened
    opened.controller.close()
    vars(opened).clear()  # napari looks for viewers that somebody holds


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans of one's own."""
    (tmp_path / "scans").mkdir()
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 999, (8, 9, 10)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "scans" / f"patient {number}.nii.gz")
    return tmp_path / "scans"


# -- keys and cases -----------------------------------------------------------------------------------------------


def test_a_right_case_takes_two_actions_and_the_next_one_comes_prompted(person: Person, study: Path) -> None:
    person.open(study)
    assert "Press Enter" in person.panel._next.text()
    assert not person.viewer.canvas.grid.enabled
    case_id = person.controller.open_case_id
    person.panel.prompt.setFocus()
    person.press(Qt.Key.Key_Return)
    person.idle()
    assert person.main.focusWidget() is napari_bridge.canvas(person.viewer)
    assert person.viewer.canvas.grid.enabled  # there is something to compare
    assert "A accepts" in person.panel._next.text()
    person.press(Qt.Key.Key_A)
    person.judged(case_id)
    assert person.panel.prompt.toPlainText() == STRUCTURE  # no "a" was typed
    assert LabelStore(study).state(case_id, STRUCTURE) == "accepted"
    assert person.controller.layers.masks[TEXT_MASK].any()
    assert person.label.any()
    assert "accepted in" in person.panel._notice.text()
    person.panel.prompt.setFocus()
    person.press(Qt.Key.Key_Escape)
    assert person.main.focusWidget() is napari_bridge.canvas(person.viewer)


def test_undo_goes_back_to_the_case_that_was_judged(person: Person, study: Path) -> None:
    person.open(study)
    store, case_id = LabelStore(study), person.controller.open_case_id
    person.type_prompt(STRUCTURE)
    person.paint()
    accepted = person.label.copy()
    person.press(Qt.Key.Key_A)
    person.judged(case_id)
    other = person.controller.open_case_id
    person.press(Qt.Key.Key_U)
    person.judged(other)
    assert person.controller.open_case_id == case_id
    assert store.state(case_id, STRUCTURE) == "draft"
    assert store.state(other, STRUCTURE) == "unknown"
    assert np.array_equal(person.label, accepted)
    assert "Undone" in person.panel._notice.text()
    person.press(Qt.Key.Key_K)
    person.judged(case_id)
    assert store.state(case_id, STRUCTURE) == "skipped"
    person.press(Qt.Key.Key_U)
    person.idle()
    assert person.controller.open_case_id == case_id
    assert store.state(case_id, STRUCTURE) in ("unknown", "draft")
    assert np.array_equal(person.label, accepted)
    person.press(Qt.Key.Key_U)
    assert "nothing to undo" in person.panel._notice.text()


def test_absent_over_strokes_asks(person: Person, study: Path, answer: Any) -> None:
    person.open(study)
    store, case_id = LabelStore(study), person.controller.open_case_id
    person.paint()
    asked = answer(button=QMessageBox.StandardButton.No)
    person.controller.focus_scan()
    person.press(Qt.Key.Key_N)
    assert "voxels" in asked[0]
    assert store.state(case_id, STRUCTURE) != "absent"
    assert person.label.any()
    answer(button=QMessageBox.StandardButton.Yes)
    person.press(Qt.Key.Key_N)
    assert store.state(case_id, STRUCTURE) == "absent"
    person.judged(case_id)


def test_what_is_not_on_screen_is_not_accepted(person: Person, study: Path) -> None:
    person.open(study)
    store, case_id = LabelStore(study), person.controller.open_case_id
    person.type_prompt(STRUCTURE)
    before = person.label.copy()
    person.viewer.layers.remove(LABEL)
    person.press(Qt.Key.Key_A)
    person.idle()
    assert store.current(case_id, STRUCTURE) is None
    assert "removed" in person.panel._notice.text()
    person.panel._take.click()
    assert np.array_equal(person.viewer.layers[LABEL].data, to_display(before))
    assert [layer.name for layer in person.viewer.layers][1::3] == [TEXT_MASK, PREDICTION, LABEL]
    person.controller.focus_scan()
    person.press(Qt.Key.Key_A)
    person.judged(case_id)
    assert store.state(case_id, STRUCTURE) == "accepted"


# -- docks --------------------------------------------------------------------------------------------------------


def test_panels_share_one_dock_however_they_are_opened(person: Person, study: Path) -> None:
    person.open(study)
    for name in PANELS[1:]:
        person.open_panel(name)
    docks = [napari_bridge.dock_of(panel) for panel in person.controller._panels()]
    assert len(docks) == 3
    assert all(len(person.main.tabifiedDockWidgets(dock)) == 2 for dock in docks)
    front = [dock for dock in docks if not dock.visibleRegion().isEmpty()]
    assert len(front) == 1
    assert front[0].height() > 300


def test_a_panel_that_is_opened_again_shows_what_is_open(person: Person, study: Path) -> None:
    person.open(study)
    person.type_prompt(STRUCTURE)
    person.panel.threshold.setValue(0.7)
    person.idle()
    person.paint()
    painted, case_id = person.label.copy(), person.controller.open_case_id
    dock: QDockWidget = napari_bridge.dock_of(person.panel)
    person.viewer.window.remove_dock_widget(dock)
    person.qtbot.wait(10)
    person.controller.notice("nobody hears this")
    panel = person.open_panel(PANELS[0])
    assert panel is person.panel
    person.idle()
    assert panel._judge_box.isVisibleTo(panel)
    assert panel.case.currentData() == case_id
    assert panel.structure.currentData() == STRUCTURE
    assert panel.threshold.value() == pytest.approx(0.7)
    assert panel._notice.text() == "nobody hears this"
    assert np.array_equal(person.label, painted)
    assert person.controller.label.touched


# -- a study of one's own -----------------------------------------------------------------------------------------


def test_from_a_folder_of_scans_to_the_first_label(
    person: Person, scans: Path, tmp_path: Path, qtbot: Any, answer: Any
) -> None:
    assert "Hippocampus sample" in person.panel._next.text()
    shown: list[str] = []
    person.controller.workspace.busy_changed.connect(lambda *busy: shown.append(busy[2]))
    person.controller.studies.look_and_import(scans, tmp_path / "mine")
    assert person.panel._row.isVisibleTo(person.panel)
    qtbot.waitUntil(lambda: person.controller.layers is not None, timeout=WAIT_MS)
    person.idle()
    assert "Importing: 2 of 3" in shown
    assert not person.panel._row.isVisibleTo(person.panel)
    assert person.panel.prompt.toPlainText() == ""
    assert "New…" in person.panel._next.text()
    case_id, store = person.controller.open_case_id, LabelStore(tmp_path / "mine")
    answer(typed="left kidney")
    person.paint()
    qtbot.waitUntil(lambda: person.controller.structure == "left kidney", timeout=WAIT_MS)
    person.idle()
    assert not person.panel._row.isVisibleTo(person.panel)
    painted = person.label.copy()
    person.controller.focus_scan()
    person.press(Qt.Key.Key_J)  # on without a judgement
    person.judged(case_id)
    assert store.state(case_id, "left kidney") == "draft"
    person.controller.open_case(case_id)
    person.idle()
    assert np.array_equal(person.label, painted)
    person.press(Qt.Key.Key_A)
    person.judged(case_id)
    assert store.state(case_id, "left kidney") == "accepted"
    assert "1 of 5 so far" in person.panel._next.text()


def test_opening_is_over_after_another_structure(person: Person, study: Path, answer: Any) -> None:
    person.open(study)
    answer(typed="fornix")
    person.controller.studies.ask_for_structure()
    person.idle()
    assert person.controller.structure == "fornix"
    assert not person.panel._row.isVisibleTo(person.panel)


def test_another_study_takes_no_prompt_along_and_reopens_where_it_was(
    person: Person, study: Path, scans: Path, tmp_path: Path
) -> None:
    from amvlm.exchange import import_study

    import_study(scans, tmp_path / "mine")
    person.open(study)
    person.type_prompt("hippocampal head")
    third = LabelStore(study).cases("train")[7].case_id
    person.controller.open_case(third)
    person.idle()
    person.open(tmp_path / "mine")
    assert person.panel.prompt.toPlainText() == ""
    recent = person.panel._recent.actions()
    assert recent[0].text().startswith("study  (")
    recent[0].trigger()
    person.qtbot.waitUntil(lambda: person.controller.open_case_id == third, timeout=WAIT_MS)
    person.idle()


def test_an_untrusted_mask_is_shown_and_never_copied(
    person: Person, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amvlm.inference import Session

    monkeypatch.setattr(Session, "doubts", lambda *_: "Do not trust this mask.")
    person.open(study)
    person.type_prompt(STRUCTURE)
    layers = person.controller.layers
    assert layers.masks[TEXT_MASK].any()
    assert not person.label.any()
    assert "Do not trust" in person.panel._notice.text()
    person.panel._take.click()
    assert person.label.any()


# -- layers of others ---------------------------------------------------------------------------------------------


def test_layers_of_others_never_shift_the_views(person: Person, study: Path, scans: Path) -> None:
    person.viewer.add_image(np.zeros((4, 5, 6)), name="before")
    person.open(study)
    assert [is_ours(layer) for layer in person.viewer.layers] == [True] * 9 + [False]
    assert not person.viewer.layers["before"].visible
    person.viewer.layers.move(9, 0)
    assert not is_ours(person.viewer.layers[-1])
    (dragged,) = person.viewer.open(str(scans / "patient 0.nii.gz"), plugin="napari-amvlm")
    assert "Open it here" in person.panel._take.text()
    assert not dragged.visible
    person.panel._take.click()
    person.qtbot.waitUntil(lambda: person.controller.store is None, timeout=WAIT_MS)
    person.idle()
    assert person.controller.layers.opened.title == "patient 0.nii.gz"
    assert dragged not in person.viewer.layers


def test_a_labels_layer_of_the_same_grid_can_start_your_label(
    person: Person, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person.open(study)
    layers, case_id = person.controller.layers, person.controller.open_case_id
    found = np.zeros(layers.labels[LABEL].data.shape, np.int32)
    found[3:6, 4:8, 5:9] = 2
    found[8:9] = 7
    person.viewer.add_labels(found, name="nnInteractive - Label", scale=layers.labels[LABEL].scale)
    person.viewer.add_labels(np.zeros((3, 3, 3), int), name="other grid")
    choices = [person.panel.start.itemText(n) for n in range(person.panel.start.count())]
    assert choices[-1] == "Layer: nnInteractive - Label"
    monkeypatch.setattr(QInputDialog, "getItem", staticmethod(lambda *a: (a[3][1], True)))
    person.panel.start.setCurrentIndex(len(choices) - 1)
    person.panel._emit_start()
    assert np.array_equal(layers.labels[LABEL].data, found == 2)
    person.controller.focus_scan()
    person.press(Qt.Key.Key_A)
    person.judged(case_id)
    revision = LabelStore(study).current(case_id, STRUCTURE)
    assert (revision.source, revision.prompt) == ("imported", "layer nnInteractive - Label")
    assert revision.edited_voxels == 0


# -- looking ------------------------------------------------------------------------------------------------------


def test_a_light_window_is_readable(person: Person, study: Path) -> None:
    person.viewer.theme = "light"
    assert "background: #ffffff" in person.panel.prompt.styleSheet()
    assert "color: #1b1d23" in person.panel.prompt.styleSheet()
    person.panel.show_notice("x " * 2000, True)
    assert person.panel._notice.height() < 150  # long warnings push nothing away
    person.open(study)
    button, panel = person.panel.accept_button, person.panel
    assert panel.rect().contains(button.mapTo(panel, button.rect().bottomRight()))  # in sight, whatever is scrolled to
    person.viewer.theme = "dark"
    assert "background: #1b1d23" in person.panel.prompt.styleSheet()


def test_a_structure_gets_another_name(person: Person, study: Path, answer: Any) -> None:
    person.open(study)
    answer(typed="head")  # typed over the empty line
    person.controller.studies.ask_for_new_name()
    person.idle()
    assert person.controller.structure == "head"
    assert person.panel.structure.currentData() == "head"
    assert STRUCTURE not in [structure.name for structure in LabelStore(study).structures()]


def test_masks_that_come_with_scans_are_asked_about(
    person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    source = tmp_path / "pictures"
    for folder in ("images", "masks"):
        (source / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).save(source / "images" / f"p{number}.png")
        mask = np.zeros((24, 24), np.uint8)
        mask[5:9, 5:9] = 255
        Image.fromarray(mask).save(source / "masks" / f"p{number}.png")
    asked: list[str] = []

    def choose(*arguments: Any) -> tuple[str, bool]:
        asked.append(arguments[2])
        return arguments[3][1], True  # only to measure with

    monkeypatch.setattr(QInputDialog, "getItem", staticmethod(choose))
    monkeypatch.setattr(QInputDialog, "getText", staticmethod(lambda *_: ("nucleus", True)))
    person.controller.studies.look_and_import(source, tmp_path / "study2d")
    person.qtbot.waitUntil(lambda: person.controller.layers is not None, timeout=WAIT_MS)
    person.idle()
    store = LabelStore(tmp_path / "study2d")
    assert "4 of these scans come with masks" in asked[0]
    assert [structure.name for structure in store.structures()] == ["nucleus"]
    assert not store.snapshot().revisions
    assert store.references()
    person.controller.label.measure()
    person.idle()
    assert "px" in person.panel._measures.text()


def test_a_model_that_is_worse_is_not_the_default(person: Person, study: Path) -> None:
    from amvlm.events import Finished, Started, Validation

    person.open(study)
    train = person.open_panel("Train")
    training = person.controller.training
    training._arrived(Started(job="train", labelled=8, unlabelled=0, validation=6, structures=["a"], steps=9,
                              device="cpu", precision="fp32"))  # fmt: skip
    training._arrived(Validation(step=0, student={"a": 0.95}, text_mask={"a": 0.9}, merged={"a": 0.95}))
    training._arrived(Validation(step=9, student={"a": 0.1}, text_mask={"a": 0.1}, merged={"a": 0.0}))
    training._arrived(Finished(model="model-1", seconds=1.0))
    training._ended()
    assert train._stage.text().startswith("The new model is worse: Dice 0.95 before, 0.00 now, on 6 validation cases.")
    assert train.use.text() == "Use it anyway"
    assert train.dice._colour("prediction", 0) == "#f2a93b"
    assert train.dice._colour("text mask", 1) == "#2fb5d2"


@pytest.mark.parametrize("agreed", [True, False])
def test_the_first_prompt_asks_before_it_downloads_the_text_encoder(
    person: Person, study: Path, monkeypatch: pytest.MonkeyPatch, agreed: bool, answer: Any
) -> None:
    """Weights that are not here until they are fetched; nothing is asked a second time."""
    fetched: list[str] = []
    minilm = weights.known("minilm")
    monkeypatch.setattr(bundle, "missing_weights", lambda _: None if fetched else minilm)
    monkeypatch.setattr(weights, "fetch", lambda name, **_: fetched.append(name))
    person.open(study)
    button = QMessageBox.StandardButton.Yes if agreed else QMessageBox.StandardButton.No
    asked = answer(button=button)
    person.type_prompt(STRUCTURE)
    person.idle()
    assert "91 MB, Apache-2.0" in asked[0]
    assert fetched == (["minilm"] if agreed else [])
    assert person.controller.layers.masks[TEXT_MASK].any() == agreed
    if not agreed:
        assert "amvlm weights fetch minilm" in person.panel._notice.text()


def listed(person: Person) -> list[str]:
    """What the layer list shows, from the top."""
    view = person.viewer.window._qt_viewer.layers
    rows = [row for row in range(view.model().rowCount()) if not view.isRowHidden(row)]
    return [str(view.model().index(row, 0).data()) for row in rows]


def test_the_layer_list_shows_the_scan_and_three_masks(person: Person, study: Path) -> None:
    person.open(study)
    title = person.controller.layers.opened.title
    ours = [LABEL, PREDICTION, TEXT_MASK, title]
    person.qtbot.waitUntil(lambda: listed(person) == ours, timeout=5_000)
    person.press(Qt.Key.Key_G)
    person.controller.opening.next_case()
    person.idle()
    title = person.controller.layers.opened.title
    person.qtbot.waitUntil(lambda: listed(person) == [*ours[:3], title], timeout=5_000)
    person.viewer.add_points(np.zeros((1, 3)), name="a guest")
    person.qtbot.waitUntil(lambda: listed(person) == ["a guest", *ours[:3], title], timeout=5_000)
    person.viewer.layers.move(person.viewer.layers.index("a guest"), 0)
    person.qtbot.waitUntil(lambda: listed(person) == ["a guest", *ours[:3], title], timeout=5_000)
    person.viewer.layers.remove("a guest")
    person.qtbot.waitUntil(lambda: listed(person) == [*ours[:3], title], timeout=5_000)
