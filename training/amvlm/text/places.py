"""Where a finding of the lungs lies, read from free words and written in the template of the captions (METHOD §1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from amvlm.text.captions import Side
from amvlm.text.terms import FILLERS, SEPARATORS, word_set
from amvlm.text.views import view_key

LEVELS = ("upper", "middle", "lower")
LEVEL_WORDS = {
    "upper": "upper", "superior": "upper", "top": "upper", "apex": "upper", "apical": "upper",
    "middle": "middle", "lower": "lower", "inferior": "lower", "bottom": "lower", "base": "lower",
    "basal": "lower", "basilar": "lower",
}  # fmt: skip
SIDES: tuple[Side, Side] = ("left", "right")
_NOUNS = frozenset({"lung", "zone", "lobe", "field", "hemithorax", "chest", "thorax"})
_FINDINGS = frozenset({"infection", "covid19", "pneumonia"})
_WITH_A_FINDING = word_set(
    "viral bacterial infiltrate lesion inflammation focus patch spot multiple affected involvement involving"
    " limited confined within by"
)
_SPREADS = frozenset({"both", "unilateral", "bilateral", "onesided"})
_NUMBER_WORDS = ("one", "two", "three", "four", "five", "six")
Cells = dict[Side, tuple[str, ...]]
"""Side → the levels that are named, from top to bottom."""


@dataclass
class _Group:
    """The words between two separators."""

    words: list[str]
    sides: list[Side] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sides = [side for side in SIDES if side in self.words]
        self.levels = [level for level in LEVELS if level in (LEVEL_WORDS.get(word) for word in self.words)]
        if "both" in self.words and self.levels and not self.sides:
            self.sides = list(SIDES)

    @property
    def closed(self) -> bool:
        """True when a noun of its own ends it ("upper left lung"): what follows is another place."""
        places = [n for n, word in enumerate(self.words) if word in SIDES or word in LEVEL_WORDS]
        return any(word in _NOUNS for word in self.words[max(places, default=0) :])


class UnreadPlaceError(ValueError):
    """Sides or levels that cannot be put into the template; its text is a sentence."""


def is_lung_finding(words: Collection[str]) -> bool:
    """True when the words speak of nothing but an infection of the lungs, its sides, levels and number."""
    content = {word for word in words if word not in FILLERS and word not in SEPARATORS}
    known = _NOUNS | _FINDINGS | _WITH_A_FINDING | _SPREADS | set(SIDES) | set(LEVEL_WORDS)
    return bool(content & _FINDINGS) and all(word in known or word.isdigit() for word in content)


def read_places(words: Sequence[str]) -> Cells:
    """Sides and levels of an infection; {} where no place is named.

    Parameters
    ----------
    words : sequence of str
        In order, with separators, as :meth:`Anatomy.words` gives them.

    Raises
    ------
    UnreadPlaceError
        If sides contradict each other, or a level cannot be given to a side.
    """
    groups = [group for group in _groups(words) if group.sides or group.levels]
    spread = "both" if "both" in words else "unilateral" if {"unilateral", "onesided"} & set(words) else ""
    if any(len(group.sides) == 2 and "both" not in group.words for group in groups):
        raise UnreadPlaceError("It names left and right in one breath.")
    cells = _cells(groups, spread)
    if (spread == "both" and len(cells) == 1) or (spread == "unilateral" and len(cells) != 1):
        raise UnreadPlaceError("Its sides contradict each other, or the side is missing.")
    return cells


def _groups(words: Sequence[str]) -> list[_Group]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in SEPARATORS:
            parts.append([])
        else:
            parts[-1].append(word)
    return [_Group(part) for part in parts if part]


def _cells(groups: list[_Group], spread: str) -> Cells:
    sided = [group for group in groups if group.sides]
    levels = _ordered([level for group in groups for level in group.levels])
    if not sided:
        return dict.fromkeys(SIDES, levels or LEVELS) if levels or spread == "both" else {}
    if not any(group.levels for group in sided):
        return {side: levels or LEVELS for side in SIDES if any(side in group.sides for group in sided)}
    return _in_order(groups)


def _in_order(groups: list[_Group]) -> Cells:
    """Give each group what it lacks: a side or a level of the neighbour it shares a noun with."""
    found: dict[Side, list[str]] = {}
    for index, group in enumerate(groups):
        shared = _sharing(groups, index)
        sides, levels = group.sides, group.levels
        if not sides:
            options = {tuple(g.sides) for g in shared if g.sides}
            if len(options) != 1:
                raise UnreadPlaceError(f"It does not say on which side “{' '.join(group.words)}” lies.")
            sides = list(options.pop())
        if not levels:
            options_of_level = {tuple(g.levels) for g in shared if g.levels}
            levels = list(options_of_level.pop()) if len(options_of_level) == 1 else list(LEVELS)
        for side in sides:
            found.setdefault(side, []).extend(levels)
    return {side: _ordered(found[side]) for side in SIDES if side in found}


def _sharing(groups: list[_Group], index: int) -> list[_Group]:
    """The nearest group before and after that has a side, as far as no noun stands between."""
    shared = []
    for other in reversed(groups[:index]):
        if other.closed:
            break
        if other.sides:
            shared.append(other)
            break
    for place, other in enumerate(groups[index + 1 :], index + 1):
        if groups[place - 1].closed:
            break
        if other.sides:
            shared.append(other)
            break
    return shared


def _ordered(levels: Sequence[str]) -> tuple[str, ...]:
    return tuple(level for level in LEVELS if level in levels)


def canonical_caption(cells: Cells, captions: Collection[str] = ()) -> str:
    """An infection of the lungs in the template's words.

    Parameters
    ----------
    cells : mapping of side → levels
        At least one.
    captions : collection of str, optional
        Those of the study: one that says the same, in whatever order of places, is taken as it stands.

    Returns
    -------
    str
        For example "unilateral pulmonary infection, one infected area, lower left lung".
    """
    number = sum(len(levels) for levels in cells.values())
    places = " and ".join(f"{' '.join(cells[side])} {side} lung" for side in SIDES if side in cells)
    extent = "bilateral" if len(cells) == 2 else "unilateral"
    areas = f"{_NUMBER_WORDS[number - 1]} infected area{'s' if number > 1 else ''}"
    written = f"{extent} pulmonary infection, {areas}, {places}"
    return _by_view(tuple(captions)).get(view_key(written), written)


@lru_cache(maxsize=8)
def _by_view(captions: tuple[str, ...]) -> dict[str, str]:
    return {view_key(caption): caption for caption in reversed(captions)}
