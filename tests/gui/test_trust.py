"""No stranger's name, study or file hurts the person at the window, and nothing painted is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import napari
import nibabel
import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QPlainTextEdit, QWidget

from amvlm.errors import UserError
from amvlm.events import EventLog, Failed, Note, Progress, Started, Validation
from amvlm.store import LabelStore
from napari_amvlm import studies, wording
from napari_amvlm.jobs import Job, Worker
from napari_amvlm.layers import LABEL
from napari_amvlm.training_run import TrainingRun
from napari_amvlm.unsaved import UNNAMED

EVIL = "<img src=file:///etc/passwd><b>liver"
STRUCTURE = "anterior hippocampus"


def scan(path: Path, seed: int = 0) -> Path:
    array = np.random.default_rng(seed).integers(0, 999, (8, 9, 10)).astype(np.int16)
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(3):
        scan(tmp_path / "scans" / f"scan{number}.nii.gz", number)
    return tmp_path / "scans"


@pytest.fixture
def bare(scans: Path, tmp_path: Path) -> Path:
    """A study of three scans, without any structure."""
    from amvlm.exchange import import_study

    import_study(scans, tmp_path / "bare")
    return tmp_path / "bare"


def said() -> str:
    return "\n".join(note.message for note in notification_manager.records)


@pytest.fixture(autouse=True)
def _no_records() -> Iterator[None]:
    notification_manager.records.clear()
    yield
    notification_manager.records.clear()


def paint(window: Any) -> np.ndarray:
    """One stroke; what the label is then."""
    label = window.controller.layers.labels[LABEL]
    label.brush_size = 3
    label.paint(tuple(n // 2 for n in label.data.shape), 1)
    painted: np.ndarray = window.controller.layers.masks[LABEL].copy()
    return painted


def go_to(window: Any, case_id: str) -> None:
    window.controller.open_case(case_id)
    window.wait(lambda: window.controller.open_case_id == case_id and not window.controller.worker.busy)


# -- words --------------------------------------------------------------------------------------------------------


def test_words_are_made_harmless() -> None:
    assert wording.plain("a\u202egnp.exe\x07\nb") == "a\ufffdgnp.exe\ufffd\nb"
    assert wording.plain(wording.plain("x\x00" * 5000)) == wording.plain("x\x00" * 5000)
    assert len(wording.plain("x" * 10**6)) == wording.LONGEST
    for text in (EVIL, "&lt;b&gt;x", "<?xml version='1.0'?>", "<!doctype html>", "\n<b>x</b>", "a < b"):
        assert not Qt.mightBeRichText(wording.unmarked(text)), text
        assert wording.unmarked(wording.unmarked(text)) == wording.unmarked(text)
    assert wording.breakable(wording.breakable("y" * 90)).count("\u200b") == 2


def test_errors_are_sentences_without_path_or_message(caplog: pytest.LogCaptureFixture) -> None:
    secret = "/home/anna/Smith^John.nii"
    for error in (
        OSError(errno.ENOSPC, "No space left", secret), PermissionError(errno.EACCES, "x", secret), MemoryError(secret),
        FileNotFoundError(errno.ENOENT, "x", secret), RuntimeError(f"[enforce fail] can't allocate memory {secret}"),
        ValueError(secret), OSError("no number"), KeyError(secret), SystemExit(1), sqlite3.OperationalError(secret),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, secret),
    ):  # fmt: skip
        text = wording.sentence(error)
        assert "/home" not in text, text
        assert "anna" not in text, text
        assert text.rstrip().endswith("."), text
    assert "anna" not in caplog.text
    assert "Smith" not in caplog.text
    assert wording.sentence(OSError(errno.ENOSPC, "x")) == "The disk is full. Free some space and try again."
    assert wording.sentence(UserError("it is cut", file="a/b.nii")) == "b.nii: it is cut."


# -- the worker ---------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(qtbot: Any) -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_no_exit_in_a_job_ends_the_worker(worker: Worker, qtbot: Any, error: BaseException) -> None:
    told: list[str] = []

    def leave() -> Iterator[int]:
        yield 1
        raise error

    worker.submit(Job(leave, on_error=told.append))
    worker.submit(Job(lambda: (_ for _ in ()).throw(error), on_error=told.append))
    results: list[int] = []
    worker.submit(Job(lambda: iter([7]), on_result=results.append))
    qtbot.waitUntil(lambda: results == [7])
    assert len(told) == 2
    assert all(text.endswith(".") and "Traceback" not in text for text in told)
    assert not worker.busy


def test_an_error_in_a_callback_is_said_and_ends_its_job(worker: Worker, qtbot: Any) -> None:
    told: list[str] = []
    ended: list[bool] = []

    def stumble(_: object) -> None:
        raise ValueError("/home/anna")

    worker.submit(Job(lambda: iter(range(1000)), on_result=stumble, on_error=told.append, on_end=ended.append))
    worker.submit(Job(lambda: iter(()), on_end=stumble, on_error=told.append))
    worker.submit(Job(lambda: iter([1]), on_result=lambda _: worker.tell(lambda: stumble(0))))
    qtbot.waitUntil(lambda: not worker.busy)
    assert len(told) == 2
    assert "ValueError in test_trust.py" in told[0]
    assert "anna" not in told[0]
    assert ended == [False]


# -- plain text ---------------------------------------------------------------------------------------------------


def hostile_study(folder: Path) -> Path:
    """A small study whose names, captions, models and runs try to be HTML; some of it by hand, past our checks."""
    from amvlm.exchange import import_study

    source = folder / "source"
    scan(source / "<b>Smith<i>.nii.gz")
    scan(source / f"{'very long ' * 15}\u202egnp.nii.gz", 1)
    import_study(source, folder / "study")
    store = LabelStore(folder / "study")
    store.add_structure(EVIL, prompts=[EVIL])
    store.add_structure("x" * 200)
    case_id = store.cases()[0].case_id
    shape = store.cases()[0].shape
    mask = np.zeros(shape, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    store.accept(case_id, EVIL, mask, prompt=EVIL, author=EVIL)
    with closing(sqlite3.connect(store.folder / "store.sqlite")) as connection, connection:
        name = "a\nb<img src=x>\u202e"
        connection.execute("INSERT INTO structure VALUES (?, '[]', 'url(x)', ?)", (name, json.dumps([name])))
    run = store.folder / "runs" / "20200101-000000-<b>x"
    run.mkdir(parents=True)
    events = EventLog(run / "events.jsonl")
    events.write(Started(job="train", labelled=1, unlabelled=0, structures=[EVIL], steps=10**9, device=EVIL,
                         precision=EVIL))  # fmt: skip
    losses = {f"L_{n}{EVIL}": 1.0 for n in range(100)}
    events.write(Progress(stage=EVIL, step=10**9, steps=10**9, losses=losses, seconds_left=1e300))
    events.write(Progress(stage="training", step=1, steps=2, losses=losses))
    events.write(Note(level="warning", text=EVIL * 1000))
    events.write(Validation(step=1, student={EVIL: 0.5}, text_mask={EVIL: 0.5}, merged={EVIL: 0.5}))
    events.write(Failed(text=EVIL))
    return store.folder


def widgets_of(window: Any) -> list[QWidget]:
    docks = [window.prompt, window.review, window.train]
    return [widget for dock in docks for widget in (dock, *dock.findChildren(QWidget))]


def test_nothing_from_a_study_is_rendered(window: Any, tmp_path: Path) -> None:
    study = hostile_study(tmp_path)
    window.controller.studies.open_study(study)
    window.wait(lambda: window.controller.layers is not None and not window.controller.worker.busy)
    store = LabelStore(study)
    for structure in store.structures():
        window.controller.structures.choose(structure.name)
        window.idle()
    case_id = store.cases()[0].case_id
    go_to(window, case_id)
    window.run(EVIL)
    window.review.filter.setCurrentText("All")
    window.controller.reviewing._choose_filter("All")
    window.controller.reviewing.show_history(case_id)
    window.controller.fail(f"{EVIL}\n{EVIL}")
    window.controller.offer(EVIL, EVIL, EVIL, lambda: None)
    for event in list(_events(study)):
        window.controller.training._arrived(event)
    window.train.losses.add("L_S", 2, float("inf"))
    window.train.losses.add("L_S", 10**400, float("nan"))
    for widget in widgets_of(window):
        if isinstance(widget, QLabel):
            assert widget.textFormat() == Qt.TextFormat.PlainText, widget.text()
        assert not Qt.mightBeRichText(widget.toolTip()), widget.toolTip()
    queue = window.review.queue.cases
    for row in range(queue.rowCount()):
        for column in range(queue.columnCount()):
            tip = queue.data(queue.index(row, column), Qt.ItemDataRole.ToolTipRole)
            assert not Qt.mightBeRichText(tip)
    for table in (window.review.history, window.train.table):
        for row in range(table.rowCount()):
            for column in range(table.columnCount()):
                item = table.item(row, column)
                assert item is None or not Qt.mightBeRichText(item.toolTip())
    for combo in (window.prompt.case, window.prompt.structure, window.prompt.model):
        for row in range(combo.count()):
            assert "\n" not in combo.itemText(row)
            assert not Qt.mightBeRichText(combo.itemData(row, Qt.ItemDataRole.ToolTipRole) or "")
    assert all("<" not in layer.name for layer in window.viewer.layers)
    assert not any(Qt.mightBeRichText(note.message) for note in notification_manager.records)
    assert "&lt;img" in window.train.losses.plotItem.titleLabel.text
    assert len(window.train.losses._curves) <= 12
    assert all(widget.minimumSizeHint().width() < 700 for widget in (window.prompt.body, window.review.body))
    listed = [window.prompt.structure.itemData(n) for n in range(window.prompt.structure.count())]
    assert listed == [structure.name for structure in store.structures()]


def _events(study: Path) -> Iterator[Any]:
    from amvlm.events import EventReader

    for path in sorted((study / "runs").glob("*/events.jsonl")):
        yield from EventReader(path).new_events()


# -- strokes without a structure ----------------------------------------------------------------------------------


def test_the_first_stroke_asks_for_a_name(window: Any, bare: Path, answer: Any) -> None:
    window.open(bare)
    case_id = window.controller.open_case_id
    asked = answer("left  kidney")
    painted = paint(window)
    window.wait(lambda: window.controller.structure == "left kidney")
    assert "outlining" in asked[0]
    other = next(case.case_id for case in LabelStore(bare).cases() if case.case_id != case_id)
    go_to(window, other)
    assert LabelStore(bare).state(case_id, "left kidney") == "draft"
    go_to(window, case_id)
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)
    assert window.prompt.structure.currentText() == "left kidney"


def test_strokes_that_nobody_named_wait_for_their_case(window: Any, bare: Path, qtbot: Any, answer: Any) -> None:
    window.open(bare)
    store, case_id = LabelStore(bare), window.controller.open_case_id
    other = next(case.case_id for case in store.cases() if case.case_id != case_id)
    asked = answer(None)
    painted = paint(window)
    window.wait(lambda: bool(asked))
    assert "Name it" in window.prompt._take.text()
    window.controller.label.autosave()  # does not ask again
    asked = answer(None)
    go_to(window, other)
    assert asked  # leaving asks again
    assert not window.controller.layers.masks[LABEL].any()
    assert store.structures() == []
    go_to(window, case_id)
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)
    answer("liver")
    qtbot.keyClick(window.viewer.window._qt_viewer.canvas.native, Qt.Key.Key_A)
    window.wait(lambda: store.state(case_id, "liver") == "accepted")
    window.idle()


def test_kept_strokes_are_offered_where_a_structure_came_meanwhile(window: Any, bare: Path, answer: Any) -> None:
    window.open(bare)
    store, case_id = LabelStore(bare), window.controller.open_case_id
    asked = answer(None)
    painted = paint(window)
    window.wait(lambda: bool(asked))
    answer(None)
    window.controller.opening.leave()
    store.add_structure("spleen")  # on the command line, say
    window.open(bare)
    go_to(window, case_id)
    assert window.controller.structure == "spleen"
    assert not window.controller.layers.masks[LABEL].any()
    assert "belongs to no structure" in window.prompt._offer_text.text()
    answer("liver")
    window.prompt._take.click()
    window.wait(lambda: window.controller.structure == "liver" and not window.controller.worker.busy)
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)
    window.controller.label.autosave()
    window.idle()
    assert store.state(case_id, "liver") == "draft"


def test_closing_keeps_nameless_strokes_as_a_draft(window: Any, bare: Path, answer: Any) -> None:
    window.open(bare)
    case_id = window.controller.open_case_id
    asked = answer(None)
    paint(window)
    window.wait(lambda: bool(asked))
    window.controller.close()
    assert LabelStore(bare).state(case_id, UNNAMED) == "draft"


def test_a_name_that_is_refused_loses_nothing(window: Any, bare: Path, answer: Any) -> None:
    window.open(bare)
    answer("x" * 600)
    painted = paint(window)
    window.wait(lambda: "600" in window.notice)
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)
    assert window.controller.label.nameless
    for name in ("A/B", "../x", "<b>x</b>", "CON"):
        window.controller.structures.add(name)
        window.idle()
        assert window.controller.structure == name
    window.controller.label.autosave()
    window.idle()
    assert LabelStore(bare).state(window.controller.open_case_id, "A/B") == "draft"  # the first name took the strokes


def test_a_structure_removed_elsewhere_leaves_the_strokes(window: Any, bare: Path, answer: Any) -> None:
    LabelStore(bare).add_structure("liver")
    window.open(bare)
    with closing(sqlite3.connect(bare / "store.sqlite")) as connection, connection:
        connection.execute("DELETE FROM structure")
    painted = paint(window)
    asked = answer("spleen")
    window.controller.label.autosave()
    assert asked
    window.controller.label.autosave()
    window.idle()
    assert LabelStore(bare).state(window.controller.open_case_id, "spleen") == "draft"
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)


def test_strokes_that_cannot_be_saved_are_kept(window: Any, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    window.open(study)
    store, case_id = LabelStore(study), window.controller.open_case_id
    painted = paint(window)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(study / "store.sqlite"))

    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "save_draft", full)
        for _ in range(3):
            window.controller.label.autosave()
            window.idle()
        assert said().count("disk is full") == 1
        assert str(study) not in said()
        go_to(window, store.cases("test")[0].case_id)
    assert store.state(case_id, STRUCTURE) == "unknown"
    go_to(window, case_id)
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)
    go_to(window, store.cases("test")[0].case_id)
    assert store.state(case_id, STRUCTURE) == "draft"


def test_an_autosave_that_waits_for_the_worker_is_not_lost_when_the_window_closes(window: Any, study: Path) -> None:
    window.open(study)
    case_id, go = window.controller.open_case_id, threading.Event()
    window.controller.worker.submit(Job(lambda: iter([go.wait(30)])))
    paint(window)
    window.controller.label.autosave()
    window.controller.close()
    go.set()
    assert LabelStore(study).state(case_id, STRUCTURE) == "draft"


def test_an_older_autosave_never_lands_on_newer_strokes(
    window: Any, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.open(study)
    monkeypatch.setattr(window.controller.studies, "is_sure", lambda _: True)  # absent, over strokes
    case_id, go = window.controller.open_case_id, threading.Event()
    window.controller.worker.submit(Job(lambda: iter([go.wait(30)])))
    paint(window)
    window.controller.label.autosave()  # waits
    window.controller.layers.labels[LABEL].paint((1, 1, 1), 1)
    newer = window.controller.layers.masks[LABEL].copy()
    window.controller.label.save_now()
    go.set()
    window.idle()
    go_to(window, LabelStore(study).cases("test")[0].case_id)
    go_to(window, case_id)
    assert np.array_equal(window.controller.layers.masks[LABEL], newer)
    window.controller.judging.mark_absent()
    window.idle()
    assert not LabelStore(study).load_draft(case_id, STRUCTURE)


# -- studies, imports, models -------------------------------------------------------------------------------------


def test_an_import_lists_what_was_left_out(window: Any, scans: Path, tmp_path: Path) -> None:
    for number in range(12):
        (scans / f"broken{number}.nii.gz").write_bytes(b"no scan")
    shown: list[tuple[int, int]] = []
    progress = window.prompt.show_progress
    window.prompt.show_progress = lambda done, total, text: (shown.append((done, total)), progress(done, total, text))
    window.controller.studies.import_scans(scans, tmp_path / "new")
    window.wait(lambda: window.controller.layers is not None and not window.controller.worker.busy)
    assert any(total >= 3 and done > 0 for done, total in shown)
    listed = window.controller.studies.listed.findChild(QPlainTextEdit).toPlainText()
    assert all(f"broken{number}.nii.gz" in listed for number in range(12))
    assert str(scans) not in listed
    window.controller.studies.listed.close()
    for path in scans.glob("scan*"):
        path.unlink()
    window.controller.studies.import_scans(scans, tmp_path / "none")  # nothing can be imported: all the more reason
    window.idle()
    listed = window.controller.studies.listed.findChild(QPlainTextEdit).toPlainText()
    assert all(f"broken{number}.nii.gz" in listed for number in range(12))
    assert "broken" in window.notice
    window.controller.studies.listed.close()


@pytest.mark.parametrize("where", ["a file", "full", "denied"])
def test_a_study_that_cannot_be_made_is_a_sentence(
    window: Any, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    into = tmp_path / "new"
    if where == "a file":
        (tmp_path / "f").write_text("")
        into = tmp_path / "f" / "new"
    else:
        code = errno.ENOSPC if where == "full" else errno.EACCES

        def refuse(self: Path, *_: Any, **__: Any) -> None:
            raise OSError(code, "x", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    window.controller.studies.import_scans(scans, into)
    window.idle()
    assert window.notice
    assert "Something went wrong" not in window.notice
    assert str(tmp_path) not in window.notice
    assert window.controller.layers is None


def test_a_study_that_is_gone_is_said_once(window: Any, study: Path, tmp_path: Path) -> None:
    window.open(study)
    paint(window)
    study.rename(tmp_path / "elsewhere")
    notification_manager.records.clear()
    controller = window.controller
    for _ in range(3):
        controller.refresh_lists()
        controller.training.labels_changed()
        controller.reviewing.refresh()
        controller.label.autosave()
        window.idle()
    assert len(set(said().splitlines())) <= 2
    assert len(notification_manager.records) <= 3
    judging = controller.judging
    for action in (judging.accept, judging.skip, controller.opening.next_case, controller.training.start):
        controller.slot(action)()
        window.idle()
    controller.slot(controller.studies.export_labels)(tmp_path / "labels")
    window.idle()
    assert "Traceback" not in said()
    assert "Something went wrong" not in said()
    assert not study.exists()
    (tmp_path / "elsewhere").rename(study)
    controller.label.autosave()
    window.idle()
    assert LabelStore(study).state(controller.open_case_id, STRUCTURE) == "draft"


def test_one_damaged_model_card_hides_no_other_model(window: Any, study: Path) -> None:
    from amvlm.inference import bundled_model_folder

    shutil.copytree(bundled_model_folder(), study / "models" / "good")
    for name, content in {"bad": b"{", "deep": b"[" * 10**5, "latin": b'{"name": "\xff"}', "list": b"[]"}.items():
        shutil.copytree(bundled_model_folder(), study / "models" / name)
        (study / "models" / name / "card.json").write_bytes(content)
    window.open(study)
    names = [window.prompt.model.itemData(n) for n in range(window.prompt.model.count())]
    assert {"good", "bundled"} <= set(names)
    assert not {"bad", "deep", "latin", "list"} & set(names)
    assert "bad" in said()
    window.run()
    assert window.controller.layers.masks["Text mask"].any()


def test_damaged_cases_leave_a_way_to_the_others(window: Any, study: Path) -> None:
    store = LabelStore(study)
    *damaged, sound = [*store.cases("test"), *store.cases("train"), *store.cases("val")]
    for case in damaged:
        (study / case.image_file).write_bytes(b"")
    window.controller.studies.open_study(study)
    window.idle()
    first = window.controller.workspace.case_asked_for
    assert first != sound.case_id
    assert window.prompt._study_box.isVisibleTo(window.prompt)
    assert window.notice
    window.controller.opening.next_case()
    window.idle()
    assert window.controller.workspace.case_asked_for != first  # J goes on, it does not try the same case for ever
    go_to(window, sound.case_id)


def test_damaged_masks_and_drafts_leave_the_scan_open(window: Any, study: Path) -> None:
    store = LabelStore(study)
    revision = store.snapshot().revisions[0]
    case_id = revision.case_id
    for path in (study / "labels").iterdir():
        path.write_bytes(b"")
    other = next(case.case_id for case in store.cases() if case.case_id != case_id)
    store.save_draft(other, STRUCTURE, {0: np.ones(store.case(other).shape[:2], np.uint8)})
    with closing(sqlite3.connect(study / "store.sqlite")) as connection, connection:
        connection.execute("UPDATE draft_slice SET voxels = x'00'")
    window.open(study)
    go_to(window, case_id)
    assert "cannot be shown" in window.notice
    go_to(window, other)
    assert "cannot be shown" in window.notice
    painted = paint(window)
    window.controller.label.autosave()
    window.idle()
    go_to(window, case_id)
    go_to(window, other)
    assert np.array_equal(window.controller.layers.masks[LABEL], painted)


@pytest.mark.parametrize("state", ["folder", "empty index", "no cases", "not a database", "file"])
def test_a_partial_copy_of_the_sample_is_made_again(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "data" / "sample-study"
    folder.parent.mkdir()
    if state == "file":
        folder.write_text("mine")
    elif state == "no cases":
        LabelStore.create(folder)
    else:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        if state != "folder":
            (folder / "store.sqlite").write_bytes(b"" if state == "empty index" else b"x" * 5000)
    text = studies.prepare_sample(folder)
    assert "sample-study-old-1" in text
    assert len(LabelStore(folder).cases()) == 40
    aside = folder.with_name("sample-study-old-1")
    assert aside.exists()
    if aside.is_dir() and state != "no cases":
        assert (aside / "mine.txt").read_text() == "mine"
    assert studies.prepare_sample(folder) == ""
    assert sorted(path.name for path in folder.parent.iterdir()) == ["sample-study", "sample-study-old-1"]


def test_a_sample_that_is_only_locked_stays(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amvlm.store.index.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(study / "store.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="another program"):
            studies.prepare_sample(study)
    assert studies.prepare_sample(study) == ""


def test_a_judgement_made_elsewhere_is_shown(window: Any, study: Path) -> None:
    window.open(study)
    store, case_id = LabelStore(study), window.controller.open_case_id
    store.mark_absent(case_id, STRUCTURE)  # another window
    window.controller.judging.skip()
    assert "already labelled" in window.notice
    assert "marked absent" in window.prompt._state.text()
    assert window.controller.open_case_id == case_id
    assert store.state(case_id, STRUCTURE) == "absent"


# -- training -----------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_start_is_a_sentence(window: Any, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    window.open(study)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory", str(study))

    monkeypatch.setattr("subprocess.Popen", refuse)
    window.train.start.click()
    assert "training could not be started" in window.notice
    assert str(study) not in window.notice
    assert window.controller.training.current is None
    monkeypatch.setattr(TrainingRun, "resumable", staticmethod(lambda _: "20200101-000000"))
    window.controller.training.resume()
    assert window.controller.training.current is None


# -- what napari calls itself -------------------------------------------------------------------------------------


def test_readers_and_writers_speak_in_sentences(
    make_napari_viewer: Callable[..., Any], scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make_napari_viewer()
    monkeypatch.setattr(napari, "current_viewer", lambda: viewer)
    bad = tmp_path / "<b>Smith.nii.gz"
    bad.write_bytes(b"no scan")
    pipe = tmp_path / "pipe.nii"
    os.mkfifo(pipe)
    for path in (bad, pipe):
        notification_manager.records.clear()
        assert viewer.open(str(path), plugin="napari-amvlm") == []
        assert said().count("\n") == 0
        assert said().endswith(".")
        assert str(tmp_path) not in said()
        assert "<" not in said()
    (layer,) = viewer.open(str(scans / "scan0.nii.gz"), plugin="napari-amvlm")
    from napari_amvlm.writer import write_layer

    notification_manager.records.clear()
    attributes = {"metadata": layer.metadata}
    assert write_layer(str(tmp_path / "no folder" / "x.nii.gz"), layer.data, attributes) == []
    assert write_layer(str(tmp_path / "x.nii.gz"), layer.data, {}) == []
    assert len(notification_manager.records) == 2
    assert str(tmp_path) not in said()
    monkeypatch.setattr(napari, "current_viewer", lambda: None)
    with pytest.raises(UserError):
        write_layer(str(tmp_path / "x.nii.gz"), layer.data, {})
    from napari_amvlm.reader import read

    with pytest.raises(UserError):
        read(str(bad))
