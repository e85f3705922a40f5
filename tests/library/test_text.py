"""Captions: normal forms, sides, and what is written from masks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amvlm.errors import UserError
from amvlm.text import (
    checked_prompt,
    class_derangement,
    names_a_side,
    normalise_caption,
    swap_sides,
    to_patient_sides,
    written_caption,
)


def test_captions_that_read_the_same_are_the_same() -> None:
    assert normalise_caption("  Bilateral   infection. ") == normalise_caption("bilateral infection")


@given(st.lists(st.sampled_from(["left", "Right", "LEFT", "upper", "lung", "leftover", "bright", ",", "rightmost"])))
def test_swapping_sides_twice_is_the_identity(words: list[str]) -> None:
    text = " ".join(words)
    assert swap_sides(swap_sides(text)) == text


def test_swap_changes_sides_and_nothing_else() -> None:
    assert swap_sides("Left upper lung, right lower lung") == "Right upper lung, left lower lung"
    assert swap_sides("leftover brightness") == "leftover brightness"
    assert swap_sides("kidney_left and lung_upper_lobe_RIGHT") == "kidney_right and lung_upper_lobe_LEFT"
    assert names_a_side("kidney_left")
    assert not names_a_side("vertebrae_L1")
    assert names_a_side("the Left lung")
    assert not names_a_side("bright lung")


def test_the_person_speaks_of_the_patients_sides() -> None:
    assert to_patient_sides("left lung", "patient") == "left lung"
    assert to_patient_sides("left lung", "image") == "right lung"
    assert to_patient_sides("LUL, rt base; left-sided effusion", "image") == "RUL, lt base; right-sided effusion"


@pytest.mark.parametrize("text", ["", "   \n", "!?.", "🙂"])
def test_empty_prompts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="empty"):
        checked_prompt(text)


def test_a_very_long_prompt_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="100,000 characters"):
        checked_prompt("a" * 100_000)


def test_right_to_left_text_is_a_prompt_like_any_other() -> None:
    assert checked_prompt("الكبد") == "الكبد"


def test_written_captions_say_count_level_size_and_side() -> None:
    assert written_caption("liver", count=1, level="lower", size="small") == "liver, one area, lower third, small"
    found = written_caption("lesion", count=3, level="upper", size="large", side="left")
    assert found == "lesion, three areas, upper third, large, left side"


def test_shuffled_captions_leave_none_in_its_place() -> None:
    captions = ["a", "b", "c", "a"]
    mapping = class_derangement(captions, seed=3)
    assert set(mapping) == set(mapping.values()) == {"a", "b", "c"}
    assert all(new != old for old, new in mapping.items())
