"""A viewer with the panel open on a copy of the sample study."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication, QDialog, QLabel, QLineEdit

from napari_amvlm.controller import Controller
from napari_amvlm.widgets import ReviewPseudoLabels, SegmentWithText, Train

WAIT_MS = 180_000


@pytest.fixture
def study(sample_template: Path, tmp_path: Path) -> Path:
    shutil.copytree(sample_template, tmp_path / "study")
    return tmp_path / "study"


class Window:
    """A viewer, its panels and its controller, with waiting."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        self.viewer, self.qtbot = viewer, qtbot
        self.prompt = SegmentWithText(viewer)
        self.review = ReviewPseudoLabels(viewer)
        self.train = Train(viewer)
        viewer.window.add_dock_widget(self.prompt, name="Segment with text")
        viewer.window.add_dock_widget(self.review, name="Review pseudo-labels", tabify=True)
        viewer.window.add_dock_widget(self.train, name="Train", tabify=True)
        self.controller: Controller = self.prompt.controller

    def wait(self, condition: Callable[[], bool]) -> None:
        self.qtbot.waitUntil(condition, timeout=WAIT_MS)

    def idle(self) -> None:
        self.wait(lambda: not self.controller.worker.busy)

    def open(self, study: Path, case_id: str = "") -> None:
        self.controller.studies.open_study(study)
        self.wait(lambda: self.controller.layers is not None and not self.controller.worker.busy)
        if case_id and self.controller.open_case_id != case_id:
            self.controller.open_case(case_id)
            self.wait(lambda: self.controller.open_case_id == case_id and not self.controller.worker.busy)

    def run(self, text: str = "anterior hippocampus") -> None:
        self.prompt.prompt.setPlainText(text)
        self.prompt.prompt.submit()
        self.idle()

    @property
    def next_step(self) -> str:
        return str(self.prompt._next.text())

    @property
    def notice(self) -> str:
        return str(self.prompt._notice.text())


@pytest.fixture
def window(make_napari_viewer: Callable[..., Any], qtbot: Any) -> Iterator[Window]:
    opened = Window(make_napari_viewer(), qtbot)
    yield opened
    opened.controller.close()


@pytest.fixture
def answer(qtbot: Any) -> Callable[..., list[str]]:
    """Answer the next dialog as a person would: press a button, or type and Enter (neither: Escape).

    ``answer(typed, button=…)`` returns what the dialog asked, once it did.
    """

    def prepared(typed: str | None = None, button: Any = None) -> list[str]:
        asked: list[str] = []
        timer = QTimer(QApplication.instance())

        def look() -> None:
            dialog = QApplication.activeModalWidget()
            if not isinstance(dialog, QDialog):
                return
            timer.stop()
            asked.append(" ".join(label.text() for label in dialog.findChildren(QLabel)))
            if button is not None:
                qtbot.mouseClick(dialog.button(button), Qt.MouseButton.LeftButton)
                return
            edit = dialog.findChild(QLineEdit)
            if typed is not None:
                qtbot.keyClicks(edit, typed)
            qtbot.keyClick(edit, Qt.Key.Key_Escape if typed is None else Qt.Key.Key_Return)

        timer.timeout.connect(look)
        timer.start(20)
        return asked

    return prepared
