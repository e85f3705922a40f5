"""A run's folder: configuration, events, who runs it, and the file that asks it to stop."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amvlm.errors import UserError
from amvlm.events import EventLog
from amvlm.imaging import write_bytes_atomically
from amvlm.outside import read_small
from amvlm.paths import Slug, check_name, inside
from amvlm.store.folders import is_folder, make_private
from amvlm.store.locks import FileLock

_LONGEST_CONFIG = 64 << 20
"""Bytes; the list of revisions of a large study takes a few of these."""


class Stopped(UserError):  # noqa: N818 - not a mistake, a wish
    """The person stopped a job before there was anything to save."""


class RunConfig(BaseModel):
    """What a run needs to go on: ``config.json``, which may come from a stranger."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: Literal["pretrain", "train"]
    model: Slug
    base: Slug | Literal[""] = ""
    base_fingerprint: Annotated[str, Field(max_length=64)] = ""
    settings: dict[str, Any]
    precision: Literal["fp32", "bf16", "fp16"]
    threads: int = Field(0, ge=0, le=4096)
    data_fingerprint: Annotated[str, Field(max_length=128)] = ""
    revisions: tuple[int, ...] = ()
    plan: dict[str, Any] | None = Field(None, description="of a run by minutes")
    generator_steps: int = Field(0, ge=0, le=1_000_000)


class RunFolder:
    """``runs/<time>/`` of a store.

    Parameters
    ----------
    path : Path
        The folder; it is made if it is not there.

    Raises
    ------
    UserError
        If it is a link, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = make_private(path)
        self.events = EventLog(path / "events.jsonl")
        self._lock = FileLock(path / "lock")
        self._stop_asked_here = False

    @classmethod
    def new(cls, store_folder: Path) -> RunFolder:
        """A fresh folder named by the time."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return cls(inside(store_folder, "runs", f"{stamp}-{secrets.token_hex(2)}"))

    @classmethod
    def named(cls, store_folder: Path, name: str) -> RunFolder:
        """The run of a name, made if it is not there.

        Raises
        ------
        UserError
            If the name is no plain name of a folder.
        """
        return cls(inside(store_folder, "runs", check_name(name, "run name")))

    @staticmethod
    def all(store_folder: Path) -> list[RunFolder]:
        """Every run of a study, the newest first; links and odd names are passed over."""
        runs = store_folder / "runs"
        found = sorted(runs.iterdir(), reverse=True) if is_folder(runs) else []
        return [RunFolder(path) for path in found if is_folder(path) and _is_name(path.name)]

    @property
    def name(self) -> str:
        return self.path.name

    def __enter__(self) -> RunFolder:
        if process_rank() > 0:  # the first of several processes holds the lock for all
            return self
        if not self._lock.take():
            raise UserError("this run is going on already", file=self.path, remedy="Wait for it, or stop it first.")
        self._stop_asked_here = False
        try:
            (self.path / "stop").unlink(missing_ok=True)
        except OSError as error:
            self._lock.give_back()
            raise UserError("the run's file “stop” cannot be removed", file=self.path, remedy="Remove it.") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.give_back()

    def running_pid(self) -> int | None:
        """The process that runs this now (0 where it does not say which), or None."""
        return self._lock.holder()

    def ask_to_stop(self) -> None:
        """The run saves a usable model at its next step and ends.

        Raises
        ------
        UserError
            If the file that asks cannot be written; within the process that runs, the wish counts all the same.
        """
        self._stop_asked_here = True
        try:
            os.close(os.open(self.path / "stop", os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600))
        except OSError as error:
            raise UserError(
                f"the run could not be asked to stop ({error.strerror})", file=self.path,
                remedy="Free disk space, or look whether the study was moved.",
            ) from error  # fmt: skip

    def stop_asked(self) -> bool:
        return self._stop_asked_here or os.path.lexists(self.path / "stop")

    def check_not_stopped(self) -> None:
        """End a job that was asked to stop before it had learned anything.

        Raises
        ------
        Stopped
        """
        if self.stop_asked():
            raise Stopped("stopped before training began, so there is no model to save", remedy="Start it again.")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``, a :class:`RunConfig`."""
        write_bytes_atomically(self.path / "config.json", RunConfig(**config).model_dump_json(indent=1).encode())

    def read_config(self) -> RunConfig:
        """Read ``config.json``; every value in it is checked, for the run may be a stranger's.

        Raises
        ------
        UserError
        """
        try:
            return RunConfig.model_validate_json(read_small(self.path / "config.json", _LONGEST_CONFIG))
        except (OSError, ValidationError) as error:
            missing = isinstance(error, FileNotFoundError)
            raise UserError(
                f"this run cannot be resumed: its configuration is {'missing' if missing else 'damaged'}",
                file=self.path, remedy="Start a new run.",
            ) from error  # fmt: skip


def process_rank() -> int:
    """This process's rank under torchrun; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except UserError:
        return False
    return True
