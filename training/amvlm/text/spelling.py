"""Words with a letter or two wrong, and words run together or torn apart: mended where only one word can be meant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib import resources
from itertools import islice, product

from rapidfuzz import process
from rapidfuzz.distance import OSA

_SHORTEST = 4
_LONG = 8
_MOST = 16
_OPPOSED = (
    ("anterior", "posterior"), ("left", "right"), ("upper", "lower"), ("superior", "inferior"), ("hypo", "hyper"),
    ("medial", "lateral"), ("intra", "extra"), ("intra", "inter"), ("inter", "extra"), ("pre", "post"),
    ("pre", "pro"), ("supra", "infra"), ("epi", "endo"), ("uni", "bi"), ("ab", "ad"), ("macro", "micro"),
)  # fmt: skip
_NEGATING = ("un", "non", "in", "im", "an", "a", "dis", "de", "anti", "ex", "peri", "para", "sub", "re")


@lru_cache(maxsize=1)
def _sections() -> tuple[tuple[str, ...], ...]:
    text = resources.files("amvlm.text").joinpath("everyday.txt").read_text("ascii")
    return tuple(tuple(part.split("\n", 1)[1].split()) for part in text.split("#")[1:])


def everyday_words() -> tuple[str, ...]:
    """Words of daily life, for empty targets."""
    return _sections()[0]


def lookalikes() -> tuple[str, ...]:
    """Words that are nearly words of anatomy and no misspellings of them ("river" is not the liver)."""
    return _sections()[1]


def mended(words: Sequence[str], vocabulary: Collection[str], ordinary: Collection[str]) -> list[tuple[str, ...]]:
    """Replace words that no list holds by a known word that is close.

    Parameters
    ----------
    words : sequence of str
        As :func:`amvlm.text.terms.words_of` gives them.
    vocabulary : set of str
        What a word may become.
    ordinary : set of str
        Words that stay as they are, beside those of the vocabulary.

    Returns
    -------
    list of tuple of str
        What the words may be: one where nothing was changed or only one word is close, at most ``_MOST``.
    """
    options: list[list[tuple[str, ...]]] = []
    for word in _rejoined(words, vocabulary):
        if word in vocabulary or word in ordinary or not word.isalpha() or len(word) < _SHORTEST:
            options.append([(word,)])
            continue
        near = _near(word, vocabulary) or _near(f"{word}s", vocabulary)
        options.append([(other,) for other in near] or [_split(word, vocabulary) or (word,)])
    return [tuple(part for word in choice for part in word) for choice in islice(product(*options), _MOST)]


def _near(word: str, vocabulary: Collection[str]) -> tuple[str, ...]:
    """The closest words: one edit for four to seven letters, two for more; a swap of neighbours is one edit."""
    most = 2 if len(word) >= _LONG else 1
    matches = process.extract(word, vocabulary, scorer=OSA.distance, score_cutoff=most, limit=None)
    allowed = [(d, other) for other, d, _ in matches if len(other) >= _SHORTEST and _may_become(word, other)]
    best = min((d for d, _ in allowed), default=0)
    return tuple(sorted(other for d, other in allowed if d == best))


def _may_become(word: str, other: str) -> bool:
    """Never an opposite, and never by taking a denying prefix away or adding it."""
    for one, two in _OPPOSED:
        if (word.startswith(one) and other.startswith(two)) or (word.startswith(two) and other.startswith(one)):
            return False
    short, long = sorted((word, other), key=len)
    return not any(long == prefix + short for prefix in _NEGATING)


def _split(word: str, vocabulary: Collection[str]) -> tuple[str, ...]:
    """Two known words that were run together."""
    cuts = ((word[:n], word[n:]) for n in range(_SHORTEST, len(word) - _SHORTEST + 1))
    pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
    return pairs[0] if len(pairs) == 1 else ()


def _rejoined(words: Sequence[str], vocabulary: Collection[str]) -> list[str]:
    """Halves of a known word put together: "hippo campus"."""
    joined: list[str] = []
    for word in words:
        whole = joined[-1] + word if joined else ""
        if len(whole) >= _LONG and whole in vocabulary and not (joined[-1] in vocabulary and word in vocabulary):
            joined[-1] = whole
        else:
            joined.append(word)
    return joined
