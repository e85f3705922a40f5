"""What a training would do, before it starts: the study is measured in a child process, the plan is arithmetic.

Measuring imports torch and takes seconds, so it is no work for the window's process. The plan is then made from the
same numbers for any minutes, at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from qtpy.QtCore import QObject, QProcess, QProcessEnvironment, QTimer, Signal

from amvlm.children import child_environment, neutral_folder, python_command
from amvlm.errors import UserError, printable

if TYPE_CHECKING:
    from amvlm.planning import Fingerprint

PAUSE_MS = 3000
"""Without another change of a label, before the same study is measured again: it costs seconds of a processor."""
_REFUSED = 2
"""Exit code of a command that a sentence refused; any other failure is no reason to keep Start from saying it."""
_NO_ANSWER = "The study could not be measured; Start says why."


_ENDING: set[QProcess] = set()
"""Killed, not yet gone."""


@dataclass(frozen=True)
class Preview:
    """A line for the person, a line for each choice, and whether a training is refused."""

    line: str
    reasons: tuple[str, ...] = ()
    refused: bool = False


class PlanPreview(QObject):
    """Measures one study at a time, once its labels rest; a new request ends the older one."""

    changed = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._child: QProcess | None = None
        self._study: Path | None = None
        self._pause = QTimer(self)
        self._pause.setSingleShot(True)
        self._pause.timeout.connect(self._begin)
        self._asked: object = None
        self._facts: Fingerprint | None = None
        self._refusal, self._refused = "", False

    @property
    def measuring(self) -> bool:
        return self._child is not None or self._pause.isActive()

    def measure(self, study: Path, state: object) -> None:
        """Ask for a study; ``state`` stands for its labels: nothing happens while it is the one asked for before.

        A study that was not asked for before is measured at once, the same one after a pause; meanwhile the plan for
        its older labels stays on show.
        """
        if state == self._asked:
            return
        again = study == self._study
        facts = self._facts if again else None
        self.forget()
        self._asked, self._study, self._facts = state, study, facts
        if again:
            self._pause.start(PAUSE_MS)
        else:
            self._begin()

    def _begin(self) -> None:
        if self._study is None:
            return
        child = QProcess()
        environment = QProcessEnvironment()
        for name, value in child_environment().items():
            environment.insert(name, value)
        child.setProcessEnvironment(environment)
        child.setWorkingDirectory(str(neutral_folder()))
        child.finished.connect(lambda code, *_: self._answered(child, code))
        child.errorOccurred.connect(lambda *_: self._answered(child, -1))
        program, *arguments = python_command("amvlm", "plan", os.path.abspath(self._study), "--fingerprint")
        self._child = child
        child.start(program, arguments)
        self.changed.emit()

    def forget(self) -> None:
        """End what is being measured, without waiting for its end, and know nothing."""
        self._pause.stop()
        child, self._child = self._child, None
        self._asked, self._study, self._facts, self._refusal, self._refused = None, None, None, "", False
        if child is None:
            return
        child.finished.disconnect()
        child.errorOccurred.disconnect()
        if child.state() != QProcess.ProcessState.NotRunning:
            _ENDING.add(child)  # it outlives a window that closes meanwhile
            child.finished.connect(lambda *_: _ENDING.discard(child))
            child.kill()

    def _answered(self, child: QProcess, code: int) -> None:
        if child is not self._child:
            return
        from amvlm.planning import Fingerprint

        self._child = None
        self._refusal, self._refused = "", False
        answer, words = (bytes(stream.data()).decode("utf-8", "replace") for stream in
                         (child.readAllStandardOutput(), child.readAllStandardError()))  # fmt: skip
        try:
            self._facts = Fingerprint.model_validate_json(answer.strip().rpartition("\n")[2]) if code == 0 else None
        except ValidationError:
            self._facts = None
        if self._facts is None:
            said = next((line for line in reversed(words.splitlines()) if line.startswith("amvlm: ")), "")
            self._refusal = printable(said.removeprefix("amvlm: "))[:1000] or _NO_ANSWER
            self._refused = code == _REFUSED
        self.changed.emit()

    def of(self, minutes: float, labelled_only: bool = False) -> Preview:
        """What to show for these minutes, and for a training that leaves unlabelled scans alone."""
        if self._facts is None:
            if self._refusal:
                return Preview(self._refusal, refused=self._refused)
            return Preview("Measuring the study and this machine …" if self.measuring else "")
        from amvlm.planning import make_plan

        try:
            unlabelled = 0 if labelled_only else self._facts.unlabelled
            plan = make_plan(self._facts.model_copy(update={"minutes": minutes, "unlabelled": unlabelled}))
        except UserError as error:
            words = re.sub(r"--minutes (\d+)", r"\1 minutes", str(error)).replace(" 1 minutes", " a minute")
            return Preview(words, refused=True)
        reasons = tuple(f"{reason.choice}: {reason.value} ({reason.why})" for reason in plan.reasons)
        return Preview(f"{plan.in_short(self._facts.machine.device)}.", reasons)
