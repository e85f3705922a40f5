"""Panels, the worker and the forms, without a viewer."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from qtpy.QtCore import Qt

from amvlm.config import TrainSettings
from amvlm.errors import UserError
from amvlm.events import Validation
from napari_amvlm.forms import form_values, settings_form
from napari_amvlm.jobs import Job, Worker
from napari_amvlm.panels.prompt import PromptPanel
from napari_amvlm.panels.train import TrainPanel
from napari_amvlm.training_account import comparison
from napari_amvlm.training_controller import FIELDS


def test_importing_the_plugin_loads_no_heavy_library() -> None:
    check = "import sys, napari_amvlm; print(sorted({'torch','transformers','monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_opening_the_panel_loads_no_heavy_library_in_the_windows_thread() -> None:
    check = "import sys, napari_amvlm.widgets; print(sorted({'torch','transformers','monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_enter_runs_shift_enter_breaks_the_line_history_walks(qtbot: Any) -> None:
    panel = PromptPanel()
    qtbot.addWidget(panel)
    runs: list[str] = []
    panel.prompt_submitted.connect(runs.append)
    qtbot.keyClicks(panel.prompt, "liver")
    qtbot.keyClick(panel.prompt, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    qtbot.keyClicks(panel.prompt, "spleen")
    qtbot.keyClick(panel.prompt, Qt.Key.Key_Return)
    assert runs == ["liver\nspleen"]
    panel.prompt.setPlainText("kidney")
    qtbot.keyClick(panel.prompt, Qt.Key.Key_Return)
    qtbot.keyClick(panel.prompt, Qt.Key.Key_Up, Qt.KeyboardModifier.ControlModifier)
    qtbot.keyClick(panel.prompt, Qt.Key.Key_Up, Qt.KeyboardModifier.ControlModifier)
    assert panel.prompt.toPlainText() == "liver\nspleen"


def test_judging_is_offered_in_a_study_only(qtbot: Any) -> None:
    panel = PromptPanel()
    qtbot.addWidget(panel)
    panel.show_open(in_study=False)
    assert not panel._judge_box.isVisibleTo(panel)
    panel.show_open(in_study=True)
    assert panel._judge_box.isVisibleTo(panel)


def test_every_button_has_a_tooltip(qtbot: Any) -> None:
    from qtpy.QtWidgets import QComboBox, QPushButton

    for panel in (PromptPanel(), TrainPanel()):
        qtbot.addWidget(panel)
        for kind in (QPushButton, QComboBox):
            assert all(widget.toolTip() for widget in panel.findChildren(kind))


def test_the_form_comes_from_the_settings(qtbot: Any) -> None:
    form = settings_form(TrainSettings, FIELDS)
    values = form_values(form)
    assert values == {name: getattr(TrainSettings(), name) for name in FIELDS}
    form["steps"].value = 77
    assert TrainSettings(**form_values(form)).steps == 77
    form.native.deleteLater()


def test_before_and_after_side_by_side() -> None:
    before = Validation(step=0, student={"a": 0.5}, text_mask={"a": 0.4}, merged={"a": 0.6})
    after = Validation(step=9, student={"a": 0.7}, text_mask={"a": 0.8}, merged={"a": 0.9})
    assert comparison(before, after)[1] == ("prediction, a", "0.500", "0.700")
    assert comparison(None, after)[0] == ("text mask, a", "–", "0.800")
    assert comparison(before, None) == []


@pytest.fixture
def worker(qtbot: Any) -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_jobs_run_in_one_thread_and_answer_in_the_windows(worker: Worker, qtbot: Any) -> None:
    ran, answered = set(), set()

    def work() -> Iterator[int]:
        ran.add(threading.get_ident())
        yield 1

    for _ in range(3):
        worker.submit(Job(work, on_result=lambda _: answered.add(threading.get_ident())))
    qtbot.waitUntil(lambda: not worker.busy)
    assert len(ran) == 1
    assert answered == {threading.get_ident()}
    assert ran != answered


def test_a_cancelled_job_delivers_nothing_more(worker: Worker, qtbot: Any) -> None:
    go, results = threading.Event(), []

    def work() -> Iterator[int]:
        yield 1
        go.wait(10)
        yield 2

    ended: list[bool] = []
    job = worker.submit(Job(work, on_result=results.append, on_end=ended.append))
    qtbot.waitUntil(lambda: results == [1])
    job.cancel()
    go.set()
    qtbot.waitUntil(lambda: not worker.busy)
    assert results == [1]
    assert ended == [False]


def test_errors_are_sentences_and_the_worker_lives_on(worker: Worker, qtbot: Any) -> None:
    told: list[str] = []

    def refuse() -> Iterator[int]:
        raise UserError("the scan is upside down", remedy="Turn it.")
        yield 0

    def break_() -> Iterator[int]:
        raise RuntimeError("boom")
        yield 0

    worker.submit(Job(refuse, on_error=told.append))
    worker.submit(Job(break_, on_error=told.append))
    results: list[int] = []
    worker.submit(Job(lambda: iter([7]), on_result=results.append))
    qtbot.waitUntil(lambda: results == [7])
    assert told[0] == "the scan is upside down. Turn it."
    assert told[1].startswith("Something went wrong inside the plugin (RuntimeError in test_panels.py, line ")
    assert "boom" not in told[1]  # a message may hold a name or a path


def test_every_button_signals(qtbot: Any) -> None:
    panel = PromptPanel()
    qtbot.addWidget(panel)
    panel.show_open(in_study=True)
    signals = {
        "New…": panel.new_structure_requested,
        "Cancel": panel.cancel_requested,
        "Accept  (A)": panel.accepted, "Absent (N)": panel.absent_marked, "Skip (K)": panel.skipped,
        "Undo (U)": panel.label_undone, "Start over": panel.start_requested, "▣": panel.view_chosen,
        "Coronal": panel.plane_chosen, "Smooth": panel.correction_requested, "?": panel.keys_requested,
    }  # fmt: skip
    from qtpy.QtWidgets import QAbstractButton

    buttons = {button.text(): button for button in panel.findChildren(QAbstractButton)}
    for text, signal in signals.items():
        with qtbot.waitSignal(signal, timeout=1000):
            buttons[text].click()
