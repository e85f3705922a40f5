"""What reading a prompt gives, and the sentences of a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from amvlm.text.anatomy import Anatomy, Concept, SideAsked
from amvlm.text.places import LEVEL_WORDS
from amvlm.text.study_words import Known, StudyWords
from amvlm.text.terms import key_of

LONGEST_QUOTE = 60


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


class Refusals:
    """Refusals for one study: a sentence and the nearest names."""

    def __init__(self, study: StudyWords, table: Anatomy) -> None:
        self.study = study
        self.table = table

    def which(self, typed: str, structures: list[Known]) -> ReadPrompt:
        names = either([structure.name for structure in structures])
        if len(structures) == 1:
            return self.refused(typed, f"Here only {names} is known, not “{quoted(typed)}”.", structures)
        return self.refused(typed, f"“{quoted(typed)}” may mean {names}. Type one of them.", structures)

    def not_here(self, typed: str, concept: Concept) -> ReadPrompt:
        """A structure of the table that the study does not know, with what it knows of its whole or its parts."""
        parts = self.study.parts_of(concept.entry, self.table)
        if parts:
            return self.refused(typed, f"“{quoted(typed)}” is known only by its parts. Type one of them.", parts)
        for whole in self.table.wholes(concept.entry):
            structures = self.study.of_entry(whole)
            if structures:
                named = min(structures, key=lambda s: self.study.own_side(s) != concept.side).name
                sentence = f"“{quoted(typed)}” is a part or a finding of “{named}”, which is known as a whole."
                return self.refused(typed, sentence, structures)
        near = self.study.nearest(" ".join(filter(None, (concept.side, concept.entry.name))))
        return self.refused(typed, _not_known(typed), [s for name in near for s in self.study.known if s.name == name])

    def unknown(self, typed: str, words: Sequence[str]) -> ReadPrompt:
        """A refusal for words that name nothing here, or more than is known."""
        levels = [LEVEL_WORDS[word] for word in words if word in LEVEL_WORDS]
        rest = key_of(word for word in words if word not in LEVEL_WORDS)
        structures = self.study.by_key(rest) if levels else []
        if structures:
            sentence = f"“{structures[0].name}” is known as a whole, not by level. Type it without “{levels[0]}”."
            return replace(self.refused(typed, sentence, structures), level=levels[0])
        return self.refused(typed, _not_known(typed))

    def refused(self, typed: str, sentence: str, first: Iterable[Known] = ()) -> ReadPrompt:
        suggestions = self.study.nearest(typed, first)
        listed = ", ".join(f"“{name}”" for name in suggestions)
        more = len(self.study.known) - len(suggestions)
        known = f" Known here: {listed}{f' and {more} more' if more > 0 else ''}." if suggestions else ""
        return ReadPrompt(typed, refusal=f"{sentence}{known}", suggestions=suggestions)


def _not_known(typed: str) -> str:
    return f"“{quoted(typed)}” is not known here."


def quoted(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 1]}…"


def either(names: Iterable[str]) -> str:
    return " or ".join(f"“{name}”" for name in list(names)[:4])
