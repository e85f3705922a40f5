"""Normalising captions, the patient's and the image's sides, and shuffling captions for a control."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Literal

import numpy as np

from amvlm.errors import UserError

Side = Literal["left", "right"]

MAX_PROMPT_CHARACTERS = 2000
_PAIRS = (
    ("left", "right"), ("leftmost", "rightmost"), ("leftward", "rightward"), ("leftwards", "rightwards"),
    ("lefthand", "righthand"), ("leftsided", "rightsided"), ("lt", "rt"), ("lul", "rul"), ("lll", "rll"),
    ("sinistral", "dextral"), ("sinister", "dexter"), ("sinistra", "dextra"), ("sinistrum", "dextrum"),
)  # fmt: skip
_SIDES = {word: other for pair in _PAIRS for word, other in (pair, pair[::-1])}
_SIDE = re.compile(r"(?<![^\W_])(" + "|".join(_SIDES) + r")(?![^\W_])", re.IGNORECASE)
"""Whole words; an underscore parts words, as in "kidney_left"."""


@functools.cache
def medical_words() -> tuple[str, ...]:
    """Our list of radiology words, lower case."""
    return tuple(resources.files("amvlm.text").joinpath("vocabulary.txt").read_text("utf-8").split())


def normalise_caption(text: str) -> str:
    """Lower case, NFKC, single spaces, no final full stop: captions that read the same are the same."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).rstrip(" .")


def checked_prompt(text: str) -> str:
    """A prompt fit to run, normalised.

    Raises
    ------
    UserError
        If it is empty, or longer than ``MAX_PROMPT_CHARACTERS``.
    """
    prompt = normalise_caption(text)
    if not any(character.isalnum() for character in prompt):
        raise UserError("the prompt is empty", remedy="Type what to outline, for example: anterior hippocampus.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"the prompt has {len(prompt):,} characters",
            remedy=f"Use at most {MAX_PROMPT_CHARACTERS:,}; one line says enough.",
        )
    return prompt


def mentions(prompt: str, names: Iterable[str], wordings: Iterable[str] = ()) -> bool:
    """True when a prompt is one of the wordings, or contains one of the names as words."""
    prompt = normalise_caption(prompt)
    words = f" {prompt.replace(',', ' ')} "
    return prompt in map(normalise_caption, wordings) or any(f" {normalise_caption(name)} " in words for name in names)


def swap_sides(text: str) -> str:
    """Exchange left and right, keeping case; twice is the identity."""

    def other(match: re.Match[str]) -> str:
        word = match.group(0)
        swapped = _SIDES[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE.sub(other, text)


def names_a_side(text: str) -> bool:
    return _SIDE.search(text) is not None


LOW_SIDE: Side = "left"
"""The side that the low indices of a canonical volume's first axis show: canonical is RAS+, sides are the patient's."""


def to_patient_sides(caption: str, laterality: Literal["patient", "image"]) -> str:
    """A caption in the patient's sides, once, where it enters a study.

    A caption of the image's sides assumes radiological display: the patient's right is shown on the image's left.
    """
    return swap_sides(caption) if laterality == "image" else caption


def class_derangement(captions: Sequence[str], seed: int) -> dict[str, str]:
    """Map each different caption to another one, none to itself (the *shuffled* control of METHOD §7).

    With a single caption there is nothing to shuffle: it maps to itself.
    """
    classes = sorted(set(captions))
    order = np.random.default_rng(seed).permutation(len(classes))
    return {classes[int(a)]: classes[int(b)] for a, b in zip(order, np.roll(order, 1), strict=True)}
