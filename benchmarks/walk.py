"""The whole loop as a person goes through it: real clicks and keys, a picture after each step, actions counted.

    xvfb-run -a -s "-screen 0 1680x1050x24" python benchmarks/walk.py PICTURES [--scans FOLDER]

An action is a click, a key, a drag, or a text typed. Walks the sample study through the loop; with --scans, looks at
`ct_torso_3mm.nii.gz`, `ct_dicom_jpeg2000`, `mr_dicom_oblique` and `brain1_image.nrrd` of that folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QAbstractButton

from napari_amvlm.demo import settle, wait_until
from napari_amvlm.layers import LABEL, PREDICTION, TEXT_MASK

PANELS = {"segment": "Segment with text", "review": "Review pseudo-labels", "train": "Train"}


class Walk:
    """A window, and hands that count what they do."""

    def __init__(self, pictures: Path, size: tuple[int, int] = (1640, 1000), theme: str = "dark") -> None:
        self.pictures = pictures
        pictures.mkdir(parents=True, exist_ok=True)
        self.viewer = napari.Viewer(title="napari-amvlm", show=True)
        self.window = self.viewer.window._qt_window
        self.window.resize(*size)
        self.viewer.theme = theme
        open_panel = self.viewer.window.add_plugin_dock_widget  # what the menu calls
        opened = {name: open_panel("napari-amvlm", title) for name, title in PANELS.items()}
        self.docks = {name: dock for name, (dock, _) in opened.items()}
        self.prompt, self.review, self.train = (opened[name][1] for name in PANELS)
        self.controller = self.prompt.controller
        settle(0.5)
        self.docks["segment"].raise_()
        self.actions = 0
        self.counts: dict[str, int] = {}

    # -- hands ------------------------------------------------------------------------------------------------

    def click(self, panel: Any, text: str) -> None:
        """Press the button with that text."""
        buttons = [b for b in panel.findChildren(QAbstractButton) if b.text() == text and b.isVisibleTo(panel)]
        QTest.mouseClick(buttons[0], Qt.MouseButton.LeftButton)
        self.actions += 1

    def key(self, key: Any, widget: Any = None, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        """A key to a widget, else to the one that has the focus."""
        QTest.keyClick(widget or self.window.focusWidget() or self.canvas, key, modifier)
        self.actions += 1

    def type(self, text: str) -> None:
        """Replace the prompt by a typed text (one action), as a person would."""
        self.prompt.prompt.selectAll()
        QTest.keyClicks(self.prompt.prompt, text)
        self.actions += 1

    def go_to(self, panel: str) -> None:
        self.docks[panel].raise_()
        self.actions += 1

    def drag(self, start: tuple[float, float, float], end: tuple[float, float, float]) -> None:
        """Drag the left button between two voxels of the label, shown in its own cell, on the canvas."""
        label = self.controller.layers.labels[LABEL]
        first, last = (self._on_canvas(label.data_to_world(place)) for place in (start, end))
        QTest.mousePress(self.canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, first)
        for share in np.linspace(0, 1, 8):
            between = QPoint(*(round(a + (b - a) * share) for a, b in
                               ((first.x(), last.x()), (first.y(), last.y()))))  # fmt: skip
            QTest.mouseMove(self.canvas, between)
            settle(0.05)
        QTest.mouseRelease(self.canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, last)
        self.actions += 1

    @property
    def canvas(self) -> Any:
        return self.viewer.window._qt_viewer.canvas.native

    def _on_canvas(self, world: Any) -> QPoint:
        """A world point as a pixel of the third cell of the canvas."""
        camera = self.viewer.scene.camera
        shown = list(self.viewer.dims.displayed)
        down, across = (np.array(world)[shown] - np.array(camera.center)[-2:]) * camera.zoom
        width, height = self.canvas.width(), self.canvas.height()
        middle = width * (5 / 6 if self.viewer.canvas.grid.enabled else 1 / 2)
        return QPoint(round(middle + across), round(height / 2 + down))

    # -- eyes -------------------------------------------------------------------------------------------------

    def idle(self) -> None:
        wait_until(lambda: not self.controller.worker.busy, "working")

    def shoot(self, name: str, screen: bool = False) -> None:
        """A picture of the window, or of the screen where a list of completions lies over it."""
        settle(0.9)
        number = len(list(self.pictures.glob("walk-*.png"))) + 1
        place = self.window.geometry()
        corner = (place.x(), place.y(), place.width(), place.height())
        shot = self.window.screen().grabWindow(0, *corner) if screen else self.window.grab()
        shot.save(str(self.pictures / f"walk-{number:02}-{name}.png"))
        print(f"{number:02} {name}: {self.actions} actions; {self.prompt._notice.text()!r}", flush=True)

    def counted(self, what: str, before: int) -> None:
        self.counts[what] = self.actions - before


def sample(walk: Walk, study: Path) -> None:
    """The sample study, from an empty window to a better model."""
    from amvlm.sample import copy_sample_study

    controller, prompt = walk.controller, walk.prompt
    walk.shoot("empty")
    copy_sample_study(study)
    controller.studies.open_study(study)
    wait_until(lambda: controller.layers is not None and not controller.worker.busy, "opening")
    walk.shoot("opened")
    prompt.prompt.clear()
    QTest.keyClicks(prompt.prompt, "ante")
    walk.shoot("completing", screen=True)
    QTest.keyClick(prompt.prompt._completer.popup(), Qt.Key.Key_Down)
    QTest.keyClick(prompt.prompt._completer.popup(), Qt.Key.Key_Return)
    before = walk.actions
    walk.key(Qt.Key.Key_Return, prompt.prompt)
    walk.idle()
    walk.shoot("prompted")
    walk.key(Qt.Key.Key_Q)
    walk.shoot("coronal")
    walk.key(Qt.Key.Key_Q)
    walk.key(Qt.Key.Key_Q)
    walk.key(Qt.Key.Key_G)
    walk.shoot("stacked")
    walk.key(Qt.Key.Key_G)
    correct(walk)
    start = walk.actions
    case_id = controller.open_case_id
    walk.key(Qt.Key.Key_A)
    wait_until(lambda: controller.open_case_id != case_id and not controller.worker.busy, "accepting")
    walk.counted("accept and open the next case", start)
    walk.counted("first case, with every tool tried", before)
    walk.shoot("accepted-and-next")
    start = walk.actions
    case_id = controller.open_case_id  # it came prompted
    walk.key(Qt.Key.Key_A)
    wait_until(lambda: controller.open_case_id != case_id and not controller.worker.busy, "accepting")
    walk.counted("a case whose mask is right: accept", start)
    walk.type("posterior hippocampus")
    walk.key(Qt.Key.Key_Return, prompt.prompt, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(prompt.prompt, "anterior hippocampus")
    walk.key(Qt.Key.Key_Return, prompt.prompt)
    walk.idle()
    walk.shoot("two-structures")
    walk.type("spleen")
    walk.key(Qt.Key.Key_Return, prompt.prompt)
    walk.idle()
    walk.shoot("unknown-words")
    review(walk)
    train(walk)
    walk.viewer.dims.ndisplay = 3
    walk.shoot("three-dimensions")
    walk.viewer.dims.ndisplay = 2
    keys = controller.show_keys()
    settle(0.5)
    keys.grab().save(str(walk.pictures / "keys.png"))
    keys.close()


def correct(walk: Walk) -> None:
    """The brush that copies, a whole-label correction, undo."""
    layers = walk.controller.layers
    shown = layers.labels[PREDICTION].data
    z = int(shown.sum((1, 2)).argmax())
    walk.viewer.dims.set_current_step(0, z)
    y, x = (float(value) for value in np.argwhere(shown[z]).mean(0))
    before = layers.masks[LABEL].sum()
    start = walk.actions
    walk.prompt.start.setCurrentIndex(3)
    walk.actions += 1
    walk.click(walk.prompt, "Start over")
    walk.click(walk.prompt, PREDICTION)
    walk.drag((z, y, x - 5), (z, y, x + 5))
    walk.shoot("brush-takes-the-prediction")
    if not layers.masks[LABEL].any():
        raise SystemExit("walk: the drag reached no voxel")
    walk.counted("copy the prediction under one stroke", start)
    for _ in range(2):
        walk.key(Qt.Key.Key_Z, modifier=Qt.KeyboardModifier.ControlModifier)
    if layers.masks[LABEL].sum() != before:
        raise SystemExit("walk: two undos did not bring the label back")
    walk.click(walk.prompt, "Smooth")
    walk.idle()
    walk.shoot("smoothed")


def review(walk: Walk) -> None:
    """Grade the cases, take the worst, mark it, look at two revisions."""
    from amvlm.store import LabelStore

    controller = walk.controller
    controller.structures.choose("anterior hippocampus")
    walk.idle()
    walk.go_to("review")
    start = walk.actions
    walk.click(walk.review, "Assess all cases")
    walk.idle()
    order = walk.review.order
    order.setCurrentText("Worst first")
    order.activated.emit(order.currentIndex())
    walk.actions += 2
    walk.shoot("graded")
    walk.review.queue.select(0)
    walk.key(Qt.Key.Key_Return, walk.review.queue)
    walk.idle()
    walk.counted("grade all cases and open the worst", start)
    store = LabelStore(controller.store.folder)
    case = store.case(controller.open_case_id)
    reference = store.masks.read(store.references()[case.case_id, controller.structure]).array
    store.accept(case.case_id, controller.structure, reference, author="reader 1", prompt="anterior hippocampus")
    shifted = np.roll(reference, 1, 0)
    store.accept(case.case_id, controller.structure, shifted, author="reader 2", prompt="anterior hippocampus")
    controller.open_case(case.case_id)
    walk.idle()
    walk.review.history.selectAll()
    walk.actions += 1
    walk.click(walk.review, "Difference")
    walk.idle()
    fullest = int(walk.controller.layers.labels[TEXT_MASK].data.sum((1, 2)).argmax())
    walk.viewer.dims.set_current_step(0, fullest)
    walk.shoot("two-readers")
    walk.click(walk.review, "Close difference")
    walk.review.history.selectRow(1)
    walk.click(walk.review, "Restore")
    walk.idle()
    walk.shoot("brought-back")


def train(walk: Walk) -> None:
    """Train on what was accepted, use the new model, and know the way back."""
    from amvlm.demo import cases_to_correct

    store = walk.controller.store
    for case_id in cases_to_correct(store):  # the experts' masks, as if corrected
        for structure in store.structures()[:2]:
            reference = store.masks.read(store.references()[case_id, structure.name]).array
            store.accept(case_id, structure.name, reference, prompt=structure.name)
    walk.controller.training.labels_changed()
    walk.controller.refresh_lists()
    walk.idle()
    walk.go_to("train")
    training, bar = walk.controller.training, walk.train.progress
    walk.train._minutes.setCurrentIndex(0)
    wait_until(lambda: bool(training.preview.of(walk.train.minutes).reasons), "planning")
    walk.shoot("before-training")
    start = walk.actions
    walk.click(walk.train, "Start")
    wait_until(lambda: training.current is None or 0 < 0.6 * bar.maximum() < bar.value(), "training")
    walk.shoot("training")
    wait_until(lambda: training.current is None, "training")
    walk.idle()
    walk.shoot("before-and-after")
    walk.click(walk.train, "Use the new model")
    walk.idle()
    walk.counted("train and use the new model", start)
    walk.shoot("new-model-in-use")
    walk.go_to("segment")


def scans(walk: Walk, folder: Path) -> None:
    """Scans of four kinds, looked at in every plane."""
    for name in ("ct_torso_3mm.nii.gz", "ct_dicom_jpeg2000", "mr_dicom_oblique", "brain1_image.nrrd"):
        before = walk.controller.layers
        walk.controller.studies.open_scan(folder / name)
        wait_until(lambda before=before: walk.controller.layers is not before, "opening")
        walk.idle()
        stem = name.split(".")[0].replace("_", "-")
        walk.shoot(stem)
        walk.key(Qt.Key.Key_Q)
        walk.shoot(f"{stem}-coronal")
        walk.key(Qt.Key.Key_Q)
        walk.shoot(f"{stem}-sagittal")
        walk.key(Qt.Key.Key_Q)
        walk.type("anterior hippocampus")
        walk.key(Qt.Key.Key_Return, walk.prompt.prompt)
        walk.idle()
        walk.shoot(f"{stem}-prompted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(1640, 1000), help="of the window, in pixels")
    parser.add_argument("--theme", choices=("dark", "light"), default="dark")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvlm-walk-") as temporary:
        os.environ["XDG_DATA_HOME"] = temporary
        walk = Walk(given.pictures, tuple(given.size), given.theme)
        sample(walk, Path(temporary) / "study")
        if given.scans:
            scans(walk, given.scans)
        for what, count in walk.counts.items():
            print(f"{what}: {count} actions")
        walk.controller.close()
        walk.viewer.close()


if __name__ == "__main__":
    main()
