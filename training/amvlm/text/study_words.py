"""The words of one study or model: its structures by wording, by key, and by the concept that their names have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rapidfuzz import fuzz, process

from amvlm.text.anatomy import Anatomy, Concept, Entry, Key, SideAsked
from amvlm.text.captions import normalise_caption
from amvlm.text.terms import plain
from amvlm.text.views import names_a_place

SUGGESTIONS = 3


class KnownWords(Protocol):
    """A structure of a study's store or of a model's card."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Known:
    """A structure's words, hashable."""

    name: str
    aliases: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    @classmethod
    def of(cls, structure: KnownWords) -> Known:
        if isinstance(structure, cls):
            return structure
        return cls(structure.name, tuple(structure.aliases), tuple(structure.prompts))

    def caption(self, typed: str = "") -> str:
        """What the model embeds: the wording that was typed if the study uses it, else the one that stands for all.

        A wording with a side or level of its own ("infection left base") never stands for all.
        """
        if typed in map(normalise_caption, self.prompts):
            return typed
        placed = names_a_place(self.name)
        return normalise_caption(next((p for p in self.prompts if names_a_place(p) == placed), self.name))


class StudyWords:
    """Structures indexed for the reader.

    Parameters
    ----------
    known : sequence of Known
    table : Anatomy
        Names and, where a name is not in the table, aliases are looked up in it.

    Attributes
    ----------
    joint : set of Key
        Keys of wordings that hold an "and" or a comma of their own.
    """

    def __init__(self, known: Sequence[Known], table: Anatomy) -> None:
        self.known = tuple(known)
        self._exact: dict[str, list[Known]] = {}
        self._by_key: dict[Key, list[Known]] = {}
        self._concepts: dict[str, Concept] = {}
        self._by_entry: dict[str, list[Known]] = {}
        self._names: dict[str, str] = {}
        self.joint: set[Key] = set()
        words: set[str] = set()
        for structure in self.known:
            self._names[structure.name] = plain(structure.name)
            for term in (structure.name, *structure.aliases, *structure.prompts):
                _add(self._exact, normalise_caption(term), structure)
                if term in structure.prompts and names_a_place(term):
                    continue  # a key has no order, and two places could change places
                for key in {table.key(term), table.key(term.lower())}:
                    words |= key
                    _add(self._by_key, key, structure)
                    if {"and", "or", ","} & set(table.words(term)):
                        self.joint.add(key)
            self._enter_concept(structure, table)
        self.words = frozenset(words)

    def _enter_concept(self, structure: Known, table: Anatomy) -> None:
        concepts = (table.concept(table.key(term)) for term in (structure.name, *structure.aliases))
        concept = next((c for c in concepts if c is not None), None)
        if concept is not None:
            self._concepts[structure.name] = concept
            _add(self._by_entry, concept.entry.name, structure)

    def exact(self, typed: str) -> list[Known]:
        return self._exact.get(typed, [])

    def by_key(self, key: Key) -> list[Known]:
        return self._by_key.get(key, [])

    def concept(self, structure: Known) -> Concept | None:
        return self._concepts.get(structure.name)

    def own_side(self, structure: Known) -> SideAsked | None:
        """The side that a structure's name holds, of a pair."""
        concept = self.concept(structure)
        return None if concept is None else concept.side

    def of_entry(self, entry: Entry | str) -> list[Known]:
        return self._by_entry.get(entry if isinstance(entry, str) else entry.name, [])

    def parts_of(self, entry: Entry, table: Anatomy) -> list[Known]:
        """The known structures that are parts of an entry."""
        return [s for s in self.known if (c := self.concept(s)) is not None and entry in table.wholes(c.entry)]

    def nearest(self, typed: str, first: Iterable[Known] = ()) -> tuple[str, ...]:
        """Up to three names to suggest: those given, then by likeness of spelling."""
        ranked = process.extract(plain(typed), self._names, scorer=fuzz.WRatio, limit=SUGGESTIONS)
        return tuple(dict.fromkeys([*(s.name for s in first), *(name for _, _, name in ranked)]))[:SUGGESTIONS]


def _add(index: dict[str, list[Known]] | dict[Key, list[Known]], key: object, structure: Known) -> None:
    entries = index.setdefault(key, [])  # type: ignore[arg-type]
    if structure not in entries:
        entries.append(structure)
