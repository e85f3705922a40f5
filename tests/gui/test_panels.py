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
from napari_amvlm.panels.queue import QueueRow
from napari_amvlm.panels.review import ReviewPanel
from napari_amvlm.panels.train import TrainPanel
from napari_amvlm.training_account import Verdict, comparison, model_name, verdict
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


def test_a_queue_of_any_length_draws_what_is_looked_at(qtbot: Any) -> None:
    panel = ReviewPanel()
    qtbot.addWidget(panel)
    panel.resize(400, 900)
    rows = [QueueRow(f"case-{n:05d}", f"scan {n}", "not judged", n / 5000, "") for n in range(5000)]
    asked: list[str] = []
    panel.pictures_wanted.connect(asked.extend)
    panel.show_queue(rows, "case-00002")
    panel.show()
    qtbot.waitUntil(lambda: bool(asked))
    assert panel.queue.cases.rowCount() == 5000
    assert panel.queue.current_case() == "case-00002"
    assert "case-00000" in asked
    assert len(set(asked)) < 50
    asked.clear()
    panel.show_thumbnails({"case-00000": (2, 1, b"\0" * 6)})
    cases = panel.queue.cases
    assert not cases.data(cases.index(0, 0), Qt.ItemDataRole.DecorationRole).isNull()
    opened: list[str] = []
    panel.case_opened.connect(opened.append)
    panel.queue.select(4999)
    qtbot.keyClick(panel.queue, Qt.Key.Key_Return)
    assert opened == ["case-04999"]


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


def scores(dice: float, step: int = 9, **kinds: dict[str, float]) -> Validation:
    return Validation(step=step, student={"a": dice}, text_mask={}, merged=kinds.get("merged", {}))


def test_a_training_ends_with_a_sentence() -> None:
    better = verdict(scores(0.80, 0), scores(0.85), 6)
    assert better == Verdict("The new model is better: Dice 0.80 before, 0.85 now, on 6 validation cases.")
    assert "as good as the one in use" in verdict(scores(0.80, 0), scores(0.805), 6).sentence
    worse = verdict(scores(0.95, 0), scores(0.0), 1)
    assert worse.worse
    assert worse.sentence.startswith("The new model is worse")
    assert "too few cases to tell" in verdict(scores(0.80, 0), scores(0.85), 1).sentence
    assert "not yet known" in verdict(None, None, 0).sentence
    assert verdict(None, scores(0.7), 6).sentence == "Dice 0.70 on 6 validation cases."
    assert "0.60 now" in verdict(scores(0.1, 0, merged={"a": 0.5}), scores(0.2, merged={"a": 0.6}), 6).sentence


def test_a_new_model_has_a_name_that_a_folder_can_have() -> None:
    assert model_name("", []) == "model-1"
    assert model_name("model-1", ["model-1", "model-2"]) == "model-3"
    assert model_name("../Liver, portal phase!", []) == "Liver- portal phase"
    assert model_name("Liver", ["liver"]) == "Liver-2"


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
