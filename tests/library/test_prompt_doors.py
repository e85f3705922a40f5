"""What a person types is read before a model sees it: on the command line, in a model's card, and by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amvlm.cli import main
from amvlm.imaging import Volume, read_volume, to_canonical
from amvlm.inference import Session, SliceResult
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
        again = SideCheck(wanted, axis, len(stack))  # type: ignore[arg-type]
        again.see_volume({"text mask": volume, "merged": volume})
        assert again.sentence() == check.sentence()


@pytest.mark.parametrize(("side", "first", "last"), [("left", 0, 5), ("right", 4, 9)])
def test_what_lies_on_the_other_side_is_not_kept(side: str, first: int, last: int) -> None:
    mask = np.full((9, 4, 3), 200, np.uint8)
    check = SideCheck(side, 2, 3)  # type: ignore[arg-type]
    nothing, stack = np.zeros((3, 9, 4), np.uint8), np.moveaxis(mask, 2, 0)
    check.see(SliceResult([0, 1, 2], nothing, stack, stack, 3, 3))  # the text finds nothing, the label is the merge
    assert check.share == 0.5
    kept = check.kept(mask)
    assert kept[first:last].all()
    assert kept.sum() == 200 * 5 * 12
    assert mask.all()
    assert "left out" in check.sentence(cut=True)
    assert "do not trust" in check.sentence()
    assert np.array_equal(check.kept(kept), kept)


@pytest.mark.parametrize(
    ("names", "captions", "prompt", "counts"),
    [
        (("kidney_left", "kidney_right"), False, "left kidney", True),
        (("kidney_left",), False, "left kidney", False),  # a scan of one side has its middle elsewhere
        (("anterior hippocampus",), False, "left anterior hippocampus", False),
        (("pulmonary infection",), True, "infection left base", True),
        (("pulmonary infection",), True, "pulmonary infection", False),
    ],
)
@pytest.mark.parametrize(
    ("sides_known", "planar"), [(True, False), (False, False), (False, True)], ids=["known", "unknown", "picture"]
)
def test_sides_are_counted_where_they_mean_something(
    names: tuple[str, ...], captions: bool, prompt: str, counts: bool, sides_known: bool, planar: bool,
    build_model: Callable[..., AmvlmModel],
) -> None:  # fmt: skip
    model = build_model(names=names)
    words = tuple(QATA.replace(",", "").split()) if captions else ()
    model.card = model.card.model_copy(update={"free_captions": captions, "words": words})
    array = np.zeros((8, 6, 1 if planar else 3), np.float32)
    session = Session(model, Volume(array, np.diag([-1.0, -1, 1, 1]), sides_known, planar))
    check = SideCheck.of(session, model.card.read(prompt))
    both = np.full(session.shape, 255, np.uint8)
    check.see_volume({"text mask": both, "merged": both})
    assert bool(check.sentence()) == (counts and (sides_known or planar))


def test_a_written_mask_holds_nothing_of_the_other_side(
    build_model: Callable[..., AmvlmModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    build_model(names=("kidney_left", "kidney_right")).save(tmp_path / "kidneys")

    def everywhere(session: Session, _: str) -> dict[str, np.ndarray]:
        return dict.fromkeys(("text mask", "prediction", "merged"), np.full(session.shape, 255, np.uint8))

    monkeypatch.setattr(Session, "segment_volume", everywhere)
    monkeypatch.setattr(Session, "doubts", lambda *_: "")
    written = {}
    for prompt in ("left kidney", "right kidney"):
        command = ["segment", str(first_scan()), "--model", str(tmp_path / "kidneys"), "--prompt", prompt]
        main([*command, "-o", str(tmp_path / "mask.nii.gz")])
        written[prompt] = to_canonical(read_volume(tmp_path / "mask.nii.gz")).array
        assert "50% of this mask lie on the patient's other side" in " ".join(capsys.readouterr().err.split())
    middle = len(written["left kidney"]) // 2
    assert written["left kidney"][:middle].all()
    assert not written["left kidney"][middle + 1 :].any()
    assert not written["right kidney"][:middle].any()


# -- models of reports ---------------------------------------------------------------------------------


def test_guards_are_on_for_models_of_reports(
    build_model: Callable[..., AmvlmModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(names=("pulmonary infection",))
    volume = Volume(np.random.default_rng(0).random((20, 20, 2)).astype(np.float32), np.eye(4))
    old = model.card.model_copy(update={"free_captions": True})
    new = old.model_copy(update={"words": tuple(QATA.replace(",", "").split())})
    model.card = old
    session = Session(model, volume)
    assert "is a guess" in session.warnings("liver")[0]
    assert session.warnings("pulmonary infection of the left lung") == []
    same = session._text("pulmonary infection")
    monkeypatch.setattr(session, "_text", lambda _: same)  # a model that does not read
    list(session.segment("liver"))
    session._areas += 1
    monkeypatch.setattr(session, "_masks", lambda *_: (np.full((2, 20, 20), 255, np.uint8),) * 3)
    assert "make no difference" in session.doubts("liver")
    model.card = new
    assert session.warnings("liver") == [new.read("liver").refusal]
    assert session.warnings("infection left base") == []


def test_a_model_of_one_structure_refuses_every_other(build_model: Callable[..., AmvlmModel]) -> None:
    card = build_model(names=("liver",)).card
    for prompt in ("spleen", "the liver's neighbour", "no liver", "bread"):
        reading = card.read(prompt)
        assert reading.structure is None
        assert "“liver”" in reading.refusal
