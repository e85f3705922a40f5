"""Prompts for a model that was trained on captions: free words, put into the words of its captions or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from amvlm.text.anatomy import SIDES_ASKED, Anatomy, Key, SideAsked
from amvlm.text.places import (
    LEVEL_WORDS,
    Cells,
    UnreadPlaceError,
    canonical_caption,
    is_lung_finding,
    read_places,
)
from amvlm.text.reading import ReadPrompt, Refusals
from amvlm.text.study_words import StudyWords

_FINDING = "pulmonary infection"
_TEMPLATE = frozenset({"pulmonary", "infection", "infected", "lung"})


class CaptionReader:
    """Reads places and free words.

    Parameters
    ----------
    free_words : frozenset of str
        The words of the captions as they are; empty for a model of structures.
    captions : tuple of str
    """

    def __init__(
        self, study: StudyWords, table: Anatomy, free_words: frozenset[str], captions: tuple[str, ...]
    ) -> None:
        self._study = study
        self._table = table
        self._refusals = Refusals(study, table)
        self._captions = captions
        self._free_words = frozenset(word for free in free_words for word in table.words(free))
        self.templated = free_words >= _TEMPLATE

    @property
    def words(self) -> frozenset[str]:
        return self._free_words

    def with_place(self, reading: ReadPrompt) -> ReadPrompt:
        """An exact wording of the study, with the places that it names."""
        words = self._table.words(reading.text)
        try:
            cells = read_places(words) if is_lung_finding(words) else {}
        except UnreadPlaceError:
            cells = {}
        return _placed(replace(reading, count=_count(words)), cells) if cells else reading

    def lung_finding(self, typed: str, words: list[str]) -> ReadPrompt:
        """An infection of the lungs under a model of captions, put into their template."""
        structures = self._study.of_entry(_FINDING) or (list(self._study.known) if len(self._study.known) == 1 else [])
        structure = structures[0] if len(structures) == 1 else None
        name = structure.name if structure else None
        try:
            cells = read_places(words)
        except UnreadPlaceError as error:
            return self._refusals.refused(typed, str(error))
        if not cells:
            caption = structure.caption(typed) if structure else _FINDING
            note = "" if caption == typed else f"Read as “{caption}”."
            return ReadPrompt(typed, name, caption=caption, note=note, count=_count(words))
        caption = typed if typed in self._captions else canonical_caption(cells, self._captions)
        note = "" if caption == typed else f"Read as “{caption}”."
        return _placed(ReadPrompt(typed, name, caption=caption, note=note, count=_count(words)), cells)

    def as_it_stands(self, typed: str) -> ReadPrompt:
        """A caption of the study as it stands, whatever it says."""
        name = self._study.known[0].name if len(self._study.known) == 1 else None
        return self.with_place(ReadPrompt(typed, name, caption=typed))

    def free(self, typed: str, words: list[str], key: Key) -> ReadPrompt | None:
        """A caption in the words of the captions that the model was trained on, if it names something of them."""
        if not self._free_words or self.templated or not key <= self._free_words:
            return None
        levels = list(dict.fromkeys(LEVEL_WORDS[word] for word in words if word in LEVEL_WORDS))
        if {"left", "right"} <= key or len(levels) > 1 or not any(self._table.concept(Key((word,))) for word in key):
            return None  # without their order, the words of two places could change places
        same = next((caption for caption in self._captions if self._table.key(caption) == key), typed)
        sides: list[SideAsked] = [side for side in SIDES_ASKED if side in key]
        name = self._study.known[0].name if len(self._study.known) == 1 else None
        note = "" if same == typed else f"Read as “{same}”."
        reading = ReadPrompt(typed, name, caption=same, note=note, count=_count(words))
        level = levels[0] if len(levels) == 1 else None
        return replace(reading, side=sides[0] if len(sides) == 1 else None, level=level)


def _placed(reading: ReadPrompt, cells: Cells) -> ReadPrompt:
    """A reading with its side, and its level where it is one and the same everywhere."""
    levels = {level for named in cells.values() for level in named}
    side: SideAsked = next(iter(cells)) if len(cells) == 1 else "both"
    return replace(reading, side=side, level=levels.pop() if len(levels) == 1 else None)


def _count(words: Sequence[str]) -> int | None:
    return next((int(word) for word in words if word.isdigit() and len(word) < 3), None)
