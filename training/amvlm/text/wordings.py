"""For training: the many wordings of a structure, and words that name nothing in a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import numpy as np

from amvlm.text.anatomy import Concept, anatomy
from amvlm.text.captions import normalise_caption
from amvlm.text.read import read_prompt
from amvlm.text.spelling import everyday_words
from amvlm.text.study_words import Known, KnownWords, StudyWords
from amvlm.text.terms import POSITIONS, plain
from amvlm.text.views import names_a_place

TEMPLATES = (
    "{}", "the {}", "segment the {}", "outline {}", "show me the {}", "please mark the {}", "where is the {}?",
    "{} in this scan", "mask of the {}", "the whole {}", "{} region", "delineate the {}", "the patient's {}",
)  # fmt: skip
_ENGLISH = re.compile(r"(al|ic|ar|ous|ary|ine|ed)$")
_BRITISH = (
    ("tumor", "tumour"), ("esophag", "oesophag"), ("edema", "oedema"), ("cecum", "caecum"), ("hemo", "haemo"),
    ("hema", "haema"), ("fetus", "foetus"), ("fetal", "foetal"), ("celiac", "coeliac"), ("gray", "grey"),
    ("fiber", "fibre"), ("ischem", "ischaem"), ("disc", "disk"),
)  # fmt: skip


def terms(structure: KnownWords, known: Sequence[KnownWords] = ()) -> tuple[str, ...]:
    """Names of a structure without templates, all of which the reader reads as it.

    Parameters
    ----------
    structure : KnownWords
    known : sequence of KnownWords, optional
        The study's structures: a name that could mean another of them is left out.
    """
    return _terms(Known.of(structure), tuple(map(Known.of, known)) or (Known.of(structure),))


@lru_cache(maxsize=1024)
def _terms(own: Known, study: tuple[Known, ...]) -> tuple[str, ...]:
    names = [own.name, *own.aliases, *own.prompts, plain(own.name)]
    concept = StudyWords((own,), anatomy()).concept(own)
    if concept is not None:
        names += [form for term in concept.entry.terms() for form in _sided(term, concept)]
        adjectives = filter(_ENGLISH.search, concept.entry.adjectives)
        names += [form for word in adjectives for form in _sided(f"{word} region", concept)]
    names += [other for name in names for other in _respelled(name)]
    names = list(dict.fromkeys(map(normalise_caption, names)))
    return tuple(name for name in names if read_prompt(name, study).structure == own.name)


def wordings(structure: KnownWords, known: Sequence[KnownWords] = ()) -> tuple[str, ...]:
    """Every term of a structure in every template; captions are left as they are."""
    names = terms(structure, known)
    return tuple(dict.fromkeys(t.format(name) for name in names for t in (TEMPLATES if "," not in name else ("{}",))))


@lru_cache(maxsize=1)
def held_out() -> frozenset[str]:
    """Wordings that measure what a model understands (benchmarks/words.csv): no run learns from them."""
    return frozenset(resources.files("amvlm.text").joinpath("held_out.txt").read_text("ascii").splitlines())


def taught(structure: KnownWords, known: Sequence[KnownWords], most: int) -> list[str]:
    """What a run learns to read as a structure: every term as it stands, then terms in templates, up to ``most``.

    A study's own wordings are among them, but for prompts with a side or level that the structure has not: they name a
    part of its mask. Of the others those that are held out stay out, in every template.
    """
    texts = (structure.name, *structure.aliases, *structure.prompts)
    placed = names_a_place(structure.name)
    own = {normalise_caption(text) for text in texts if names_a_place(text) == placed}
    every = [name for name in terms(structure, known) if names_a_place(name) == placed]
    names = [name for name in every if name in own or name not in held_out()]
    framed = [t.format(name) for t in TEMPLATES[1:] for name in names if "," not in name]
    chosen = np.random.default_rng(0).permutation(len(framed))
    found = dict.fromkeys([*sorted(own), *names, *(framed[int(index)] for index in chosen)])
    return [text for text in found if text in own or text not in held_out()][: max(most, len(own))]


def taught_foreign(known: Sequence[KnownWords], most: int) -> list[str]:
    """What a run learns to read as nothing: up to ``most`` foreign words, half of them in a template."""
    words = [word for word in foreign_words(known) if word not in held_out()]
    rng = np.random.default_rng(0)
    chosen = [words[int(index)] for index in rng.permutation(len(words))[:most]]
    texts = [TEMPLATES[int(rng.integers(len(TEMPLATES))) if n % 2 else 0].format(w) for n, w in enumerate(chosen)]
    return [text for text in dict.fromkeys(texts) if text not in held_out()]


def foreign_words(known: Sequence[KnownWords]) -> tuple[str, ...]:
    """Texts whose target is empty in a study: structures that it does not know, and words of daily life.

    Left out is what may show something there: wholes and parts of what the study knows, other parts of the same organ
    (cut otherwise, they overlap), and what the table places nowhere ("fat", "lesion").
    """
    table = anatomy()
    study = StudyWords(tuple(map(Known.of, known)), table)
    concepts = [concept for s in study.known if (concept := study.concept(s)) is not None]
    own = {concept.entry.name for concept in concepts}
    related = own | {whole.name for concept in concepts for whole in table.wholes(concept.entry)}
    organs = {c.entry.part_of for c in concepts if c.entry.part_of and table.entries[c.entry.part_of].part_of}
    foreign = [
        name
        for name, entry in table.entries.items()
        if entry.part_of and name not in related and entry.within not in own
        and not (own | organs) & {whole.name for whole in table.wholes(entry)}
    ]  # fmt: skip
    unread = (name for name in (*foreign, *everyday_words()) if read_prompt(name, study.known).refusal)
    return tuple(unread)


def _sided(term: str, concept: Concept) -> list[str]:
    if concept.side is None:
        return [term, *_turned(term)]
    return [f"{concept.side} {term}", f"{term} on the {concept.side} side", f"{term}, {concept.side}"]


def _turned(term: str) -> list[str]:
    """ "anterior hippocampus" as "hippocampus, anterior" and "anterior part of the hippocampus"."""
    place, _, rest = term.partition(" ")
    if not rest or " of " in term or place not in POSITIONS:
        return []
    return [f"{rest}, {place}", f"{place} part of the {rest}"]


def _respelled(name: str) -> list[str]:
    british = name
    for one, other in _BRITISH:
        british = re.sub(rf"\b{one}", other, british)
    return [british] if british != name else []
