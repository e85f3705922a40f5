"""Wordings of one finding: never another side or level, and one key for all."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvlm.text import (
    caption_view,
    names_a_place,
    one_level,
    one_sided,
    swap_sides,
    view_key,
    without_count,
)

QATA = "bilateral pulmonary infection, three infected areas, upper lower left lung and lower right lung"
levels = st.lists(st.sampled_from(["upper", "middle", "lower"]), min_size=1, max_size=3, unique=True).map(" ".join)
sides = st.sampled_from(["left", "right"])
places = st.lists(st.tuples(levels, sides).map(lambda p: f"{p[0]} {p[1]} lung"), min_size=1, max_size=2)
findings = st.sampled_from(["bilateral pulmonary infection", "unilateral lung infection", "tumour", "bone oedema"])
counts = st.sampled_from(["one infected area", "six infected areas", "2 small lesions", "several foci"])
captions = st.tuples(findings, counts, places.map(" and ".join)).map(", ".join)


def words_of(text: str, kind: str) -> Counter[str]:
    return Counter(re.findall(rf"\b({kind})\b", text))


@given(captions)
def test_swapping_sides_twice_changes_nothing(caption: str) -> None:
    assert swap_sides(swap_sides(caption)) == caption
    assert words_of(swap_sides(caption), "left") == Counter({"left": caption.count("right")}) - Counter()


@settings(max_examples=60)
@given(captions, st.integers(0, 2**32))
def test_a_view_keeps_sides_levels_and_key(caption: str, seed: int) -> None:
    view = caption_view(caption, np.random.default_rng(seed))
    assert words_of(view, "left|right|upper|middle|lower") == words_of(caption, "left|right|upper|middle|lower")
    for place in re.findall(r"(?:(?:upper|middle|lower) )+(?:left|right) lung", caption):
        assert place in view  # a level stays with its side
    assert view_key(view) == view_key(caption)


@given(captions)
def test_views_and_mirrors_commute(caption: str) -> None:
    """A mirrored image with its swapped caption is the same pair, whatever its views drop."""
    assert view_key(swap_sides(caption)) == view_key(swap_sides(view_key(caption)))


@given(captions, captions)
def test_other_places_have_another_key(one: str, other: str) -> None:
    spots = [frozenset(re.findall(r"(?:(?:upper|middle|lower) )+(?:left|right) lung", text)) for text in (one, other)]
    if spots[0] != spots[1]:
        assert view_key(one) != view_key(other)


def test_only_a_clause_that_counts_is_dropped() -> None:
    assert without_count(QATA) == "bilateral pulmonary infection, upper lower left lung and lower right lung"
    assert without_count("two infected areas") == "two infected areas"
    assert without_count("nodules, no infected area") == "nodules, no infected area"  # a negation is no count
    assert without_count("one area, left side") == "left side"


def test_one_side_of_a_finding_on_both() -> None:
    assert one_sided(QATA, "left") == "unilateral pulmonary infection, upper lower left lung"
    assert one_sided(QATA, "right") == "unilateral pulmonary infection, lower right lung"
    assert one_sided("unilateral pulmonary infection, one infected area, lower left lung", "left") is None
    assert one_sided("bilateral pleural effusion", "left") is None


def test_one_level_of_a_finding_on_several() -> None:
    assert one_level(QATA, "upper") == "unilateral pulmonary infection, upper left lung"
    assert one_level(QATA, "lower") == "bilateral pulmonary infection, lower left lung and lower right lung"
    assert one_level("one area, upper middle lower left lung", "lower") == "lower left lung"
    assert one_level("one area, lower left lung", "lower") is None


@pytest.mark.parametrize(("text", "named"), [("left lung", True), ("upper third", True), ("liver", False)])
def test_texts_that_name_a_place_forbid_other_turns(text: str, named: bool) -> None:
    assert names_a_place(text) is named
