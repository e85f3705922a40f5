"""Words as keys: spelling, plurals, numbers, sides and fillers brought to one form, so that order does not matter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

SEPARATORS = {"and": "and", "or": "or", "&": "and", "+": "and", "plus": "and", "with": "and", "versus": "and",
              ",": ",", ";": ",", "/": "/"}  # fmt: skip
"""What stands between two things: "and" and "or" always part them, a comma mostly, a slash sometimes."""


def word_set(words: str) -> frozenset[str]:
    """The words of a text, for lists of words in code."""
    return frozenset(words.split())


FILLERS = word_set(
    "the a an of in on at for to from please pls kindly can could would will you i we me us my our want need"
    " let show find see give get mark segmentation outline delineate contor draw label highlight trace"
    " annotate identify locate display mask region area part portion side sided section scan image picture slice"
    " segment aspect end subregion subdivision division compartment paint select extract isolate detect"
    " localise localize circle help location located situated seen visible present"
    " volume ct mri mr xray radiograph here there now just only entire full complete whole this that these those"
    " patient is are where"
    " what tissue organ structure anatomical anatomy human its their all every it"
)
"""Words that change nothing about what is meant, as :func:`words_of` spells them. No word that denies, compares or
names a neighbour is among them."""

PART_WORDS = word_set("part portion section segment aspect end subregion subdivision division compartment")
POSITIONS = word_set(
    "anterior posterior superior inferior upper middle lower medial lateral ventral dorsal proximal distal front back"
    " left right rear rostral caudal top bottom head body tail apex base apical basal mid central peripheral"
)

_SIDES = {
    "left": "lt l lhs lefthand leftsided sinister sinistra sinistrum sinistri sinistrae sinistral",
    "right": "rt r rhs righthand rightsided dexter dextra dextrum dextri dextrae dextral",
    "both": "bilateral bilat bilaterally twosided",
}
_EXPANSIONS = {
    "rml": "right middle lobe lung",
    "rul": "right upper lobe lung", "rll": "right lower lobe lung", "lul": "left upper lobe lung",
    "lll": "left lower lobe lung", "ruz": "right upper zone", "rmz": "right middle zone", "rlz": "right lower zone",
    "luz": "left upper zone", "lmz": "left middle zone", "llz": "left lower zone", "rk": "right kidney",
    "lk": "left kidney", "bibasal": "both base", "bibasilar": "both base", "biapical": "both apex",
    "biventricular": "both ventricle", "midzone": "middle zone", "mid": "middle", "ant": "anterior",
    "post": "posterior", "sup": "superior", "inf": "inferior", "lat": "lateral", "med": "medial", "covid": "covid19",
}  # fmt: skip
_WORDS = {
    "ventricular": "ventricle", "atrial": "atrium", "auricular": "auricle", "nodal": "node", "cortical": "cortex",
    "tumoral": "tumor", "septal": "septum", "valvular": "valve", "nervous": "nerve", "tumorous": "tumor",
    "grey": "gray", "disk": "disc", "fibre": "fiber", "centre": "center", "infectious": "infected",
    "visualise": "show", "visualize": "show", "infective": "infected", "lobar": "lobe", "gyral": "gyrus",
    "valva": "valve", "muscular": "muscle", "musculus": "muscle", "myocardiac": "myocardial",
}  # fmt: skip
_IRREGULAR = {
    "foramina": "foramen", "lumina": "lumen", "cortices": "cortex", "apices": "apex", "calices": "calyx",
    "calyces": "calyx", "teeth": "tooth", "feet": "foot", "atria": "atrium", "septa": "septum", "ilia": "ilium",
    "bacteria": "bacterium", "mitochondria": "mitochondrion", "testes": "testis", "metastases": "metastasis",
    "pelves": "pelvis", "epithelia": "epithelium", "stromata": "stroma", "ganglia": "ganglion", "ova": "ovum",
    "phalanges": "phalanx", "meninges": "meninx", "lenses": "lens", "irises": "iris", "stenoses": "stenosis",
    "mitoses": "mitosis", "ovaria": "ovarium", "crura": "crus", "hila": "hilum", "labra": "labrum",
    "bronchioli": "bronchiole", "calvaria": "calvaria", "atelectases": "atelectasis", "thoraces": "thorax",
    "pneumothoraces": "pneumothorax", "carcinomata": "carcinoma", "scapulae": "scapula", "chiasmata": "chiasm",
    "diagnoses": "diagnosis", "necroses": "necrosis", "corpora": "corpus", "capita": "caput", "viscera": "viscera",
    "hypophyses": "hypophysis", "epiphyses": "epiphysis", "thromboses": "thrombosis", "vertebrae": "vertebra",
}  # fmt: skip
_SINGULAR = word_set(
    "pancreas atlas pons lens biceps triceps quadriceps deferens glans os pes vas gas ascites nares caries series"
    " forceps atherosclerosis dens alas bias chaos cannabis cosmos coronas us lens facies mumps rabies diabetes"
    " herpes pars adnexas ribless trans times texas"
)
_NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ("one first 1st single", "two second 2nd ii", "three third 3rd iii", "four fourth 4th iv", "five fifth 5th",
         "six sixth 6th vi", "seven seventh 7th vii", "eight eighth 8th viii", "nine ninth 9th ix", "ten tenth 10th",
         "eleven eleventh 11th xi", "twelve twelfth 12th xii"), 1)
    for word in words.split()
}  # fmt: skip
_SIDE_WORDS = {word: side for side, words in _SIDES.items() for word in words.split()}
_PREFIXES = "non|un|pre|post|sub|peri|intra|extra|inter|supra|infra|para|retro|hyper|hypo|anti|micro|peri|epi|x|no|bi"
_JOINED = re.compile(rf"\b({_PREFIXES})-(?=[a-z]{{3}})")
_NON = re.compile(r"\bnon[\s-]+(?=[a-z]{3})")
_VERTEBRA = re.compile(r"\b([ctlsd])[\s-](\d{1,2})\b")
_THIRD = re.compile(r"\b(upper|middle|lower|superior|inferior)[\s-]thirds?\b(?! (?:molar|metacarpal|metatarsal|rib))")
_SIDED = re.compile(r"\b(left|right|two|one)[\s-](sided|hand)\b")
_HALF = re.compile(r"\b(front|rear|back|anterior|posterior|rostral|caudal)[\s-]half\b")
_AROUND = re.compile(r"\b(?:contour|outline|circle|line|border|boundary|delineation)s? around\b")
_POLITE = re.compile(r"\b(i )?(would|id|d) like( to)?\b")
_ORDER = re.compile(r"^((?:please|can|could|you|would|pls|kindly|to|i|want|need)\s+)*segment\s+(?!(?:\d|[ivx]+\b))")
_TOKEN = re.compile(r"[a-z0-9]+|[&+,;/]")


def plain(text: str) -> str:
    """Lower-case text of Latin letters without accents, invisible characters and underscores."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text)).lower()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").replace("\u00f8", "o").replace("\u0153", "oe")
    text = unicodedata.normalize("NFKD", text.replace("\u00e6", "ae"))
    text = "".join(c for c in text if not unicodedata.combining(c))
    return text.replace("_", " ").replace("\u2010", "-").replace("\u2011", "-").replace("\u2013", "-")


def words_of(text: str) -> list[str]:
    """A text's words in one form each, fillers and separators (see ``SEPARATORS``) included, in their order."""
    text = re.sub(r"['\u2018\u2019\u02bc`]s\b", "", plain(text))
    text = re.sub(r"['\u2018\u2019\u02bc`]", "", text).replace("b/l", "bilateral")
    text = re.sub(r"\bcovid[\s-]?19\b", "covid19", text)
    text = _NON.sub("non", text)
    text = _JOINED.sub(lambda m: m[1] if m[1] != "no" else "no ", text)
    text = _AROUND.sub("outline", _HALF.sub(r"\1", text))
    text = _VERTEBRA.sub(r"\1\2", _THIRD.sub(r"\1", _SIDED.sub(r"\1\2", text)))
    return [word for token in _TOKEN.findall(_ORDER.sub("", _POLITE.sub(" ", text))) for word in _expanded(token)]


def key_of(words: Iterable[str]) -> frozenset[str]:
    """The words that carry meaning, without order."""
    return frozenset(word for word in words if word not in FILLERS and word not in SEPARATORS)


def _expanded(token: str) -> list[str]:
    if token in SEPARATORS:
        return [SEPARATORS[token]]
    if token in _EXPANSIONS:
        return _EXPANSIONS[token].split()
    token = _SIDE_WORDS.get(token, token)
    token = _NUMBERS.get(token, token)
    token = _spelled(_singular(token))
    return [_WORDS.get(token, token)]


def _singular(word: str) -> str:
    """One of several: English and common Latin plurals; words that only look like plurals stay."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or word in _SINGULAR or word[-1] not in "sei" or word.endswith(("ss", "us", "is")):
        return word
    endings = (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("uses", "us"),
               ("ses", "sis"), ("ae", "a"), ("ii", "ius"), ("i", "us"), ("s", ""))  # fmt: skip
    for ending, other in endings:
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)] + other
    return word


def _spelled(word: str) -> str:
    """British and American spellings in one form. It is for comparing, not for showing."""
    word = re.sub(r"(?<=[a-z]{3})our$", "or", word)
    return word.replace("ae", "e").replace("oe", "e") if len(word) > 4 else word
