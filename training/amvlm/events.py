"""What a long job reports: typed events, each one line of JSON in a run's ``events.jsonl``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from amvlm.errors import UserError
from amvlm.paths import Slug

_LONGEST_LINE, _BLOCK, _TAIL = 1 << 16, 1 << 20, 1 << 18
"""Bytes: of an event, of what is read at once, and of the end of a file that is looked at for a run's end."""
Steps = Annotated[int, Field(ge=0, le=10**9)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Started(_Event):
    """A run began: how much it has to learn from."""

    event: Literal["started"] = "started"
    job: str
    labelled: int = Field(ge=0, description="cases with an accepted or absent revision used for training")
    unlabelled: int = Field(ge=0)
    validation: int = Field(default=0, ge=0, description="accepted cases kept for validation")
    structures: list[str]
    steps: Steps
    device: str
    precision: str
    minutes: float = Field(default=0.0, ge=0, description="of a training by minutes; 0: by steps")


class Note(_Event):
    """A sentence for the person."""

    event: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    text: str


class Progress(_Event):
    """How far a job is; losses are means since the last report."""

    event: Literal["progress"] = "progress"
    stage: str
    step: Steps
    steps: Steps
    losses: dict[str, float] = Field(default_factory=dict)
    seconds_left: float | None = None


class Validation(_Event):
    """Mean per-case Dice in [0, 1] by structure, on cases no network trained on."""

    event: Literal["validation"] = "validation"
    step: Steps
    student: dict[str, float]
    text_mask: dict[str, float]
    merged: dict[str, float]


class Finished(_Event):
    """A model was saved."""

    event: Literal["finished"] = "finished"
    model: Slug
    stopped_early: bool = False
    seconds: float


class Failed(_Event):
    """The job ended without a model."""

    event: Literal["failed"] = "failed"
    text: str


Event = Annotated[Started | Note | Progress | Validation | Finished | Failed, Field(discriminator="event")]
_ADAPTER: TypeAdapter[Started | Note | Progress | Validation | Finished | Failed] = TypeAdapter(Event)
AnyEvent = Started | Note | Progress | Validation | Finished | Failed


class EventLog:
    """Appends events to a file, one JSON line each, flushed at once; readable by this user alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: AnyEvent) -> None:
        """Append an event.

        Raises
        ------
        UserError
            If the disk is full, or the run's folder is gone.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            with open(os.open(self._path, flags, 0o600), "ab") as stream:
                stream.write(event.model_dump_json().encode() + b"\n")
        except OSError as error:
            gone = not self._path.parent.is_dir()
            raise UserError(
                "the run's folder is gone" if gone else f"the run's events could not be written ({error.strerror})",
                file=self._path.parent,
                remedy="Was the study moved or deleted? Start again where it is now."
                if gone
                else "Free disk space, then go on with --resume; the last checkpoint is kept.",
            ) from error


class EventReader:
    """Follows an events file that another process writes; a half-written last line waits for its end.

    The file may be a stranger's: a line longer than any event is passed over, and never held in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._passing_over = False

    def new_events(self) -> Iterator[AnyEvent]:
        """Yield the events written since the last call; lines of a later version are passed over."""
        if not self._path.is_file() or self._path.is_symlink():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            while chunk := stream.read(_BLOCK):
                end = chunk.rfind(b"\n") + 1
                lines = chunk[:end].split(b"\n")[:-1]
                if lines and self._passing_over:
                    self._passing_over, lines = False, lines[1:]
                if not end and len(chunk) > _LONGEST_LINE:
                    self._passing_over, end = True, len(chunk)
                self._offset += end
                yield from _parsed(lines)
                if not end or len(chunk) < _BLOCK:
                    return
                stream.seek(self._offset)

    def last_events(self) -> Iterator[AnyEvent]:
        """Yield the events at the end of the file, without reading the rest."""
        if not self._path.is_file() or self._path.is_symlink():
            return
        with self._path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL))
            yield from _parsed(stream.read(_TAIL).split(b"\n"))


def _parsed(lines: list[bytes]) -> Iterator[AnyEvent]:
    for line in lines:
        if len(line) <= _LONGEST_LINE:
            try:
                yield _ADAPTER.validate_json(line)
            except ValidationError:
                continue
