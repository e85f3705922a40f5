"""What a person types is read before a model sees it: on the command line, in a model's card, and by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amvlm.cli import main
from amvlm.imaging import read_volume
from amvlm.inference import SliceResult
from amvlm.inference.sides import SideCheck
from amvlm.learning.texts import shared_words
from amvlm.models import AmvlmModel
from amvlm.sample import bundled_model_folder
from amvlm.sample.study import first_scan

QATA = "unilateral pulmonary infection, one infected area, lower left lung"


def segment(prompt: str, output: Path) -> np.ndarray:
    main(["segment", str(first_scan()), "--prompt", prompt, "-o", str(output)])
    return read_volume(output).array


@pytest.mark.parametrize("words", ["hippocampal head", "anterior hipocampus", "the front of the hippocampus, please"])
def test_other_words_for_a_structure_give_its_mask(words: str, tmp_path: Path) -> None:
    exact = segment("anterior hippocampus", tmp_path / "exact.nii.gz")
    assert exact.any()
    assert np.array_equal(segment(words, tmp_path / "other.nii.gz"), exact)


@pytest.mark.parametrize(
    "words", ["spleen", "no anterior hippocampus", "a", "anterior and posterior hippocampus", "гиппокамп", "xyzzy"]
)
def test_what_cannot_be_read_makes_no_mask(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        segment(words, tmp_path / "mask.nii.gz")
    assert ended.value.code == 2
    assert not (tmp_path / "mask.nii.gz").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_card_reads_and_a_model_of_old_reports_takes_texts_as_they_are() -> None:
    card = AmvlmModel.load(bundled_model_folder()).card
    assert card.read("hippocampal head").caption == "anterior hippocampus"
    assert card.read("liver").refusal
    assert "does not tell left from right" in card.read("left hippocampal head").note
    assert "left from right" not in card.read("hippocampal head").note
    old = card.model_copy(update={"free_captions": True})
    assert old.read("Infection left base").caption == "infection left base"
    new = card.model_copy(update={"free_captions": True, "words": tuple(QATA.replace(",", "").split())})
    assert new.read("liver").refusal


def test_a_card_keeps_only_words_that_several_reports_share() -> None:
    captions = {(f"case-{n}", "infection"): QATA for n in range(6)}
    captions |= {(f"case-1{n}", "infection"): f"{QATA}, seen by dr xyzzy" for n in range(6)}
    captions |= {("case-20", "infection"): "mass of the left lung of maria"}
    captions |= {(f"case-3{n}", "infection"): "left lung 12.03.1961" for n in range(6)}
    words, texts = shared_words(captions)
    assert texts == (QATA,)
    assert {"pulmonary", "infection", "left"} <= set(words)
    assert not {"xyzzy", "maria", "mass"} & set(words)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_on_the_other_side_is_said(axis: int) -> None:
    volume = np.zeros((10, 8, 6), np.uint8)
    volume[:5, 2:4, 2:4] = 255  # low indices: the patient's left
    stack = np.moveaxis(volume, axis, 0)
    for wanted, bad in (("left", False), ("right", True), ("both", False), (None, False)):
        check = SideCheck(wanted, axis, len(stack))  # type: ignore[arg-type]
        for z in range(len(stack)):
            check.see(SliceResult([z], stack[z : z + 1], stack[z : z + 1], stack[z : z + 1], z + 1, len(stack)))
        assert bool(check.sentence()) == bad
        assert not bad or "100%" in check.sentence()
