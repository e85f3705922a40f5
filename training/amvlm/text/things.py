"""How many things a prompt names: "liver and spleen" are two, "portal vein and splenic vein" may be one."""

from __future__ import annotations

from collections.abc import Sequence

from amvlm.text.anatomy import Anatomy, Key
from amvlm.text.study_words import StudyWords
from amvlm.text.terms import POSITIONS, key_of

_SIDES_ALONE = frozenset({"left", "right", "both", "unilateral"})


class Things:
    """Finds the several structures that separated words name."""

    def __init__(self, study: StudyWords, table: Anatomy) -> None:
        self._study = study
        self._table = table

    def of(self, words: Sequence[str]) -> list[str]:
        """The names of the several things that separated words name; at most one where it is one."""
        parts = _parts(words)
        if len(parts) < 2 or key_of(words) in self._table.joint | self._study.joint:
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
        if self._study.by_key(key):
            return True
        concept = self._table.concept(key)
        if concept is None:
            return False
        family = {concept.entry.name, *(whole.name for whole in self._table.wholes(concept.entry))}
        return all(any(name.endswith(member) for member in family) for name in named)

    def _name_of(self, key: Key) -> str:
        """A name for what a key means, or ""."""
        if not key or key <= _SIDES_ALONE:
            return ""
        structures = self._study.by_key(key)
        if structures:
            return structures[0].name
        concept = self._table.concept(key)
        if concept is None:
            return ""
        structures = [s for s in self._study.of_entry(concept.entry) if self._study.own_side(s) == concept.side]
        return structures[0].name if structures else " ".join(filter(None, (concept.side, concept.entry.name)))


def sides_joined(words: Sequence[str]) -> list[str]:
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
