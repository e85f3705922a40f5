"""One owned worker thread: progress, cancel, late results dropped.

Torch lives in this thread alone; a fresh thread for every call would lose its kernel caches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qtpy.QtCore import QObject, Signal

from amvlm.errors import ChoiceNeeded
from napari_amvlm.wording import sentence

PROMPT = "prompt"
"""The kind of jobs that change the masks on screen: nothing is judged or corrected meanwhile."""
Work = Callable[[], Iterator[Any]]


@dataclass(eq=False)
class Job:
    """Something for the worker: ``work`` is a generator function; what it yields goes to ``on_result``.

    ``owner`` is what the job is bound to (a case): its results are dropped once that is no longer current.
    ``on_choice`` gets the question where a file or folder holds several scans. A ``polite`` job lets others pass
    between its steps.
    """

    work: Work
    owner: object = None
    kind: str = ""
    on_result: Callable[[Any], None] = lambda _: None
    on_end: Callable[[bool], None] = lambda _: None
    on_error: Callable[[str], None] = lambda _: None
    on_choice: Callable[[ChoiceNeeded], None] | None = None
    polite: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """The job ends at its next step."""
        self.cancelled.set()


class Worker(QObject):
    """Runs jobs one after another. Callbacks run in the thread that made the worker (the GUI's)."""

    _delivered = Signal(object, object)
    busy_changed = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pending: list[Job] = []
        self._closed = False
        self._delivered.connect(self._deliver)
        self._thread = threading.Thread(target=self._run, name="amvlm-worker", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def has_job_of(self, owner: object, kind: str = "") -> bool:
        """True while a job of that owner (and kind) waits or runs and was not cancelled."""
        return any(
            job.owner is owner and (not kind or job.kind == kind) and not job.cancelled.is_set()
            for job in self._pending
        )

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def submit(self, job: Job) -> Job:
        """Queue a job; returns it, so that it can be cancelled."""
        self._pending.append(job)
        self.busy_changed.emit(True)
        self._queue.put(job)
        return job

    def cancel_owned_by(self, owner: object) -> bool:
        """Cancel every job bound to ``owner``; False where there is none."""
        owned = [job for job in self._pending if job.owner is owner and not job.cancelled.is_set()]
        for job in owned:
            job.cancel()
        return bool(owned)

    def close(self, timeout: float = 2.0) -> None:
        """Cancel everything and end the thread; nothing is delivered any more."""
        self._closed = True
        for job in self._pending:
            job.cancel()
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self._perform(job)

    def _perform(self, job: Job) -> None:
        try:
            if not job.cancelled.is_set():
                steps = job.work()
                for result in steps:
                    if job.cancelled.is_set():
                        close = getattr(steps, "close", None)
                        if close is not None:
                            close()
                        break
                    self._send(job, partial(job.on_result, result))
                    if job.polite:
                        self._let_pass()
            self._send(job, lambda: job.on_end(not job.cancelled.is_set()), last=True)
        except ChoiceNeeded as question:
            answer = job.on_choice or (lambda asked: job.on_error(str(asked)))
            self._send(job, partial(answer, question), last=True)
        except BaseException as error:  # noqa: BLE001 - whatever a job raises, an exit too, this thread must live on
            self._send(job, partial(job.on_error, sentence(error)), last=True)

    def tell(self, call: Callable[[], None]) -> None:
        """For a job's own use: call something in the window's thread, such as a sign of progress."""
        if not self._closed:
            self._delivered.emit((None, False), call)

    def _let_pass(self) -> None:
        """Run what came in while a polite job goes on; other polite ones wait for their turn."""
        waiting = []
        while not self._queue.empty():
            job = self._queue.get()
            if job is None or job.polite:
                waiting.append(job)
            else:
                self._perform(job)
        for job in waiting:
            self._queue.put(job)

    def _send(self, job: Job, call: Callable[[], None], last: bool = False) -> None:
        if not self._closed:
            self._delivered.emit((job, last), call)

    def _deliver(self, which: tuple[Job | None, bool], call: Callable[[], None]) -> None:
        job, last = which
        if job is not None and last:
            self._pending.remove(job)
            self.busy_changed.emit(self.busy)
        if self._closed or (job is not None and job.cancelled.is_set() and not last):
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - Qt would end the program, napari show a traceback
            text = sentence(error)
            if job is not None:
                job.cancel()
                job.on_error(text)
