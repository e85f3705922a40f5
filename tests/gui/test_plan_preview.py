"""The plan before Start: measured in a child process, made again at once for other minutes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from amvlm.events import Progress, Started
from amvlm.planning import CaseFacts, Fingerprint, Machine, StructureFacts
from napari_amvlm import plan_preview
from napari_amvlm.panels.train import MINUTES, TrainPanel
from napari_amvlm.plan_preview import PlanPreview
from napari_amvlm.training_account import time_left
from napari_amvlm.training_run import TrainingRun

FACTS = Fingerprint(
    cases=(CaseFacts(shape=(9, 216, 256), spacing_mm=(10, 1.5, 1.5), modality="MR"),) * 5,
    structures=(StructureFacts(name="heart", cases=5, extent_mm=(80, 84, 100), largest_extent_mm=(80, 84, 100),
                               slices=8, parts=1),),
    exclusive=True, region_mm=(80, 90, 120), labelled=5, unlabelled=0, minutes=10,
    machine=Machine(seconds_per_megapixel=2.0),
)  # fmt: skip


def answering(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the child process run some Python instead of ``amvlm plan``."""
    monkeypatch.setattr(plan_preview, "python_command", lambda *_: [sys.executable, "-I", "-S", "-c", code])


@pytest.fixture
def preview(qtbot: Any) -> Any:
    made = PlanPreview()
    yield made
    made.forget()


def measured(preview: PlanPreview, qtbot: Any, state: object = 1) -> None:
    preview.measure(Path("study"), state)
    qtbot.waitUntil(lambda: not preview.measuring, timeout=60_000)


def test_the_plan_follows_the_minutes_without_measuring_again(
    preview: PlanPreview, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, f"print({FACTS.model_dump_json()!r})")
    measured(preview, qtbot)
    monkeypatch.setattr(plan_preview, "python_command", lambda *_: pytest.fail("measured again"))
    preview.measure(Path("study"), 1)
    shown = preview.of(10)
    assert shown.line == "2-D, 1.5 mm, patches of 96×128, about 10 minutes on this CPU."
    assert any(reason.startswith("patch: 96 × 128 px (about 1.5 times") for reason in shown.reasons)
    assert preview.of(480).line.endswith("about 8 hours on this CPU.")
    few = preview.of(0.001)
    assert few.refused
    assert "too few" in few.line
    assert few.line.endswith("Give at least a minute.")


def test_a_refused_study_is_a_sentence_and_a_broken_child_none_that_hinders(
    preview: PlanPreview, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "import sys; sys.stderr.write('amvlm: no training case is labelled yet.\\n'); sys.exit(2)")
    measured(preview, qtbot)
    assert preview.of(10) == plan_preview.Preview("no training case is labelled yet.", refused=True)
    for number, code in enumerate(("print('{')", "import os; os.abort()", "import sys; sys.exit(70)")):
        answering(monkeypatch, code)
        measured(preview, qtbot, state=f"other {number}")
        assert preview.of(10).line
        assert not preview.of(10).refused


def test_a_new_request_ends_the_older_one(
    preview: PlanPreview, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "import time; time.sleep(600)")
    preview.measure(Path("study"), 1)
    older = preview._child
    assert older is not None
    assert "Measuring" in preview.of(10).line
    answering(monkeypatch, f"print({FACTS.model_dump_json()!r})")
    began = time.monotonic()
    measured(preview, qtbot, state=2)
    assert time.monotonic() - began < 30
    assert preview.of(10).reasons
    assert preview._child is None


def test_judging_case_after_case_measures_once_and_never_waits(
    preview: PlanPreview, qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    count = f"open({str(begun)!r}, 'a').write('x')"
    answering(monkeypatch, f"{count}; print({FACTS.model_dump_json()!r})")
    monkeypatch.setattr(plan_preview, "PAUSE_MS", 300)
    measured(preview, qtbot, state=0)  # the first time at once
    assert begun.read_text() == "x"
    for state in range(1, 30):
        preview.measure(Path("study"), state)
        assert preview.of(10).reasons  # the plan of a moment ago stays on show
    qtbot.waitUntil(lambda: not preview.measuring, timeout=60_000)
    assert begun.read_text() == "xx"
    preview.measure(Path("another study"), 1)
    assert preview._child is not None  # at once


def test_a_training_on_labels_alone_is_planned_as_such(preview: PlanPreview) -> None:
    preview._facts = FACTS.model_copy(update={"unlabelled": 40})
    assert any("second learns from all" in reason for reason in preview.of(480).reasons)
    assert not any("second learns from all" in reason for reason in preview.of(480, labelled_only=True).reasons)


def test_the_real_study_is_measured_by_the_real_command(preview: PlanPreview, study: Path, qtbot: Any) -> None:
    preview.measure(study, 1)
    qtbot.waitUntil(lambda: not preview.measuring, timeout=180_000)
    assert preview.of(60).line.startswith("2-D, 0.5 mm, patches of ")
    assert preview.of(60).reasons


def test_minutes_are_asked_in_words_and_old_settings_are_folded(qtbot: Any) -> None:
    panel = TrainPanel()
    qtbot.addWidget(panel)
    assert panel.minutes == 10
    assert [value for value, _ in MINUTES] == sorted(value for value, _ in MINUTES)
    panel.show_plan("2-D", ["patch: 64 (so)"])
    assert not panel._reasons.isVisibleTo(panel)
    panel._details.title.click()
    assert panel._reasons.isVisibleTo(panel)
    assert not panel._form.isVisibleTo(panel)
    panel._advanced.title.click()
    assert panel._form.isVisibleTo(panel)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(20, "Less than a minute left"), (70, "About a minute left"), (430, "About 7 minutes left"),
     (3 * 3600, "About 3.0 hours left"), (float("nan"), "Less than a minute left")],
)  # fmt: skip
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert time_left(seconds) == words


def test_start_asks_for_the_minutes_chosen_and_is_off_where_nothing_can_be_planned(
    window: Any, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def start(store: Any, arguments: list[str], **_: Any) -> TrainingRun:
        asked.append(arguments)
        raise OSError(28, "stop here")

    monkeypatch.setattr(TrainingRun, "start", start)
    window.open(study)
    training = window.controller.training
    training.preview._facts = FACTS
    training.labels_changed()
    assert "patches of 96×128" in window.train._plan.text()
    assert window.train.start.isEnabled()
    window.train.start.click()
    assert asked[0][asked[0].index("--minutes") + 1] == "10.0"
    assert "--steps" not in asked[0]
    training.preview._facts = FACTS.model_copy(update={"machine": Machine(seconds_per_megapixel=9e4)})
    window.train._minutes.setCurrentIndex(0)
    assert "too few" in window.train._plan.text()
    assert not window.train.start.isEnabled()
    training._form["steps"].value = 7
    assert "By steps" in window.train._plan.text()
    assert window.train.start.isEnabled()
    window.train.start.click()
    assert "--minutes" not in asked[1]
    assert asked[1][asked[1].index("--steps") + 1] == "7"


def test_one_countdown_and_one_bar(window: Any, study: Path) -> None:
    window.open(study)
    training = window.controller.training
    training._arrived(Started(job="train", labelled=1, unlabelled=0, structures=["a"], steps=100, device="cpu",
                              precision="fp32", minutes=10))  # fmt: skip
    training._arrived(Progress(stage="training", step=50, steps=100, seconds_left=300.0, losses={"Dice + CE": 0.5}))
    assert window.train.progress.value() == 500
    assert window.train._stage.text().startswith("About 5 minutes left. Training: 50 of 100")
    assert "Dice + CE" in window.train.losses._curves
    training._arrived(Progress(stage="measuring", step=1, steps=2, seconds_left=6.0))
    assert window.train.progress.value() == 990
