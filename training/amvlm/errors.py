"""The one exception that people read."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Something a person can mend: what happened, in which file, and what to do.

    Parameters
    ----------
    what : str
        What happened, as a clause without a final full stop.
    file : str or Path, optional
        The file concerned. Only its base name is ever shown or logged: paths may hold patient names.
    remedy : str, optional
        What the person can do, as a sentence.
    """

    def __init__(self, what: str, *, file: str | Path | None = None, remedy: str = "") -> None:
        self.what = what
        self.file_name = Path(file).name if file is not None else ""
        self.remedy = remedy
        subject = f"{self.file_name}: " if self.file_name else ""
        super().__init__(f"{subject}{what.rstrip('.')}." + (f" {remedy}" if remedy else ""))
