"""One reader of prompts, by rule and before any embedding: a structure with its side, or a sentence; never a guess."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache

from amvlm.errors import UserError
from amvlm.text import doubts
from amvlm.text.anatomy import Anatomy, Concept, Key, SideAsked, anatomy
from amvlm.text.caption_reading import CaptionReader
from amvlm.text.captions import checked_prompt, names_a_side, normalise_caption
from amvlm.text.places import LEVEL_WORDS, is_lung_finding
from amvlm.text.reading import LONGEST_QUOTE, ReadPrompt, Refusals, either, quoted
from amvlm.text.spelling import everyday_words, lookalikes, mended
from amvlm.text.study_words import Known, KnownWords, StudyWords
from amvlm.text.terms import FILLERS, PART_WORDS, POSITIONS, SEPARATORS, key_of, words_of
from amvlm.text.things import Things, sides_joined

__all__ = ["KnownWords", "ReadPrompt", "read_prompt"]

_MOST_WORDS = 12


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
        return ReadPrompt(normalise_caption(text)[:LONGEST_QUOTE], refusal=str(error))
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
        self.refusals = Refusals(self.study, self.table)
        self.things = Things(self.study, self.table)
        self.captions = CaptionReader(self.study, self.table, free_words, captions)
        self.texts = frozenset(captions)
        own = self.study.words | self.captions.words
        self.vocabulary = self.table.vocabulary | own | set(LEVEL_WORDS) | {"left", "right", "both", "unilateral"}
        daily = {part for word in (*everyday_words(), *lookalikes()) for part in words_of(word)}
        self._ordinary = FILLERS | daily | set(SEPARATORS) | PART_WORDS

    def read(self, typed: str) -> ReadPrompt:
        """A normalised text, read: as it stands, else with its spelling mended, else refused."""
        exact = self.study.exact(typed)
        if len(exact) == 1:
            return self._exact(typed, exact[0])
        if typed in self.texts:
            return self.captions.as_it_stands(typed)
        doubt = self._doubt(typed)
        if doubt:
            return self.refusals.refused(typed, doubt)
        plain_words = words_of(typed)
        reading = self._read_words(typed, self.table.nouns(plain_words))
        return reading or self._read_mended(typed, plain_words)

    def _exact(self, typed: str, structure: Known) -> ReadPrompt:
        """A wording of the study as it stands, with the side that it names."""
        reading = self._known(typed, structure, None, exact=True)
        if reading.side is None and names_a_side(typed):
            words = self._read_words(typed, self.table.words(typed))
            if words is not None and words.structure == structure.name:
                return replace(reading, side=words.side)
        return reading

    def _read_mended(self, typed: str, plain_words: list[str]) -> ReadPrompt:
        """With close spellings put right, where only one way of doing so means anything."""
        as_typed = tuple(plain_words)
        readings = [
            (words, reading)
            for words in mended(plain_words, self.vocabulary, self._ordinary)
            if words != as_typed
            and not doubts.denies(words, self.vocabulary)
            and (reading := self._read_words(typed, self.table.nouns(words))) is not None
        ]
        if len({(reading.structure, reading.side, reading.caption, reading.refusal) for _, reading in readings}) == 1:
            reading = readings[0][1]
            quiet = bool(reading.refusal or reading.note)
            return reading if quiet else replace(reading, note=f"Read as “{reading.caption}”.")
        if readings:
            changed = [" ".join(word for word in words if word not in plain_words) for words, _ in readings]
            names = [reading.structure for _, reading in readings]
            structures = [s for s in self.study.known if s.name in names]
            return self.refusals.refused(typed, f"“{quoted(typed)}” may mean {either(changed)}.", structures)
        return self.refusals.unknown(typed, self.table.nouns(plain_words))

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
                f"“{quoted(typed)}” says what not to outline. Type the structure itself: choose Absent if it is not "
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
        if self.captions.templated and is_lung_finding(words):
            return self.captions.lung_finding(typed, words)
        words = sides_joined(words)
        key = key_of(words)
        things = self.things.of(words)
        if len(things) > 1:
            names = " and ".join(f"“{name}”" for name in things[:3])
            known = [structure for structure in self.study.known if structure.name in things]
            return self.refusals.refused(typed, f"It names {names}. Outline one structure at a time.", known)
        if not key or len(key) > _MOST_WORDS:
            return None
        if PART_WORDS & set(words) and not any(word in POSITIONS or word.isdigit() or word == "v" for word in words):
            return None  # "part of the liver" is less than the liver
        if {"left", "right"} <= key and not self._is_named(key) and not self.study.by_key(key):
            return self.refusals.refused(typed, "It names left and right at once. Type one side.")
        return self._by_key(typed, key) or self.captions.free(typed, words, key) or self._by_concept(typed, key)

    def _by_key(self, typed: str, key: Key) -> ReadPrompt | None:
        """The study's own words in another order, or with a side."""
        sides: tuple[SideAsked | None, ...] = (None,) if self._is_named(key) else (None, "left", "right", "both")
        for side in sides:
            rest = key - {side} if side else key
            structures = self.study.by_key(rest) if rest != key or side is None else []
            if structures:
                several = len(structures) > 1
                return self.refusals.which(typed, structures) if several else self._known(typed, structures[0], side)
        return None

    def _by_concept(self, typed: str, key: Key) -> ReadPrompt | None:
        """What the table knows under these words, if the study knows it too."""
        meanings = self.table.unclear(key)
        if meanings and self.table.concept(key) is None:
            names = [entry.name for entry in meanings]
            refused = self.refusals.refused(typed, f"“{quoted(typed)}” may mean {either(names)}.")
            return replace(refused, suggestions=tuple(names))
        concept = self.table.concept(key)
        if concept is None:
            return None
        structures = self.study.of_entry(concept.entry)
        if structures:
            return self._one_of(typed, structures, concept)
        within = self.study.of_entry(concept.entry.within) if concept.entry.within else []
        if within:
            return self._one_of(typed, within, replace(concept, entry=self.table.entries[concept.entry.within]))
        return self.refusals.not_here(typed, concept)

    def _one_of(self, typed: str, structures: list[Known], concept: Concept) -> ReadPrompt:
        """The one of the study's structures of a concept that has the side that was asked for."""
        sided = {structure: self.study.own_side(structure) for structure in structures}
        matches = [structure for structure, side in sided.items() if side == concept.side and side is not None]
        matches = matches or [structure for structure, side in sided.items() if side is None]
        if len(matches) != 1:
            return self.refusals.which(typed, matches or structures)
        structure = matches[0]
        reading = self._known(typed, structure, concept.side)
        return reading if reading.refusal or reading.note else replace(reading, note=f"Read as “{structure.name}”.")

    def _known(self, typed: str, structure: Known, side: SideAsked | None, exact: bool = False) -> ReadPrompt:
        """A known structure, with the side that its name or the person gives."""
        concept, own = self.study.concept(structure), self.study.own_side(structure)
        if side is not None and own is not None and side != own:
            return self.refusals.which(typed, [structure])
        if side is not None and concept is not None and not concept.entry.paired and own is None:
            sentence = f"“{side}” names a part of “{structure.name}”, which is known as a whole."
            return self.refusals.refused(typed, sentence, [structure])
        caption = structure.caption(typed)
        if exact and self.captions.templated and caption == typed:
            return self.captions.with_place(ReadPrompt(typed, structure.name, caption=caption))
        return ReadPrompt(typed, structure.name, side or own, caption=caption)
