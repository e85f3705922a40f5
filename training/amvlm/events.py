"""What a long job reports: typed events, each one line of JSON in a run's ``events.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


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
    steps: int
    device: str
    precision: str


class Note(_Event):
    """A sentence for the person."""

    event: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    text: str


class Progress(_Event):
    """How far a job is; losses are means since the last report."""

    event: Literal["progress"] = "progress"
    stage: str
    step: int
    steps: int
    losses: dict[str, float] = Field(default_factory=dict)
    seconds_left: float | None = None


class Validation(_Event):
    """Mean per-case Dice in [0, 1] by structure, on cases no network trained on."""

    event: Literal["validation"] = "validation"
    step: int
    student: dict[str, float]
    text_mask: dict[str, float]
    merged: dict[str, float]


class Finished(_Event):
    """A model was saved."""

    event: Literal["finished"] = "finished"
    model: str
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
    """Appends events to a file, one JSON line each, flushed at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: AnyEvent) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(event.model_dump_json() + "\n")


class EventReader:
    """Follows an events file that another process writes; a half-written last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> Iterator[AnyEvent]:
        """Yield the events written since the last call; lines of a later version are passed over."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            chunk = stream.read()
        complete = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                yield _ADAPTER.validate_json(line)
            except ValidationError:
                continue
