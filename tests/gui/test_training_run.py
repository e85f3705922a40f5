"""Training as the window starts it: no code from the study, nothing of it outside its folder, no private word kept."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from amvlm.events import Failed, Finished, Note
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder
from napari_amvlm.training_run import TrainingRun

SMALL = [
    "--steps", "4", "--batch-size", "2", "--network", "unet", "--channels", "8", "--channels", "16", "--device", "cpu",
    "--threads", "1", "--precision", "fp32", "--validate-every", "2", "--checkpoint-every", "2",
]  # fmt: skip
PLANTED = ("typer.py", "torch.py", "sitecustomize.py", "usercustomize.py", "amvlm.py", "numpy/__init__.py")


def plant(folder: Path, canary: Path) -> None:
    for name in PLANTED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import pathlib; pathlib.Path({str(canary)!r}).write_text(__name__)\n")


def followed(run: TrainingRun, qtbot: Any) -> list[Any]:
    events: list[Any] = []
    run.event_arrived.connect(events.append)
    with qtbot.waitSignal(run.ended, timeout=120_000):
        pass
    return events


def test_a_hostile_study_is_trained_without_running_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    canary, scans, home = tmp_path / "canary", tmp_path / "scans", tmp_path / "home" / "dr_smith"
    for folder in (study, scans, study / "models", study / "runs"):
        plant(folder, canary)
    home.mkdir(parents=True)
    monkeypatch.chdir(scans)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(study), str(scans)]))
    monkeypatch.setenv("HOME", str(home))
    before = {path for path in study.rglob("*") if not path.is_relative_to(study / "runs")}
    run = TrainingRun.start(LabelStore(study), [*SMALL, "--name", "new"])
    events = followed(run, qtbot)
    assert isinstance(events[-1], Finished), (run.run.path / "output.txt").read_text()
    assert not canary.exists()
    assert list(scans.iterdir()) == [scans / name.split("/")[0] for name in os.listdir(scans)]
    new = {path for path in study.rglob("*") if not path.is_relative_to(study / "runs")} - before
    assert {path.relative_to(study).parts[0] for path in new} <= {"models", "cache"}  # no compiler's cache, no log
    kept = [path for path in run.run.path.rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"output.txt", "events.jsonl", "config.json"}
    words = [str(tmp_path), "dr_smith", str(Path(sys.prefix)), *(w for w in (socket.gethostname(),) if len(w) > 5)]
    for path in (*kept, *(study / "models" / "new").iterdir()):
        for word in words:
            assert word.encode() not in path.read_bytes(), (path, word)
            assert word not in path.name
        if sys.platform != "win32":
            assert path.stat().st_mode & 0o077 == 0, path
    if len(user := getpass.getuser()) > 4:
        assert all(user.encode() not in path.read_bytes() for path in kept)


def test_a_run_that_cannot_be_resumed_says_why(study: Path, tmp_path: Path, qtbot: Any) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    store = LabelStore(study)
    run = RunFolder.named(store.folder, "theirs")
    (run.path / "checkpoint-0000002").mkdir()
    (run.path / "checkpoint-0000002" / "state.json").write_text("{")
    (run.path / "config.json").write_text('{"job": "train", "model": "../../../victim", "settings": {}}')
    assert TrainingRun.resumable(store) == "theirs"
    events = followed(TrainingRun.start(store, [], resume="theirs"), qtbot)
    assert isinstance(events[-1], Failed)
    assert "configuration is damaged" in events[-1].text
    assert (victim / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("part", ["student", "text"])
def test_a_run_by_minutes_can_be_resumed(study: Path, part: str) -> None:
    store = LabelStore(study)
    run = RunFolder.named(store.folder, "evening")
    assert TrainingRun.resumable(store) == ""
    checkpoint = run.path / part / "checkpoint-0000250"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    assert TrainingRun.resumable(store) == "evening"


def test_a_lock_of_another_program_stops_nobody(study: Path) -> None:
    store = LabelStore(study)
    run = RunFolder.named(store.folder, "killed")
    (run.path / "lock").write_text("1")  # of a process that lives, and is not ours
    (run.path / "checkpoint-0000002").mkdir()
    (run.path / "checkpoint-0000002" / "state.json").write_text("{}")
    assert TrainingRun.find(store) is None
    assert TrainingRun.resumable(store) == "killed"
    with run:
        found = TrainingRun.find(store)
        assert found is not None
        assert found.run.name == "killed"
        found.forget()
        assert TrainingRun.resumable(store) == ""


def test_asking_a_run_to_stop_whose_study_was_moved_is_a_sentence(study: Path, qtbot: Any) -> None:
    run = TrainingRun(RunFolder.new(study))
    study.rename(study.with_name("moved"))
    with qtbot.waitSignal(run.event_arrived) as arrived:
        run.stop()
    assert isinstance(arrived.args[0], Note)
    assert "could not be asked to stop" in arrived.args[0].text
    run.forget()
