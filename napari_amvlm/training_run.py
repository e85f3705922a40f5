"""A training run seen from the window: a detached ``amvlm train``, followed through its events file.

The process outlives the window; a window that opens later finds it again in the study's ``runs`` folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qtpy.QtCore import QObject, QTimer, Signal

from amvlm.events import AnyEvent, EventReader, Failed, Finished
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

POLL_MS = 400


class TrainingRun(QObject):
    """Starts, finds, follows and stops one run."""

    event_arrived = Signal(object)
    ended = Signal()

    def __init__(self, run: RunFolder, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.run = run
        self._reader = EventReader(run.path / "events.jsonl")
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.poll)
        self._timer.start(POLL_MS)

    @classmethod
    def start(
        cls, store: LabelStore, arguments: list[str], resume: str = "", parent: QObject | None = None
    ) -> TrainingRun:
        """Run ``amvlm train STORE …`` as a process of its own session."""
        run = RunFolder(store.folder / "runs" / resume) if resume else RunFolder.new(store.folder)
        command = [sys.executable, "-m", "amvlm", "train", str(store.folder), "--run-name", run.name, *arguments]
        if resume:
            command.append("--resume")
        detached = (
            {"creationflags": 0x00000008 | 0x00000200}  # DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP
            if os.name == "nt"
            else {"start_new_session": True}
        )
        with (run.path / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=store.folder, **detached
            )  # type: ignore[call-overload]
        found = cls(run, parent)
        found._process = process
        return found

    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def find(cls, store: LabelStore, parent: QObject | None = None) -> TrainingRun | None:
        """The run that is going on in a study, if any."""
        for folder in sorted((store.folder / "runs").glob("*/lock"), reverse=True):
            run = RunFolder(folder.parent)
            if run.running_pid() is not None:
                return cls(run, parent)
        return None

    @staticmethod
    def resumable(store: LabelStore) -> str:
        """The newest run that has a checkpoint and no end, or ""."""
        for path in sorted((store.folder / "runs").glob("*/checkpoint-*/state.json"), reverse=True):
            folder: Path = path.parent.parent
            events = list(EventReader(folder / "events.jsonl").new_events())
            if RunFolder(folder).running_pid() is None and not any(isinstance(e, Finished) for e in events):
                return folder.name
        return ""

    @property
    def alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self.run.running_pid() is not None

    def stop(self) -> None:
        """Ask the run to save a usable model and end."""
        self.run.ask_to_stop()

    def forget(self) -> None:
        """Stop following; the process goes on."""
        self._timer.stop()

    def poll(self) -> None:
        """Deliver what is new; end when the process has ended."""
        alive = self.alive
        last: AnyEvent | None = None
        for event in self._reader.new_events():
            last = event
            self.event_arrived.emit(event)
        if alive:
            return
        self._timer.stop()
        if not isinstance(last, Finished | Failed) and not self._ended_well():
            self.event_arrived.emit(Failed(text=self._last_words()))
        self.ended.emit()

    def _ended_well(self) -> bool:
        return any(isinstance(e, Finished | Failed) for e in EventReader(self.run.path / "events.jsonl").new_events())

    def _last_words(self) -> str:
        try:
            lines = (self.run.path / "output.txt").read_text("utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        words = next((line for line in reversed(lines) if line.startswith("amvlm: ")), "")
        return (
            words.removeprefix("amvlm: ")
            or "The training process ended without a model; Resume goes on from its last checkpoint."
        )
