"""What a prompt must not be read from: other scripts, denials, sides of the image, sides that depend on another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from amvlm.text.terms import plain, word_set

_SCRIPTS = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
_DENIALS = word_set(
    "no not non nor neither none never without except excepting exception exclude excluded excluding exclusion minus"
    " but nothing absent absence missing lacking lack sans free dont doesnt isnt arent wasnt cant cannot wont avoid"
    " ignore omit skip remove removed removing subtract subtracted outside beyond rest remainder remaining negative"
    " apart besides save devoid resected excised unlike hide instead rather unless excludes drop delete discard"
)
_RELATIVE = frozenset({"ipsilateral", "contralateral", "opposite", "ipsilesional", "contralesional", "other", "same",
                       "unaffected"})  # fmt: skip
_SEEN = r"(?:image|picture|screen|display|film|photo|photograph|slice|view|viewer|monitor|window|radiograph)"
_SIDE = r"\b(?:left|right|lt|rt)\b"
_IMAGE_SIDES = (
    re.compile(rf"{_SIDE}(?:[\s-](?:hand|side|half|part))*\s(?:of|in|on)\s(?:the\s|this\s|my\s)?{_SEEN}\b"),
    re.compile(rf"\b(?:{_SEEN}|observer|reader)(?:'s|\u2019s)?[\s-]{_SIDE}"),
    re.compile(rf"\b(?:my|your)\s{_SIDE}"),
)


def foreign_script(text: str) -> str:
    """The name of the first script in the text that is not Latin, or ""."""
    for character in unicodedata.normalize("NFKC", text):
        if character.isalpha():
            first = unicodedata.name(character, "UNKNOWN LETTER").split()[0]
            if first not in ("LATIN", "MODIFIER", "FEMININE", "MASCULINE"):
                return _SCRIPTS.get(first, first.capitalize())
    return ""


def mixes_scripts(text: str) -> bool:
    """True where Latin letters stand beside others, which may only look like them."""
    return bool(foreign_script(text)) and bool(re.search("[a-z]", text.lower()))


def denies(words: Sequence[str], vocabulary: Collection[str]) -> bool:
    """True for words that take something away: "no", "without", "other than", "non-hepatic", "uninfected"."""
    if "other" in words and "than" in words:
        return True
    return any(word in _DENIALS or (word not in vocabulary and _stem_denied(word, vocabulary)) for word in words)


def _stem_denied(word: str, vocabulary: Collection[str]) -> bool:
    stems = [word.removeprefix(p) for p in ("non", "un") if word.startswith(p)]
    stems += [word.removesuffix("less")] if word.endswith("less") else []
    return any(len(stem) > 3 and stem in vocabulary for stem in stems)


def side_of_image(text: str) -> bool:
    """True for "on the left of the image" and its like: sides here are the patient's."""
    return any(pattern.search(plain(text)) for pattern in _IMAGE_SIDES)


def side_of_another(words: Collection[str]) -> bool:
    return bool(_RELATIVE & set(words)) or ("affected" in words and "side" in words)
