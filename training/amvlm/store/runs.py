"""A run's folder: configuration, events, who runs it, and the file that asks it to stop."""

from __future__ import annotations

import datetime
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amvlm.errors import UserError
from amvlm.events import EventLog
from amvlm.imaging import write_bytes_atomically


class RunFolder:
    """``runs/<time>/`` of a store.

    Parameters
    ----------
    path : Path
        The folder; it is made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir(parents=True, exist_ok=True)
        self.events = EventLog(path / "events.jsonl")

    @classmethod
    def new(cls, store_folder: Path) -> RunFolder:
        """A fresh folder named by the time."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return cls(store_folder / "runs" / f"{stamp}-{secrets.token_hex(2)}")

    @property
    def name(self) -> str:
        return self.path.name

    def __enter__(self) -> RunFolder:
        if process_rank() > 0:  # the first of several processes holds the lock for all
            return self
        if self.running_pid() is not None:
            raise UserError("this run is going on already", file=self.path, remedy="Wait for it, or stop it first.")
        (self.path / "stop").unlink(missing_ok=True)
        (self.path / "lock").write_text(str(os.getpid()))
        return self

    def __exit__(self, *_: object) -> None:
        if process_rank() == 0:
            (self.path / "lock").unlink(missing_ok=True)

    def running_pid(self) -> int | None:
        """The process that holds the lock, if it still lives."""
        try:
            pid = int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None
        return pid if _alive(pid) else None

    def ask_to_stop(self) -> None:
        """The run saves a usable model at its next step and ends."""
        (self.path / "stop").touch()

    def stop_asked(self) -> bool:
        return (self.path / "stop").exists()

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_bytes_atomically(self.path / "config.json", json.dumps(config, indent=1).encode())

    def read_config(self) -> dict[str, Any]:
        try:
            config = json.loads((self.path / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                "this run cannot be resumed: its configuration is missing", file=self.path, remedy="Start a new run."
            ) from error
        return dict(config)


def process_rank() -> int:
    """This process's rank under torchrun; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def _alive(pid: int) -> bool:
    if os.name == "nt":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # type: ignore[attr-defined,unused-ignore]
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)  # type: ignore[attr-defined,unused-ignore]
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    if status.exists():  # a zombie has ended; its parent has not looked yet
        return status.read_text().rsplit(")", 1)[-1].split()[0] != "Z"
    return True
