"""The one exception that people read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_LONGEST_NAME = 80


def printable(text: object) -> str:
    """Text from outside as one line that every terminal and log can show.

    Lone surrogates (file names that are not UTF-8) and control characters become U+FFFD.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def _base_name(file: str | Path) -> str:
    name = printable(Path(file).name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 20]}…{name[-19:]}"


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
        self.file_name = _base_name(file) if file is not None else ""
        self.remedy = remedy
        subject = f"{self.file_name}: " if self.file_name else ""
        super().__init__(f"{subject}{what.rstrip('.')}." + (f" {remedy}" if remedy else ""))


class ChoiceNeeded(UserError):  # noqa: N818 - not a mistake, a question
    """A file or folder holds several scans: somebody has to say which.

    Parameters
    ----------
    choices : sequence of str
        One line each, in the order of their numbers (from 0).
    kind : {"series", "volume"}
        The argument of ``read_volume`` that takes the number.
    """

    def __init__(self, what: str, choices: Sequence[str], kind: str, file: str | Path | None = None) -> None:
        self.choices = tuple(choices)
        self.kind = kind
        shown = "; ".join(f"{n}: {choice}" for n, choice in enumerate(self.choices[:20]))
        super().__init__(what, file=file, remedy=f"Say which {kind}, by its number. {shown}.")


def choose_index(number: int | None, choices: Sequence[str], kind: str, file: str | Path, what: str = "") -> int:
    """Which of several scans to read: the number given, or 0 where there is only one.

    Parameters
    ----------
    number : int or None
        What was asked for, from 0.
    choices, kind
        As of :class:`ChoiceNeeded`.
    what : str, optional
        What was found, where "it holds 3 volumes" is not the right clause.

    Raises
    ------
    ChoiceNeeded
        If there are several and none was asked for.
    UserError
        If there is none of that number.
    """
    if number is None and len(choices) > 1:
        raise ChoiceNeeded(
            what or f"it holds {len(choices)} {kind if kind == 'series' else kind + 's'}", choices, kind, file
        )
    if not 0 <= (number or 0) < len(choices):
        raise UserError(f"there is no {kind} number {number}", file=file, remedy=f"Choose 0 to {len(choices) - 1}.")
    return number or 0


def volume_names(count: int) -> list[str]:
    """How volumes are offered that have no other names."""
    return [f"volume {number + 1} of {count}" for number in range(count)]
