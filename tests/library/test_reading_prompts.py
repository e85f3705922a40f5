"""Prompts as they are read: a structure with its side, or a sentence; never a guess."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvlm.text.anatomy import anatomy
from amvlm.text.read import ReadPrompt, read_prompt
from amvlm.text.spelling import everyday_words, lookalikes
from amvlm.text.study_words import Known
from amvlm.text.terms import FILLERS, PART_WORDS, POSITIONS, word_set, words_of
from amvlm.text.wordings import foreign_words, terms, wordings

HIPPOCAMPUS = (Known("anterior hippocampus", ("Anterior",)), Known("posterior hippocampus", ("Posterior",)))
CARDIAC = (Known("right ventricle"), Known("myocardium"), Known("left ventricle"))
ABDOMEN = tuple(map(Known, ("liver", "spleen", "kidney_left", "kidney_right", "colon", "portal_vein_and_splenic_vein",
                            "lung_upper_lobe_left", "vertebrae_T10")))  # fmt: skip
LIVER = (Known("liver"),)
INFECTION = (Known("pulmonary infection"),)
LEFT_BASE = "unilateral pulmonary infection, one infected area, lower left lung"
BOTH_BASES = "bilateral pulmonary infection, two infected areas, lower right lung and lower left lung"
CAPTIONS = (LEFT_BASE, BOTH_BASES, "unilateral pulmonary infection, two infected areas, upper middle right lung")
TOTAL = sorted(word_set("""
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right esophagus
trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum
vertebrae_S1 heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left
common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right
atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left
iliac_artery_right iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left
clavicula_right femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right
gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right
iliopsoas_left iliopsoas_right brain skull sternum costal_cartilages"""))
TOTAL += [f"vertebrae_{part}{n}" for part, last in (("L", 5), ("T", 12), ("C", 7)) for n in range(1, last + 1)]
TOTAL += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]


def read_infection(text: str) -> ReadPrompt:
    words = {word for caption in CAPTIONS for word in caption.replace(",", " ").split()}
    return read_prompt(text, INFECTION, free_words=words, captions=CAPTIONS)


def test_no_two_structures_of_the_table_share_a_key() -> None:
    table = anatomy()
    owners: dict[frozenset[str], str] = {}
    for entry in table.entries.values():
        for term in entry.terms():
            assert owners.setdefault(table.key(term.lower()), entry.name) == entry.name, term


def test_the_table_is_whole() -> None:
    table = anatomy()
    with resources.files("amvlm.text").joinpath("anatomy.csv").open(encoding="ascii", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == len(set(names)) == len(table.entries) >= 500
    for entry in table.entries.values():
        assert not entry.part_of or entry.part_of in table.entries
        assert not entry.within or entry.within in table.entries
        assert entry not in table.wholes(entry)


def test_a_declared_abbreviation_has_several_meanings_and_an_undeclared_one_has_one() -> None:
    table = anatomy()
    declared = [word for e in table.entries.values() for word in e.abbreviations if word.endswith("?")]
    for word in set(declared):
        key = table.key(word.rstrip("?").lower())
        assert len(table.unclear(key)) > 1
        assert table.concept(key) is None


def test_every_word_of_the_table_reads_back_where_all_of_it_is_known() -> None:
    known = tuple(Known(name) for name in anatomy().entries)
    for entry in anatomy().entries.values():
        for term in entry.terms():
            assert read_prompt(f"show me the {term}", known).structure == entry.name, term


def test_every_structure_of_totalsegmentator_is_in_the_table() -> None:
    table = anatomy()
    assert len(TOTAL) == 117
    concepts = [table.concept(table.key(name)) for name in TOTAL]
    assert None not in concepts
    assert len(set(concepts)) == 117
    known = tuple(map(Known, TOTAL))
    for name in TOTAL:
        assert read_prompt(name.replace("_", " "), known).structure == name


def test_lists_hold_words_as_they_are_read() -> None:
    for word in FILLERS | PART_WORDS | POSITIONS - {"mid"}:
        assert words_of(word) == [word]


@pytest.mark.parametrize(
    ("text", "known", "structure"),
    [
        ("hippocampal head", HIPPOCAMPUS, "anterior hippocampus"),
        ("caput hippocampi", HIPPOCAMPUS, "anterior hippocampus"),
        ("tail of the hippocampus", HIPPOCAMPUS, "posterior hippocampus"),
        ("Hippocampus, anterior", HIPPOCAMPUS, "anterior hippocampus"),
        ("please outline the anterior part of the hippocampus", HIPPOCAMPUS, "anterior hippocampus"),
        ("LV", CARDIAC, "left ventricle"),
        ("left ventricle of the heart", CARDIAC, "left ventricle"),
        ("left ventricular myocardium", CARDIAC, "myocardium"),
        ("LV cavity", CARDIAC, "left ventricle"),
        ("hepatic region", ABDOMEN, "liver"),
        ("T 10", ABDOMEN, "vertebrae_T10"),
        ("tenth thoracic vertebra", ABDOMEN, "vertebrae_T10"),
        ("LUL", ABDOMEN, "lung_upper_lobe_left"),
        ("portal and splenic veins", ABDOMEN, "portal_vein_and_splenic_vein"),
        ("lien", ABDOMEN, "spleen"),
        ("left rostral hippocampus", HIPPOCAMPUS, "anterior hippocampus"),
        ("hippocampus, rear half", HIPPOCAMPUS, "posterior hippocampus"),
        ("contour the liver", ABDOMEN, "liver"),
        ("draw a line around the left kidney", ABDOMEN, "kidney_left"),
    ],
)
def test_other_words_for_a_structure(text: str, known: tuple[Known, ...], structure: str) -> None:
    reading = read_prompt(text, known)
    assert reading.structure == structure
    assert reading.caption == structure.lower()
    assert not reading.refusal


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("spleen", LIVER), ("liver cyst", LIVER), ("tumour of the liver", LIVER), ("hepatic vein", LIVER), ("a", LIVER),
        ("liver segment", LIVER), ("around the liver", LIVER), ("liver-like structure", LIVER),
        ("part of the liver", LIVER), ("half of the liver", LIVER), ("fat around the liver", LIVER),
        ("caudal liver", LIVER), ("rostral spleen", ABDOMEN),
        ("renal artery", ABDOMEN), ("semicolon", ABDOMEN), ("colon and", ABDOMEN[:4]), ("splenic vein", ABDOMEN),
        ("lateral ventricle", CARDIAC), ("left atrial appendage", CARDIAC), ("myocardial infarct", CARDIAC),
        ("apex of the left ventricle", CARDIAC), ("right ventricular wall", CARDIAC), ("hippocampus", HIPPOCAMPUS),
        ("parahippocampal gyrus", HIPPOCAMPUS), ("anterior thalamus", HIPPOCAMPUS), ("banana", HIPPOCAMPUS),
    ],
)  # fmt: skip
def test_another_thing_is_refused_with_the_nearest_names(text: str, known: tuple[Known, ...]) -> None:
    reading = read_prompt(text, known)
    assert reading.refusal.endswith(".")
    assert (reading.structure, reading.caption) == (None, "")
    assert set(reading.suggestions) <= {structure.name for structure in known}
    assert len(reading.suggestions) == min(3, len(known))


def test_a_part_is_refused_where_only_the_whole_is_known() -> None:
    for text in ("hippocampal head", "hippocampal tail", "anterior hippocampus"):
        assert "known as a whole" in read_prompt(text, (Known("hippocampus"),)).refusal


def test_a_wider_structure_is_outlined_with_a_note() -> None:
    assert read_prompt("hippocampal body", HIPPOCAMPUS).note == "Read as “posterior hippocampus”."
    exact = read_prompt("anterior hippocampus", HIPPOCAMPUS)
    assert (exact.caption, exact.note) == ("anterior hippocampus", "")


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("anterior hipocampus", "anterior hippocampus"), ("anterior hippocmapus", "anterior hippocampus"),
        ("posteriorhippocampus", "posterior hippocampus"), ("hippo campus, posterior", "posterior hippocampus"),
    ],
)  # fmt: skip
def test_close_spelling_is_read_with_a_note(text: str, structure: str) -> None:
    reading = read_prompt(text, HIPPOCAMPUS)
    assert reading.structure == structure
    assert "Read as" in reading.note


def test_a_word_that_may_be_two_is_refused() -> None:
    known = (Known("ileum"), Known("liver"))
    assert "may mean" in read_prompt("ilum", known).refusal
    assert read_prompt("ilium", known).refusal


def test_words_of_daily_life_are_no_misspellings() -> None:
    for word in ("river", "lever", "oliver", "sliver", "hearth", "train"):
        assert read_prompt(word, (*LIVER, Known("heart"), Known("brain"))).refusal
    table, known = anatomy(), (*HIPPOCAMPUS, *CARDIAC, *ABDOMEN)
    daily = (*everyday_words(), *lookalikes())
    assert [word for word in daily if table.concept(table.key(word))] == []
    assert [word for word in daily if not read_prompt(word, known).refusal] == []


@pytest.mark.parametrize(
    "denial",
    ["no {}", "not the {}", "without {}", "everything except the {}", "{} excluding the rest", "anything other than {}",
     "non-{}", "{} absent", "never {}", "nothing but {}", "free of {}", "{}-free", "un{}", "minus {}"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["liver", "left ventricle"])
def test_a_denial_is_never_obeyed_as_the_structure(denial: str, name: str) -> None:
    reading = read_prompt(denial.format(name), (Known(name),))
    assert "Absent" in reading.refusal


def test_names_that_hold_a_denial_are_names() -> None:
    known = (Known("non-enhancing tumour core"), Known("notochord"), Known("no-reflow area"))
    assert read_prompt("core of the non-enhancing tumor", known).structure == "non-enhancing tumour core"
    assert read_prompt("notochord", known).structure == "notochord"
    assert read_prompt("no reflow", known).structure == "no-reflow area"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("liver and spleen", ABDOMEN), ("liver, spleen", ABDOMEN), ("liver/spleen", ABDOMEN),
        ("liver with tumour", ABDOMEN),
        ("anterior and posterior hippocampus", HIPPOCAMPUS), ("anterior, posterior hippocampus", HIPPOCAMPUS),
        ("hippocampal head & tail", HIPPOCAMPUS), ("LV + RV", CARDIAC), ("liver and tumour", (Known("liver tumour"),)),
    ],
)  # fmt: skip
def test_two_structures_are_refused(text: str, known: tuple[Known, ...]) -> None:
    reading = read_prompt(text, known)
    assert reading.refusal
    assert reading.structure is None


@pytest.mark.parametrize(
    ("text", "script"),
    [("печень", "Cyrillic"), ("肝臓", "Chinese"), ("ήπαρ", "Greek"), ("livеr", "Cyrillic"), ("كبد", "Arabic"),
     ("🧠", "empty")],
)  # fmt: skip
def test_scripts_that_are_not_read(text: str, script: str) -> None:
    assert script in read_prompt(text, LIVER).refusal


@pytest.mark.parametrize(
    ("text", "structure", "side"),
    [
        ("left kidney", "kidney_left", "left"), ("kidney, rt", "kidney_right", "right"),
        ("L kidney", "kidney_left", "left"),
        ("the kidney on the patient's left", "kidney_left", "left"), ("ren sinister", "kidney_left", "left"),
    ],
)  # fmt: skip
def test_sides_choose_the_structure(text: str, structure: str, side: str) -> None:
    reading = read_prompt(text, ABDOMEN)
    assert (reading.structure, reading.side) == (structure, side)


def test_a_side_is_read_apart_from_a_structure_without_one() -> None:
    assert read_prompt("left anterior hippocampus", HIPPOCAMPUS).side == "left"
    assert read_prompt("bilateral anterior hippocampus", HIPPOCAMPUS).side == "both"
    assert read_prompt("left and right blob", (Known("blob"),)).side == "both"
    assert read_prompt("left ventricle", CARDIAC).side is None


@pytest.mark.parametrize(
    "text",
    ["kidney", "both kidneys", "left right kidney", "contralateral kidney", "left liver",
     "kidney on the left of the image",
     "my left kidney", "image-left kidney", "left", "left and right kidney"],
)  # fmt: skip
def test_sides_that_cannot_be_obeyed_are_refused(text: str) -> None:
    assert read_prompt(text, ABDOMEN).refusal


def test_only_the_other_side_is_known() -> None:
    assert read_prompt("left kidney", (Known("right kidney"),)).refusal
    assert read_prompt("kidney", (Known("right kidney"),)).suggestions == ("right kidney",)


def test_ambiguous_abbreviations_name_what_they_may_mean() -> None:
    refused = read_prompt("PV", (Known("portal vein"), Known("pulmonary vein")))
    assert set(refused.suggestions) == {"portal vein", "pulmonary vein"}
    assert read_prompt("PV", (Known("portal vein", ("PV",)),)).structure == "portal vein"


@pytest.mark.parametrize(
    ("text", "caption", "side", "level"),
    [
        ("infection left base", LEFT_BASE, "left", "lower"),
        ("pnuemonia of the lower left lung", LEFT_BASE, "left", "lower"),
        ("left lower zone covid-19 pneumonia", LEFT_BASE, "left", "lower"),
        ("both lower lungs infected", BOTH_BASES, "both", "lower"),
        ("bibasal pneumonia", BOTH_BASES, "both", "lower"),
        ("pneumonia, lower left and right lung", BOTH_BASES, "both", "lower"),
        ("infection in the middle and upper right lung", CAPTIONS[2], "right", None),
        ("upper left and lower right infection",
         "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung", "both", None),
        ("pneumonia upper left and right lower lung",
         "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung", "both", None),
        ("left pneumonia",
         "unilateral pulmonary infection, three infected areas, upper middle lower left lung", "left", None),
    ],
)  # fmt: skip
def test_places_of_an_infection_become_a_caption(text: str, caption: str, side: str, level: str | None) -> None:
    reading = read_infection(text)
    assert (reading.caption, reading.side, reading.level) == (caption, side, level)
    assert reading.structure == "pulmonary infection"


def test_a_caption_of_the_study_stays_as_it_is() -> None:
    reading = read_infection(f"{BOTH_BASES}.".capitalize())
    assert (reading.caption, reading.note, reading.count) == (BOTH_BASES, "", 2)


@pytest.mark.parametrize(
    "text",
    ["liver", "left lung", "lower left lung", "no infection", "uninfected left lung", "unilateral infection",
     "bilateral infection, lower left lung", "infection left right", "infection and pleural effusion",
     "infection + liver",
     "infection, right more than left", "contralateral infection", "left base consolidation",
     "infection around the left base"],
)  # fmt: skip
def test_what_no_caption_says_is_refused(text: str) -> None:
    assert read_infection(text).refusal


@given(st.sampled_from(["left", "right"]), st.sampled_from(["upper", "middle", "lower"]),
       st.permutations(["p", "s", "l"]))  # fmt: skip
def test_no_order_of_words_moves_an_infection(side: str, level: str, order: list[str]) -> None:
    words = {"p": "pneumonia", "s": side, "l": level}
    assert read_infection(" ".join(words[o] for o in order)).caption.endswith(f"one infected area, {level} {side} lung")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for reading in (read_prompt(text, ABDOMEN), read_infection(text)):
        assert bool(reading.refusal) != bool(reading.caption)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(sorted(anatomy().vocabulary)), min_size=1, max_size=4))
def test_words_of_anatomy_are_read_only_where_every_one_belongs(words: list[str]) -> None:
    reading = read_prompt(" ".join(words), LIVER)
    if not reading.refusal:
        table = anatomy()
        concept = table.concept(table.key(" ".join(words)))
        assert concept is not None
        assert concept.entry.name == "liver"


_LEVEL_WORDS = {"upper": ("upper", "apical", "top"), "middle": ("middle", "mid"), "lower": ("lower", "basal")}
_SIDE_WORDS = {"left": ("left", "lt", "left-sided", "L"), "right": ("right", "rt", "right sided")}


def _place(draw: random.Random, side: str, levels: Sequence[str]) -> str:
    words = [draw.choice(_LEVEL_WORDS[level]) for level in levels]
    level = draw.choice([", ".join(words[:-1]) + " and " + words[-1], " ".join(words)]) if words[1:] else words[0]
    noun, where = draw.choice(["lung", "zone", "lobe", ""]), draw.choice(_SIDE_WORDS[side])
    forms = (f"{level} {where} {noun}", f"{where} {level} {noun}", f"the {level} part of the {where} {noun or 'lung'}")
    return draw.choice(forms).strip()


def test_generated_places_are_read_as_they_were_meant_or_refused() -> None:
    draw, refused = random.Random(0), 0
    for _ in range(1_000):
        sides = draw.sample(["left", "right"], draw.choice([1, 2]))
        cells = {side: [x for x in _LEVEL_WORDS if draw.random() < 0.5] or ["lower"] for side in sides}
        places = draw.choice([" and ", ", ", " + "]).join(_place(draw, side, cells[side]) for side in sides)
        finding = draw.choice(["pneumonia", "infection", "lung infection"])
        text = draw.choice([f"{finding} in {places}", f"{places} {finding}", f"{finding}, {places}"])
        reading = read_infection(text)
        refused += bool(reading.refusal)
        parts = [f"{' '.join(cells[side])} {side} lung" for side in ("left", "right") if side in cells]
        read = reading.caption.rsplit(", ", 1)[-1].split(" and ")
        assert reading.refusal or sorted(read) == sorted(parts), text
    assert refused < 100


def test_free_words_never_let_two_places_change_places() -> None:
    captions = ("nuclei high in the upper left", "nuclei high in the left, sparse in the right")
    words = {word for caption in captions for word in caption.replace(",", " ").split()}

    def read(text: str) -> ReadPrompt:
        return read_prompt(text, (Known("target"),), free_words=words, captions=captions)

    assert read("upper left, high nuclei").caption == captions[0]
    assert read(captions[1]).caption == captions[1]
    assert read("nuclei sparse in the left, high in the right").refusal


def test_wordings_with_a_place_stand_for_themselves_alone() -> None:
    finding = (Known("pulmonary infection", (), ("infection left base", "lower right lung infection")),)
    words = word_set("unilateral pulmonary infection one infected area lower left right lung")
    for free_words in ((), words):
        assert read_prompt("pneumonia", finding, free_words=free_words).caption == "pulmonary infection"
    exact = read_prompt("infection left base", finding, free_words=words)
    assert (exact.caption, exact.side, exact.level) == ("infection left base", "left", "lower")
    kidney = (Known("kidney", (), ("left kidney", "kidney")),)
    assert read_prompt("left kidney", kidney).side == "left"
    assert read_prompt("right kidney", kidney).side == "right"
    assert read_prompt("right kidney", kidney).caption == "kidney"


def test_long_texts_are_refused_quickly() -> None:
    assert read_prompt("liver " * 333, LIVER).structure == "liver"
    assert read_prompt("the liver of a very old man who walked along many rivers and saw great cities", LIVER).refusal
    assert read_prompt("x" * 3000, LIVER).refusal


def test_wordings_all_read_back_and_foreign_words_do_not() -> None:
    own = wordings(HIPPOCAMPUS[0], HIPPOCAMPUS)
    assert len(own) == len(set(own)) > 100
    assert {read_prompt(text, HIPPOCAMPUS).structure for text in own} == {"anterior hippocampus"}
    foreign = foreign_words(LIVER)
    assert {"spleen", "bread"} <= set(foreign)
    assert not {"liver", "abdomen", "liver cyst"} & set(foreign)
    assert len(foreign) > 500
    assert "kidney, left" in terms(Known("kidney_left"))
