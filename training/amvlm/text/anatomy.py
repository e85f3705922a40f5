"""A table of structures and their words (``anatomy.csv``, our own), and which of them a text names."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Literal

from amvlm.text.terms import FILLERS, POSITIONS, SEPARATORS, key_of, words_of

Key = frozenset[str]
SideAsked = Literal["left", "right", "both"]
SIDES_ASKED: tuple[SideAsked, ...] = ("left", "right", "both")
_WORDS_OF_PLACE = {
    "front": "anterior", "back": "posterior", "rear": "posterior", "top": "upper", "bottom": "lower",
    "upper": "superior", "superior": "upper", "lower": "inferior", "inferior": "lower",
}  # fmt: skip


_IN_THE_BRAIN = {"rostral": "anterior", "caudal": "posterior"}
"""Words that mean another direction in the rest of the body."""


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Parameters
    ----------
    name : str
        In American spelling, unique.
    synonyms, latin, lay : tuple of str
        Other names of the same thing.
    adjectives : tuple of str
        Single words that stand for the name in a longer one: "hepatic vein" is the vein of the liver.
    abbreviations : tuple of str
        A final "?" declares that it stands for several structures; it is never read, only explained.
    paired : bool
        It exists on both sides, or may lie on either: a side may be asked for.
    part_of : str
        The name of the whole, or "".
    within : str
        A structure that is outlined where this one is asked for and not known, with a note; or "".
    """

    name: str
    synonyms: tuple[str, ...]
    adjectives: tuple[str, ...]
    latin: tuple[str, ...]
    lay: tuple[str, ...]
    abbreviations: tuple[str, ...]
    paired: bool
    part_of: str
    within: str

    def terms(self) -> Iterator[str]:
        """Every wording of it that can be read."""
        yield from (self.name, *self.synonyms, *self.latin, *self.lay)
        yield from (word for word in self.abbreviations if not word.endswith("?"))


@dataclass(frozen=True)
class Concept:
    """What a text names: an entry, and the side that was asked apart from its name."""

    entry: Entry
    side: SideAsked | None = None


class Anatomy:
    """The table, indexed by keys (sets of words)."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._noun = self._nouns()
        self._by_key: dict[Key, Entry] = {}
        self._unclear: dict[Key, list[Entry]] = {}
        self.joint: set[Key] = set()
        for entry in self.entries.values():
            for term in entry.terms():
                key = self.key(term.lower())
                self._by_key.setdefault(key, entry)
                if " and " in term:
                    self.joint.add(key)
            for word in (w.rstrip("?") for w in entry.abbreviations if w.endswith("?")):
                self._unclear.setdefault(self.key(word), []).append(entry)
        self._by_word: dict[str, list[Key]] = {}
        for key in self._by_key:
            for word in key:
                self._by_word.setdefault(word, []).append(key)

    def _nouns(self) -> dict[str, tuple[str, ...]]:
        """Adjectives and single Latin words → the words of the name."""
        nouns: dict[str, tuple[str, ...]] = {}
        for entry in self.entries.values():
            name = tuple(w for w in words_of(entry.name) if w not in FILLERS)
            for term in (*entry.adjectives, *entry.latin):
                words = words_of(term)
                if len(words) == 1 and words[0] not in name:
                    nouns[words[0]] = name
        return {word: tuple(part for w in name for part in nouns.get(w, (w,))) for word, name in nouns.items()}

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every word of every readable term, in the form of :func:`words_of`."""
        return frozenset(self._by_word) | frozenset(self._noun)

    def words(self, text: str) -> list[str]:
        """The words of a text in order, adjectives turned into nouns; fillers and separators stay."""
        return self.nouns(words_of(text))

    def nouns(self, words: Iterable[str]) -> list[str]:
        """Words with adjectives turned into the words of their structure's name."""
        return [part for word in words for part in self._noun.get(word, (word,))]

    def key(self, text: str) -> Key:
        """What a text means, without order. A text of nothing but fillers keeps them."""
        words = self.words(text)
        return key_of(words) or frozenset(words) - frozenset(SEPARATORS)

    def unclear(self, key: Key) -> list[Entry]:
        """The structures that an ambiguous abbreviation may stand for."""
        return next((self._unclear[Key((word,))] for word in key if Key((word,)) in self._unclear), [])

    def concept(self, key: Key) -> Concept | None:
        """The structure whose every word the key holds, and nothing else but a side and the wholes it is a part of."""
        for form in _forms(key):
            if form in self._by_key:
                return Concept(self._by_key[form])
        for word in key & _IN_THE_BRAIN.keys():
            found = self.concept((key - {word}) | {_IN_THE_BRAIN[word]})
            if found is not None and any(whole.name == "brain" for whole in self.wholes(found.entry)):
                return found
        for form in _forms(key):
            asked = [side for side in SIDES_ASKED if side in form]
            entry = self._entry(form) or (self._entry(form - set(asked)) if asked else None)
            if entry is not None:
                own = self._entry(form) is not None
                side = None if own or not asked else asked[0] if len(asked) == 1 else "both"
                return Concept(entry, side)
        return None

    def _entry(self, key: Key) -> Entry | None:
        """Directly, after one phrase is replaced by the name it stands for, or beside the names of its wholes."""
        if key in self._by_key:
            return self._by_key[key]
        phrases = [k for k in dict.fromkeys(k for word in key for k in self._by_word.get(word, ())) if k < key]
        for phrase in sorted(phrases, key=lambda k: (-len(k), sorted(k))):
            entry = self._by_key[phrase]
            renamed = (key - phrase) | self.key(entry.name)
            if renamed != key and renamed in self._by_key:
                return self._by_key[renamed]
        for phrase in sorted(phrases, key=lambda k: (-len(k), sorted(k))):
            entry = self._by_key[phrase]
            wholes = [self.key(whole.name) for whole in self.wholes(entry)]
            rest = key - phrase
            if not rest & POSITIONS and any(rest <= whole for whole in wholes):
                return entry
        return None

    def wholes(self, entry: Entry) -> list[Entry]:
        """What an entry is a part of, the nearest first."""
        found: list[Entry] = []
        while entry.part_of and len(found) < 10:
            entry = self.entries[entry.part_of]
            found.append(entry)
        return found


def _forms(key: Key) -> list[Key]:
    """A key, and the same with words of place in another wording ("front" for anterior)."""
    words = [word for word in key if word in _WORDS_OF_PLACE]
    other = [(key - {word}) | {_WORDS_OF_PLACE[word]} for word in sorted(words)]
    return [key, *other]


def _cells(row: dict[str, str], column: str) -> tuple[str, ...]:
    return tuple(cell for cell in row[column].split("|") if cell)


def _entry_of(row: dict[str, str]) -> Entry:
    return Entry(
        row["name"], _cells(row, "synonyms"), _cells(row, "adjectives"), _cells(row, "latin"), _cells(row, "lay"),
        _cells(row, "abbreviations"), row["paired"] == "yes", row["part_of"], row["within"],
    )  # fmt: skip


@lru_cache(maxsize=1)
def anatomy() -> Anatomy:
    """The table of the package, read once."""
    text = resources.files("amvlm.text").joinpath("anatomy.csv").read_text("ascii")
    return Anatomy(map(_entry_of, csv.DictReader(text.splitlines())))
