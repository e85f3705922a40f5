"""Other wordings of one caption: clause order, synonyms, no count; never another side or level (METHOD §2, views)."""

from __future__ import annotations

import re
from typing import Literal

from numpy.random import Generator as Rng

from amvlm.text.captions import Side, names_a_side, normalise_caption, swap_sides

_SYNONYMS = (
    ("pulmonary infection", "lung infection", "infection of the lung"),
    ("unilateral", "one-sided"),
    ("bilateral", "two-sided"),
    ("tumour", "tumor"),
    ("oedema", "edema"),
    ("haemorrhage", "hemorrhage"),
    ("density", "concentration"),
)
_NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|single|multiple|several|many|few|\\d+"
_COUNT = re.compile(
    rf"({_NUMBERS})( [a-z-]+){{0,3}} (area|areas|region|regions|lesion|lesions|nodule|nodules|part|parts|focus|foci)"
)
_LEVELS = ("upper", "middle", "lower")
_NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def clauses_of(caption: str) -> list[str]:
    """A caption's clauses, between commas and semicolons."""
    return [clause.strip() for clause in re.split("[,;]", normalise_caption(caption)) if clause.strip()]


def _is_count(clause: str) -> bool:
    return _COUNT.fullmatch(clause) is not None and not names_a_side(clause)


def without_count(caption: str) -> str:
    """Drop clauses that only count ("two infected areas"), unless nothing else is left."""
    clauses = clauses_of(caption)
    kept = [clause for clause in clauses if not _is_count(clause)]
    return ", ".join(kept or clauses)


def _places(clause: str) -> list[str]:
    """ "lower left lung and upper right lung" → its places, where each of them names a side; else the clause."""
    parts = clause.split(" and ")
    return parts if len(parts) > 1 and all(names_a_side(part) for part in parts) else [clause]


def view_key(caption: str) -> str:
    """What all views of a caption share: canonical synonyms, no count, sorted clauses and places."""
    text = without_count(caption)
    for canonical, *others in _SYNONYMS:
        for other in others:
            text = re.sub(rf"\b{other}\b", canonical, text)
    return ", ".join(sorted(" and ".join(sorted(_places(clause))) for clause in clauses_of(text)))


def caption_view(caption: str, rng: Rng) -> str:
    """A random wording of the same finding; :func:`view_key` is unchanged.

    Parameters
    ----------
    caption : str
    rng : numpy.random.Generator
        The only source of chance.
    """
    clauses = clauses_of(without_count(caption) if rng.random() < 0.5 else caption)
    shuffled = [clauses[int(index)] for index in rng.permutation(len(clauses))]
    turned = []
    for clause in shuffled:
        places = _places(clause)
        turned.append(" and ".join(places[int(index)] for index in rng.permutation(len(places))))
    text = ", ".join(turned)
    for wordings in _SYNONYMS:
        pattern = r"\b(" + "|".join(sorted(wordings, key=len, reverse=True)) + r")\b"
        if re.search(pattern, text):
            text = re.sub(pattern, wordings[int(rng.integers(len(wordings)))], text)
    return text


def _on_one_side(text: str) -> str:
    return re.sub(r"\btwo-sided\b", "one-sided", re.sub(r"\bbilateral\b", "unilateral", text))


def names_a_place(text: str) -> bool:
    """True for a text that names a side or a level: it must not be turned by 90° or upside down."""
    return names_a_side(text) or re.search(r"\b(" + "|".join(_LEVELS) + r")\b", text.lower()) is not None


def one_sided(caption: str, side: Side) -> str | None:
    """The prompt for one side of a finding on both, or None where the caption does not name both.

    "bilateral …, two infected areas, lower left lung and upper right lung" for "left" is
    "unilateral …, lower left lung": places of the other side and the count go.
    """
    other = swap_sides(side)
    kept, found = [], {side: False, other: False}
    for clause in clauses_of(without_count(caption)):
        places = _places(clause)
        named = [word for word in (side, other) if re.search(rf"\b{word}\b", clause)]
        if not named:
            kept.append(_on_one_side(clause))
            continue
        own = [place for place in places if re.search(rf"\b{side}\b", place) and other not in place.split()]
        for word in named:
            found[word] = True
        if own:
            kept.append(" and ".join(own))
    return ", ".join(kept) if all(found.values()) and len(kept) else None


def one_level(caption: str, level: Literal["upper", "lower"]) -> str | None:
    """The prompt for one level of a finding on several, or None where the caption does not name upper and lower.

    "upper middle left lung and lower right lung" for "upper" is "upper left lung": places without it and the count go.
    """
    if not all(re.search(rf"\b{word}\b", caption) for word in ("upper", "lower")):
        return None
    kept = []
    for clause in clauses_of(without_count(caption)):
        if not re.search(r"\b(upper|middle|lower)\b", clause):
            kept.append(clause)
            continue
        own = [place for place in _places(clause) if re.search(rf"\b{level}\b", place)]
        if own:
            kept.append(" and ".join(_only(place, level) for place in own))
    prompt = ", ".join(kept)
    both = all(re.search(rf"\b{side}\b", prompt) for side in ("left", "right"))
    return prompt if both or not names_a_side(prompt) else _on_one_side(prompt)


def _only(place: str, level: str) -> str:
    """A place with all its levels but one removed."""
    words = [word for word in place.split() if word == level or word not in _LEVELS]
    return " ".join(words)


def written_caption(structure: str, *, count: int, level: str, size: str, side: Side | None = None) -> str:
    """A caption in our own words for what an accepted mask shows: structure, count, level, size, side.

    Parameters
    ----------
    count : int
        Connected parts, ≥ 1.
    level : {"lower", "middle", "upper"}
    size : {"small", "medium", "large"}
    side : {"left", "right"}, optional
        Only where the field of view is known to hold both sides.
    """
    number = _NUMBER_WORDS[count - 1] if count <= len(_NUMBER_WORDS) else "many"
    parts = [structure, f"{number} {'area' if count == 1 else 'areas'}", f"{level} third", size]
    return ", ".join([*parts, f"{side} side"] if side else parts)
