"""Following a job on the command line: its events on the screen, in the run's file and in TensorBoard."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from amvlm import console, interrupts
from amvlm.curves import Curves
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Failed, Finished, Note, Progress, Started, Validation
from amvlm.store.runs import RunFolder, Stopped, process_rank

STOPPING = "Stopping: what was learned so far is saved as a usable model … (Ctrl-C again ends at once, without a model)"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")
"""Ctrl-C, what Slurm and ``kill`` send, and Ctrl-Break."""


def report_events(events: Iterator[AnyEvent], run: RunFolder) -> None:
    """Show a job's events and keep them in the run's file; Ctrl-C and SIGTERM ask for a usable end.

    Raises
    ------
    UserError
        If the job ends without a model; the run's file says so too.
    Stopped
        At the second Ctrl-C, or at the first where nothing was learned yet.
    """
    try:
        with asking_to_stop(run) as has_saved, errors_in_words("; the last checkpoint is kept"):
            if process_rank() > 0:  # the first of several processes speaks for all
                for event in events:
                    if isinstance(event, Finished):
                        has_saved()
                return
            curves = Curves(run.path)
            with console.status("Starting …") as update:
                teller = Teller(update, lines=not console.is_terminal())
                for event in events:
                    if isinstance(event, Finished):
                        has_saved()
                    run.events.write(event)
                    _draw(event, curves)
                    teller.tell(event)
    except UserError as error:
        _keep_failure(run, str(error))
        raise
    except KeyboardInterrupt:
        ended = Stopped("ended at once, without a model", remedy="If it has a checkpoint, --resume goes on from there.")
        _keep_failure(run, str(ended))
        raise ended from None


@contextmanager
def asking_to_stop(run: RunFolder) -> Iterator[Callable[[], None]]:
    """Turn the first signal to end into the run's wish to stop; the second raises ``KeyboardInterrupt``.

    Yields what is to be called once the model is saved: from then on there is nothing left to end, and a further
    signal is ignored until the process is over, so that the exit code tells the truth. Under torchrun, which repeats
    signals, every further one is the first again. Outside the main thread, where handlers cannot be set, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked = saved = False

    def has_saved() -> None:
        nonlocal saved
        saved = True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if saved:
            return
        if asked and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if not asked and process_rank() == 0:
            console.say_from_signal(STOPPING)
        asked = True
        with suppress(UserError):  # a full disk: within this process the wish counts all the same
            run.ask_to_stop()

    before = {
        known: signal.signal(known, handle) for name in _SIGNALS if (known := getattr(signal, name, None)) is not None
    }
    try:
        if interrupts.interrupted:
            raise KeyboardInterrupt
        yield has_saved
    finally:
        for known, handler in before.items():
            signal.signal(known, signal.SIG_IGN if asked and saved else handler)


@contextmanager
def errors_in_words(kept: str = "") -> Iterator[None]:
    """Short memory, a GPU's too, and a failing disk, as a sentence; ``kept`` says what is not lost.

    Raises
    ------
    UserError
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise UserError(
                "the GPU's memory does not hold the job",
                remedy=f"Close what else uses it, or choose --device cpu{kept}.",
            ) from error
        if not is_short_memory(error):
            raise
        raise UserError(
            "this machine's memory does not hold the job",
            remedy=f"Close other programs, or choose a smaller batch, image size or network{kept}.",
        ) from error
    except OSError as error:
        raise UserError(
            f"a file could not be read or written ({error.strerror or type(error).__name__})",
            file=error.filename if isinstance(error.filename, str) else None,
            remedy=f"Check free disk space, permissions, and that the folder was not moved{kept}.",
        ) from error


def is_short_memory(error: BaseException) -> bool:
    """True for MemoryError, and for what torch raises where the host's memory ends."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _SHORT_MEMORY)


_SHORT_MEMORY = (
    "not enough memory", "can't allocate memory", "cannot allocate memory", "unable to mmap", "bad_alloc",
    "can't start new thread",
)  # fmt: skip


def _keep_failure(run: RunFolder, text: str) -> None:
    with suppress(UserError):  # the disk is full, or the folder gone: the error before says more
        if process_rank() == 0:
            run.events.write(Failed(text=text))


class Teller:
    """Says what a job reports; where ``lines`` go to a file, each stage, validation and tenth of a stage is one."""

    def __init__(self, update: Callable[[str], None], lines: bool) -> None:
        self._update, self._lines = update, lines
        self._last: Progress | None = None
        self._told = ("", 0)

    def tell(self, event: AnyEvent) -> None:
        match event:
            case Progress():
                self._last = event
                self._update(_progress(event))
                part = (event.stage, 10 * event.step // max(1, event.steps))
                if self._lines and part != self._told:
                    self._told = part
                    console.say(_progress(event))
            case Started():
                console.say(
                    f"{event.job}: {event.labelled} labelled, {event.unlabelled} unlabelled, {event.validation} "
                    f"validation cases; {', '.join(event.structures)}; {event.steps} steps on {event.device} in "
                    f"{event.precision}"
                )
            case Note():
                console.say(event.text, "warning" if event.level == "warning" else "")
            case Validation():
                self._validated(event)
            case Finished():
                console.result(f"Saved the model {event.model} after {_minutes(event.seconds)}.")
            case _:
                pass

    def _validated(self, event: Validation) -> None:
        rows = [f"{kind.replace('_', ' ')} " + ", ".join(f"{d:.3f}" for d in getattr(event, kind).values())
                for kind in ("student", "text_mask", "merged") if getattr(event, kind)]  # fmt: skip
        known = _losses(self._last) + _left(self._last) if self._lines and self._last is not None else ""
        console.say(f"step {event.step}, validation Dice: {'; '.join(rows)}{known}")


def _progress(event: Progress) -> str:
    return f"{event.stage}: {event.step} of {event.steps}{_left(event)}{_losses(event)}"


def _left(event: Progress) -> str:
    return "" if event.seconds_left is None else f", {_minutes(event.seconds_left)} left"


def _losses(event: Progress) -> str:
    return "".join(f"  {name} {value:.3f}" for name, value in event.losses.items())


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _draw(event: AnyEvent, curves: Curves) -> None:
    """Curves for those who like them in TensorBoard."""
    if isinstance(event, Progress):
        for name, value in event.losses.items():
            curves.add_scalar(f"loss/{name}", value, event.step)
    elif isinstance(event, Validation):
        for kind in ("student", "text_mask", "merged"):
            for structure, dice in getattr(event, kind).items():
                curves.add_scalar(f"dice/{kind}/{structure}", dice, event.step)
