"""Ctrl-C and SIGTERM on the real command: the exit code is 0 only where a model was saved, and that can be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amvlm import interrupts
from amvlm.events import EventReader, Failed, Finished
from amvlm.following import report_events
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder, Stopped

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals"),
    pytest.mark.timeout(600),  # on a busy machine the libraries alone take minutes to load
]
SMALL = ["--batch-size", "2", "--device", "cpu", "--threads", "1", "--precision", "fp32", "--run-name", "r",
         "--name", "m"]  # fmt: skip
NETWORK = ["--network", "unet", "--channels", "8", "--channels", "16"]


def interrupted(
    store: LabelStore, command: list[str], moment: str, number: int = signal.SIGINT, times: int = 1
) -> tuple[int, str, list[object]]:
    """Start a job, send signals once its events (or its cache) show a moment; exit code, stderr, events."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "amvlm", *command], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        events = store.folder / "runs" / "r" / "events.jsonl"

        def seen() -> bool:
            if moment == "images":
                return any((store.folder / "cache").rglob("*.npy"))
            return events.is_file() and moment in events.read_text()

        try:
            while not seen() and process.poll() is None:
                time.sleep(0.02)
            for _ in range(times):
                process.send_signal(number)
                time.sleep(0.2)  # the system may merge two signals that wait
            _, stderr = process.communicate()
        finally:
            process.kill()
    return process.returncode, stderr, list(EventReader(events).new_events())


def test_while_images_are_read_there_is_nothing_to_save(sample_store: LabelStore) -> None:
    code, stderr, events = interrupted(
        sample_store, ["train", str(sample_store.folder), *SMALL, "--steps", "500", *NETWORK], "images"
    )
    assert code == 130
    assert "no model to save" in stderr
    assert isinstance(events[-1], Failed)
    assert not (sample_store.folder / "models" / "m").exists()


def test_in_calibration_the_text_mask_is_saved_without_a_prediction(sample_store: LabelStore) -> None:
    code, stderr, events = interrupted(
        sample_store, ["train", str(sample_store.folder), *SMALL, "--steps", "5000", *NETWORK], "calibrating"
    )
    assert code == 0, stderr
    assert isinstance(events[-1], Finished)
    assert "Traceback" not in stderr
    model = AmvlmModel.load(sample_store.folder / "models" / "m")
    assert model.student is None
    assert model.card.structures


def test_in_training_sigterm_saves_a_whole_model(judged: LabelStore) -> None:
    code, stderr, events = interrupted(
        judged, ["train", str(judged.folder), *SMALL, "--steps", "5000", *NETWORK], '"training"', signal.SIGTERM
    )
    assert code == 0, stderr
    assert isinstance(events[-1], Finished)
    assert events[-1].stopped_early
    assert AmvlmModel.load(judged.folder / "models" / "m").student is not None


def test_twice_ends_at_once_without_a_model(judged: LabelStore) -> None:
    code, stderr, events = interrupted(
        judged, ["train", str(judged.folder), *SMALL, "--steps", "5000", *NETWORK], '"training"', times=2
    )
    if isinstance(events[-1], Finished):  # it was saved within the 0.2 s between the two
        assert code == 0
        return
    assert code == 130
    assert "ended at once" in stderr
    assert "Traceback" not in stderr
    assert not (judged.folder / "models" / "m").exists()


def test_pretraining_is_stopped_the_same_way(sample_store: LabelStore) -> None:
    steps = ["--preset", "tiny", "--steps", "5000", "--generator-steps", "5000", "--image-size", "32"]
    code, stderr, events = interrupted(
        sample_store, ["pretrain", str(sample_store.folder), *SMALL, *steps], "aligning images and captions"
    )
    assert code == 0, stderr
    assert isinstance(events[-1], Finished)
    assert AmvlmModel.load(sample_store.folder / "models" / "m").card.kind == "pretrained"


def test_while_the_libraries_are_loaded_a_sentence_answers() -> None:
    loading = "import sys; sys.modules['amvlm.cli'] = None\nimport builtins, amvlm.start\n" + (
        "real = builtins.__import__\n"
        "def loads(name, *rest):\n"
        "    if name == 'amvlm': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = loads\n"
        "amvlm.start.main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", loading], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "amvlm: ended by Ctrl-C. What was saved before is kept; run the command again.\n"


def test_a_signal_that_a_library_swallowed_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LabelStore.create(tmp_path / "study")
    run = RunFolder.new(tmp_path / "study")
    monkeypatch.setattr(interrupts, "interrupted", False)
    with pytest.raises(KeyboardInterrupt):
        interrupts.remember(signal.SIGINT, None)
    with run, pytest.raises(Stopped):
        report_events(iter(()), run)


@pytest.fixture
def judged(sample_store: LabelStore) -> LabelStore:
    """Six validation cases are judged, so that α is fitted on them and nothing is cross-fitted."""
    for case in sample_store.cases("val"):
        for structure in sample_store.structures():
            mask = sample_store.masks.read(sample_store.references()[case.case_id, structure.name]).array
            sample_store.accept(case.case_id, structure.name, mask)
    return sample_store
