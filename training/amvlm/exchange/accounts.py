"""What became of every file that an import saw, and the report that says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from amvlm.errors import printable

Fate = Literal["scan", "mask", "table", "already there", "refused", "left out"]
_ALIKE = 50


class Accounts:
    """A ledger: each file that was seen gets one fate, and a sentence where it is not used.

    Parameters
    ----------
    source : Path
        The folder (or file) that is imported; sentences name files by their place in it.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._fates: dict[Path, Fate | None] = {}
        self._sentences: dict[Fate, list[str]] = {fate: [] for fate in get_args(Fate)}

    def see(self, path: Path) -> None:
        self._fates.setdefault(path, None)

    def forget(self, path: Path) -> None:
        """A folder is no file: its files are counted."""
        del self._fates[path]

    def settle(self, fate: Fate, paths: Iterable[Path], sentence: str = "") -> None:
        """Give files that were seen a fate; the first one stays. A refusal may concern a name without a file."""
        for path in paths:
            if self._fates[path] is None:
                self._fates[path] = fate
        if sentence:
            self._sentences[fate].append(sentence)

    def leave_out(self, path: Path, why: str, fate: Fate = "left out") -> None:
        self.settle(fate, [path], f"{self.place(path)}: {why}.")

    def saw(self, path: Path) -> bool:
        return path in self._fates

    def settled(self, path: Path) -> bool:
        return self._fates[path] is not None

    @property
    def refused(self) -> list[str]:
        return self._sentences["refused"]

    def refused_in(self, folder: Path) -> list[Path]:
        """The refused files of one folder."""
        return [path for path, fate in self._fates.items() if fate == "refused" and path.parent == folder]

    def place(self, path: Path) -> str:
        """A path below the source, as text that every terminal can show."""
        shown = path.relative_to(self.source).as_posix() if path != self.source else path.name
        return printable(shown if len(shown) <= 160 else f"{shown[:80]}…{shown[-60:]}")

    def close(self, report: ImportReport) -> None:
        """Write what became of every file into a report."""
        for path in [path for path, fate in self._fates.items() if fate is None]:
            self.leave_out(path, "nothing here needs it")
        counts = Counter(fate for fate in self._fates.values() if fate is not None)
        report.files_seen = len(self._fates)
        report.files = {fate: counts[fate] for fate in get_args(Fate)}
        report.refused, report.left_out = self._sentences["refused"], self._sentences["left out"]


@dataclass
class ImportReport:
    """What an import did, in counts, and what became of every file.

    Parameters
    ----------
    refused, left_out : list of str
        One sentence for each file (or DICOM series) that was not used: it could not be trusted; it is no scan, mask
        or table of this import.
    without_mask : list of str
        Cases that came in without one, though others have masks.
    files : dict
        Fate → number of files; they add up to ``files_seen``.
    """

    cases: int = 0
    masks: int = 0
    captions: int = 0
    without_caption: int = 0
    unused_captions: int = 0
    patients: int = 0
    already_there: int = 0
    empty_masks: int = 0
    structures: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    without_mask: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[Fate, int] = field(default_factory=dict)
    files_seen: int = 0

    def sentence(self) -> str:
        """All counts in one sentence."""
        parts = [f"{self.cases} cases, {self.masks} masks, {self.captions} captions"]
        if self.already_there:
            parts.append(f"{self.already_there} images were in the study already")
        if self.captions and self.without_caption:
            parts.append(f"{self.without_caption} cases have no caption")
        if self.unused_captions:
            parts.append(f"{self.unused_captions} rows of the caption table name no image here")
        if self.without_mask:
            parts.append(f"{len(self.without_mask)} cases came without a mask")
        if self.empty_masks:
            parts.append(f"{self.empty_masks} masks are empty")
        if 0 < self.patients < self.cases:
            parts.append(f"{self.patients} patients, none in two splits")
        if self.refused:
            parts.append(f"{len(self.refused)} files were refused")
        if self.left_out:
            parts.append(f"{len(self.left_out)} files were left out")
        return "; ".join(parts) + "."

    def lines(self) -> list[str]:
        """Every file that was not used and why, and every case without a mask: plain text, a line each.

        More than 50 files left out for one reason, or scans with one note, are counted after the first 50.
        """
        left_out = _counted(self.left_out, "left out", "files")
        refused = [f"refused: {sentence}" for sentence in self.refused]
        without = [f"without a mask: {name}." for name in self.without_mask]
        return [*refused, *left_out, *without, *_counted(self.notes, "note", "scans")]


def _counted(sentences: Iterable[str], kind: str, what: str) -> list[str]:
    """A line for each sentence "name: reason"; those of one reason are counted after the first."""
    alike: Counter[str] = Counter()
    lines = []
    for sentence in sentences:
        reason = sentence.partition(": ")[2] or sentence
        alike[reason] += 1
        if alike[reason] <= _ALIKE:
            lines.append(f"{kind}: {sentence}")
    return lines + [f"{kind}: {n - _ALIKE} more {what}: {reason}" for reason, n in alike.items() if n > _ALIKE]
