"""A training run seen from the window: a detached ``amvlm train``, followed through its events file.

The process outlives the window; a window that opens later finds it again in the study's ``runs`` folder.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from amvlm.children import child_environment, neutral_folder, python_command
from amvlm.errors import UserError, printable
from amvlm.events import AnyEvent, EventReader, Failed, Finished, Note
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

POLL_MS = 400
_PARTS = ("", "student/", "text/")
"""Where a run keeps its checkpoints: one by steps in its folder, one by minutes in a folder for each network."""


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
        """Run ``amvlm train STORE …`` as a process of its own session.

        It starts in a private empty folder, and imports nothing from there, from the study or from ``PYTHONPATH``.

        Raises
        ------
        UserError
            If the run's folder or the process cannot be made.
        """
        run = RunFolder.named(store.folder, resume) if resume else RunFolder.new(store.folder)
        study = os.path.abspath(store.folder)
        command = python_command("amvlm", "train", study, "--run-name", run.name, *arguments)
        if resume:
            command.append("--resume")
        detached: dict[str, Any] = (
            {"creationflags": 0x00000008 | 0x00000200}  # DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP
            if os.name == "nt"
            else {"start_new_session": True}
        )
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            with open(os.open(run.path / "output.txt", flags, 0o600), "ab") as output:
                process: subprocess.Popen[bytes] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=neutral_folder(),
                    env=child_environment(), **detached,
                )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"training could not be started ({error.strerror})", remedy="Check free disk space and permissions."
            ) from error
        found = cls(run, parent)
        found._process = process
        return found

    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def find(cls, store: LabelStore, parent: QObject | None = None) -> TrainingRun | None:
        """The run that is going on in a study, if any."""
        run = next((run for run in RunFolder.all(store.folder) if run.running_pid() is not None), None)
        return None if run is None else cls(run, parent)

    @staticmethod
    def resumable(store: LabelStore) -> str:
        """The newest run that has a checkpoint and no end, or ""."""
        for run in RunFolder.all(store.folder):
            kept = any(any(run.path.glob(f"{part}checkpoint-*/state.json")) for part in _PARTS)
            if kept and run.running_pid() is None:
                ends = EventReader(run.path / "events.jsonl").last_events()
                if not any(isinstance(event, Finished) for event in ends):
                    return run.name
        return ""

    @property
    def alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self.run.running_pid() is not None

    def stop(self) -> None:
        """Ask the run to save a usable model and end."""
        try:
            self.run.ask_to_stop()
        except UserError as error:
            self.event_arrived.emit(Note(level="warning", text=str(error)))

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
        return any(isinstance(e, Finished | Failed) for e in EventReader(self.run.path / "events.jsonl").last_events())

    def _last_words(self) -> str:
        try:
            with open(self.run.path / "output.txt", "rb") as output:
                output.seek(max(0, os.path.getsize(output.name) - 65536))
                lines = output.read(65536).decode("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        words = next((line for line in reversed(lines) if line.startswith("amvlm: ")), "")
        return (
            printable(words.removeprefix("amvlm: "))[:2000]
            or "The training process ended without a model; Resume goes on from its last checkpoint."
        )
