"""One reader of prompts, by rule and before any embedding: a structure with its side, or a sentence; never a guess."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from amvlm.errors import UserError
from amvlm.text import doubts
from amvlm.text.anatomy import Anatomy, Concept, Key, SideAsked, anatomy
from amvlm.text.captions import checked_prompt, normalise_caption
from amvlm.text.places import (
    LEVEL_WORDS,
    UnreadPlaceError,
    canonical_caption,
    is_lung_finding,
    read_places,
)
from amvlm.text.spelling import everyday_words, mended
from amvlm.text.study_words import Known, KnownWords, StudyWords
from amvlm.text.terms import FILLERS, PART_WORDS, POSITIONS, SEPARATORS, key_of, words_of

_MOST_WORDS = 12
_LONGEST_QUOTE = 60
_FINDING = "pulmonary infection"
_TEMPLATE = frozenset({"pulmonary", "infection", "infected", "lung"})
_SPREADS = frozenset({"left", "right", "both", "unilateral"})


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as it was understood.

    Parameters
    ----------
    text : str
        As typed, normalised.
    structure : str or None
        The study's name of it. None for a free caption that names no single structure, and for a refusal.
    side : {"left", "right", "both"} or None
        The patient's, where one was asked for, or where the structure is one of a pair.
    level : {"upper", "middle", "lower"} or None
    count : int or None
        As typed.
    caption : str
        What the model embeds; "" for a refusal.
    note : str
        A sentence on what was understood differently from what was typed, or "".
    refusal : str
        A sentence, or "" for a prompt that was read.
    suggestions : tuple of str
        Names that the study knows, nearest first.
    """

    text: str
    structure: str | None = None
    side: SideAsked | None = None
    level: str | None = None
    count: int | None = None
    caption: str = ""
    note: str = ""
    refusal: str = ""
    suggestions: tuple[str, ...] = ()


def read_prompt(
    text: str,
    known: Sequence[KnownWords],
    *,
    free_words: Collection[str] = (),
    captions: Collection[str] = (),
) -> ReadPrompt:
    """Read what a person typed.

    Parameters
    ----------
    text : str
    known : sequence of KnownWords
        The structures of the model or study. Their own wordings are always read.
    free_words : collection of str, optional
        Every word of the captions that the model was trained on; empty for a model of structures.
    captions : collection of str, optional
        These captions, in the patient's sides: where one says the same, it becomes the caption.

    Returns
    -------
    ReadPrompt
        Its ``refusal`` is a sentence where the text cannot be read without a guess.
    """
    try:
        typed = checked_prompt(text)
    except UserError as error:
        return ReadPrompt(normalise_caption(text)[:_LONGEST_QUOTE], refusal=str(error))
    words = frozenset(word for free in free_words for word in normalise_caption(free).split())
    texts = tuple(dict.fromkeys(map(normalise_caption, captions)))
    return _reader(tuple(map(Known.of, known)), words, texts).read(typed)


@lru_cache(maxsize=16)
def _reader(known: tuple[Known, ...], free_words: frozenset[str], captions: tuple[str, ...]) -> _Reader:
    return _Reader(known, free_words, captions)


class _Reader:
    """Reads prompts for one set of structures."""

    def __init__(self, known: tuple[Known, ...], free_words: frozenset[str], captions: tuple[str, ...]) -> None:
        self.table: Anatomy = anatomy()
        self.study = StudyWords(known, self.table)
        self.captions = captions
        self.free_words = frozenset(word for free in free_words for word in self.table.words(free))
        self.templated = free_words >= _TEMPLATE
        daily = {part for word in everyday_words() for part in words_of(word)}
        self._ordinary = FILLERS | daily | set(SEPARATORS) | PART_WORDS
        self.vocabulary = self.table.vocabulary | self.study.words | self.free_words | set(LEVEL_WORDS) | _SPREADS

    def read(self, typed: str) -> ReadPrompt:
        """A normalised text, read: as it stands, else with its spelling mended, else refused."""
        exact = self.study.exact(typed)
        if len(exact) == 1:
            return self._known(typed, exact[0], None, exact=True)
        if typed in self.captions:
            return self._caption(typed)
        doubt = self._doubt(typed)
        if doubt:
            return self._refused(typed, doubt)
        plain_words = words_of(typed)
        reading = self._read_words(typed, self.table.nouns(plain_words))
        return reading or self._read_mended(typed, plain_words)

    def _read_mended(self, typed: str, plain_words: list[str]) -> ReadPrompt:
        """With close spellings put right, where only one way of doing so means anything."""
        options = [words for words in mended(plain_words, self.vocabulary, self._ordinary) if words != tuple(plain_words)]
        readings = [
            (words, reading)
            for words in options
            if not doubts.denies(words, self.vocabulary)
            and (reading := self._read_words(typed, self.table.nouns(words))) is not None
        ]
        if len({(reading.structure, reading.side, reading.caption, reading.refusal) for _, reading in readings}) == 1:
            reading = readings[0][1]
            return reading if reading.refusal or reading.note else replace(reading, note=f"Read as “{reading.caption}”.")
        if readings:
            changed = [" ".join(word for word in words if word not in plain_words) for words, _ in readings]
            names = [reading.structure for _, reading in readings]
            structures = [s for s in self.study.known if s.name in names]
            return self._refused(typed, f"“{_quoted(typed)}” may mean {_either(changed)}.", structures)
        return self._unknown(typed, self.table.nouns(plain_words))

    def _doubt(self, typed: str) -> str:
        script = doubts.foreign_script(typed)
        if script and doubts.mixes_scripts(typed):
            return f"Some of its letters are {script} and only look like Latin ones. Type them again."
        if script:
            return f"{script} script is not read. Type the structure's name in English."
        if doubts.side_of_image(typed):
            return "Sides are the patient's here, not the image's. Type “left” or “right” of the patient alone."
        words = words_of(typed)
        key = self.table.key(typed)
        if self.study.by_key(key) or self._is_named(key):
            return ""
        if doubts.denies(words, self.vocabulary):
            return (
                f"“{_quoted(typed)}” says what not to outline. Type the structure itself: choose Absent if it is not "
                "there, or take a part away with the brush."
            )
        if doubts.side_of_another(words):
            return "Which side that is depends on another finding. Type the patient's left or right."
        return ""

    def _is_named(self, key: Key) -> bool:
        concept = self.table.concept(key)
        return concept is not None and concept.side is None

    def _read_words(self, typed: str, words: list[str]) -> ReadPrompt | None:
        """The words as they are; None where they are not understood."""
        words = _sides_joined(words)
        key = key_of(words)
        if self.templated and is_lung_finding(words):
            return self._lung_finding(typed, words)
        things = self._things(words)
        if len(things) > 1:
            names = " and ".join(f"“{name}”" for name in things[:3])
            return self._refused(typed, f"It names {names}. Outline one structure at a time.", self._known_among(things))
        if not key or len(key) > _MOST_WORDS:
            return None
        if PART_WORDS & set(words) and not POSITIONS & set(words):
            return None
        if {"left", "right"} <= key and not self._is_named(key) and not self.study.by_key(key):
            return self._refused(typed, "It names left and right at once. Type one side.")
        return self._by_key(typed, key) or self._free(typed, words, key) or self._by_concept(typed, key)

    def _by_key(self, typed: str, key: Key) -> ReadPrompt | None:
        """The study's own words in another order, or with a side."""
        sides: tuple[SideAsked | None, ...] = (None,) if self._is_named(key) else (None, "left", "right", "both")
        for side in sides:
            rest = key - {side} if side else key
            structures = self.study.by_key(rest) if rest != key or side is None else []
            if structures:
                several = len(structures) > 1
                return self._which(typed, structures) if several else self._known(typed, structures[0], side)
        return None

    def _by_concept(self, typed: str, key: Key) -> ReadPrompt | None:
        """What the table knows under these words, if the study knows it too."""
        meanings = self.table.unclear(key)
        if meanings and self.table.concept(key) is None:
            names = [entry.name for entry in meanings]
            return replace(self._refused(typed, f"“{_quoted(typed)}” may mean {_either(names)}."), suggestions=tuple(names))
        concept = self.table.concept(key)
        if concept is None:
            return None
        structures = self.study.of_entry(concept.entry)
        if structures:
            return self._one_of(typed, structures, concept)
        within = self.study.of_entry(concept.entry.within) if concept.entry.within else []
        if within:
            return self._one_of(typed, within, replace(concept, entry=self.table.entries[concept.entry.within]))
        return self._not_here(typed, concept)

    def _one_of(self, typed: str, structures: list[Known], concept: Concept) -> ReadPrompt:
        """The one of the study's structures of a concept that has the side that was asked for."""
        sided = {structure: self._own_side(structure) for structure in structures}
        matches = [structure for structure, side in sided.items() if side == concept.side and side is not None]
        matches = matches or [structure for structure, side in sided.items() if side is None]
        if len(matches) != 1:
            return self._which(typed, matches or structures)
        structure = matches[0]
        reading = self._known(typed, structure, concept.side)
        return reading if reading.refusal or reading.note else replace(reading, note=f"Read as “{structure.name}”.")

    def _own_side(self, structure: Known) -> SideAsked | None:
        concept = self.study.concept(structure)
        return None if concept is None else concept.side

    def _known(self, typed: str, structure: Known, side: SideAsked | None, exact: bool = False) -> ReadPrompt:
        """A known structure, with the side that its name or the person gives."""
        concept, own = self.study.concept(structure), self._own_side(structure)
        if side is not None and own is not None and side != own:
            return self._which(typed, [structure])
        if side is not None and concept is not None and not concept.entry.paired and own is None:
            return self._refused(typed, f"“{side}” names a part of “{structure.name}”, which is known as a whole.", [structure])
        caption = structure.caption(typed)
        if exact and self.templated and caption == typed:
            return self._with_place(replace(ReadPrompt(typed), structure=structure.name, caption=caption))
        return ReadPrompt(typed, structure.name, side or own, caption=caption)

    def _with_place(self, reading: ReadPrompt) -> ReadPrompt:
        """An exact wording of the study, with the places that it names."""
        words = self.table.words(reading.text)
        try:
            cells = read_places(words) if is_lung_finding(words) else {}
        except UnreadPlaceError:
            cells = {}
        return replace(reading, **_place(cells), count=_count(words)) if cells else reading

    def _lung_finding(self, typed: str, words: list[str]) -> ReadPrompt:
        """An infection of the lungs under a model of captions, put into their template."""
        structures = self.study.of_entry(_FINDING) or (list(self.study.known) if len(self.study.known) == 1 else [])
        structure = structures[0] if len(structures) == 1 else None
        try:
            cells = read_places(words)
        except UnreadPlaceError as error:
            return self._refused(typed, str(error))
        if not cells:
            caption = structure.caption(typed) if structure else _FINDING
            note = "" if caption == typed else f"Read as “{caption}”."
            return ReadPrompt(typed, structure.name if structure else None, caption=caption, note=note, count=_count(words))
        caption = typed if typed in self.captions else canonical_caption(cells, self.captions)
        note = "" if caption == typed else f"Read as “{caption}”."
        name = structure.name if structure else None
        return replace(ReadPrompt(typed, name, caption=caption, note=note, count=_count(words)), **_place(cells))

    def _caption(self, typed: str) -> ReadPrompt:
        """A caption of the study as it stands, whatever it says."""
        name = self.study.known[0].name if len(self.study.known) == 1 else None
        return self._with_place(ReadPrompt(typed, name, caption=typed))

    def _free(self, typed: str, words: list[str], key: Key) -> ReadPrompt | None:
        """A caption in the words of the captions that the model was trained on, if it names something of them."""
        if not self.free_words or self.templated or not key <= self.free_words:
            return None
        if not any(self.table.concept(Key((word,))) for word in key):
            return None
        same = next((caption for caption in self.captions if self.table.key(caption) == key), typed)
        sides = [side for side in ("left", "right", "both") if side in key]
        levels = list(dict.fromkeys(LEVEL_WORDS[word] for word in words if word in LEVEL_WORDS))
        name = self.study.known[0].name if len(self.study.known) == 1 else None
        note = "" if same == typed else f"Read as “{same}”."
        return ReadPrompt(
            typed, name, sides[0] if len(sides) == 1 else None, levels[0] if len(levels) == 1 else None,  # type: ignore[arg-type]
            _count(words), same, note,
        )  # fmt: skip

    def _things(self, words: Sequence[str]) -> list[str]:
        """The names of the several things that separated words name; at most one where it is one."""
        parts = _parts(words)
        if len(parts) < 2 or key_of(words) in self.table.joint | self.study.joint:
            return []
        names = [self._name_of(part) for part in parts]
        heads = [part - POSITIONS for part, name in zip(parts, names, strict=True) if name]
        for n, part in enumerate(parts):
            if not names[n] and part and part <= POSITIONS:
                names[n] = next((name for head in heads if head and (name := self._name_of(part | head))), "")
        named = list(dict.fromkeys(name for name in names if name))
        if len(named) > 1 and not {"and", "or"} & set(words) and self._is_one(words, named):
            return []
        return named

    def _is_one(self, words: Sequence[str], named: Sequence[str]) -> bool:
        """True for "left ventricle, heart": a comma between a structure and its whole."""
        key = key_of(words)
        if self.study.by_key(key):
            return True
        concept = self.table.concept(key)
        if concept is None:
            return False
        family = {concept.entry.name, *(whole.name for whole in self.table.wholes(concept.entry))}
        return all(any(name.endswith(member) for member in family) for name in named)

    def _name_of(self, key: Key) -> str:
        """A name for what a key means, or ""."""
        if not key or key <= _SPREADS:
            return ""
        structures = self.study.by_key(key)
        if structures:
            return structures[0].name
        concept = self.table.concept(key)
        if concept is None:
            return ""
        structures = [s for s in self.study.of_entry(concept.entry) if self._own_side(s) == concept.side]
        return structures[0].name if structures else " ".join(filter(None, (concept.side, concept.entry.name)))

    def _known_among(self, names: Iterable[str]) -> list[Known]:
        return [structure for structure in self.study.known if structure.name in set(names)]

    def _which(self, typed: str, structures: list[Known]) -> ReadPrompt:
        names = _either([structure.name for structure in structures])
        if len(structures) == 1:
            return self._refused(typed, f"Here only {names} is known, not “{_quoted(typed)}”.", structures)
        return self._refused(typed, f"“{_quoted(typed)}” may mean {names}. Type one of them.", structures)

    def _not_here(self, typed: str, concept: Concept) -> ReadPrompt:
        """A structure of the table that the study does not know, with what it knows of its whole or its parts."""
        parts = self.study.parts_of(concept.entry, self.table)
        if parts:
            return self._refused(typed, f"“{_quoted(typed)}” is known only by its parts. Type one of them.", parts)
        for whole in self.table.wholes(concept.entry):
            structures = self.study.of_entry(whole)
            if structures:
                named = min(structures, key=lambda s: self._own_side(s) != concept.side).name
                sentence = f"“{_quoted(typed)}” is a part or a finding of “{named}”, which is known as a whole."
                return self._refused(typed, sentence, structures)
        near = self.study.nearest(" ".join(filter(None, (concept.side, concept.entry.name))))
        return self._refused(typed, _not_known(typed), [s for name in near for s in self.study.known if s.name == name])

    def _unknown(self, typed: str, words: Sequence[str]) -> ReadPrompt:
        """A refusal for words that name nothing here, or more than is known."""
        levels = [LEVEL_WORDS[word] for word in words if word in LEVEL_WORDS]
        rest = key_of(word for word in words if word not in LEVEL_WORDS)
        structures = self.study.by_key(rest) if levels else []
        if structures:
            sentence = f"“{structures[0].name}” is known as a whole, not by level. Type it without “{levels[0]}”."
            return replace(self._refused(typed, sentence, structures), level=levels[0])
        return self._refused(typed, _not_known(typed))

    def _refused(self, typed: str, sentence: str, first: Iterable[Known] = ()) -> ReadPrompt:
        suggestions = self.study.nearest(typed, first)
        listed = ", ".join(f"“{name}”" for name in suggestions)
        more = len(self.study.known) - len(suggestions)
        known = f" Known here: {listed}{f' and {more} more' if more > 0 else ''}." if suggestions else ""
        return ReadPrompt(typed, refusal=f"{sentence}{known}", suggestions=suggestions)


def _sides_joined(words: Sequence[str]) -> list[str]:
    """ "left and right kidney" as "both kidney"."""
    joined: list[str] = []
    for word in words:
        if len(joined) > 1 and joined[-1] in ("and", "/") and {joined[-2], word} == {"left", "right"}:
            joined[-2:] = ["both"]
        else:
            joined.append(word)
    return joined


def _parts(words: Sequence[str]) -> list[Key]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("and", "or", ","):
            parts.append([])
        else:
            parts[-1].append(word)
    return [key_of(part) for part in parts]


def _place(cells: dict) -> dict:  # type: ignore[type-arg]
    """Side and level as fields of a reading: a level only where it is one and the same."""
    levels = {level for named in cells.values() for level in named}
    return {"side": next(iter(cells)) if len(cells) == 1 else "both", "level": levels.pop() if len(levels) == 1 else None}


def _count(words: Sequence[str]) -> int | None:
    return next((int(word) for word in words if word.isdigit() and len(word) < 3), None)


def _not_known(typed: str) -> str:
    return f"“{_quoted(typed)}” is not known here."


def _quoted(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else f"{text[: _LONGEST_QUOTE - 1]}…"


def _either(names: Iterable[str]) -> str:
    return " or ".join(f"“{name}”" for name in list(names)[:4])
