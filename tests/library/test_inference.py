"""The session and the evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from amvlm.errors import UserError
from amvlm.imaging import Volume, read_volume, to_canonical, to_original
from amvlm.inference import Session, bundled_model_folder, evaluate
from amvlm.models import AmvlmModel
from amvlm.models.quality import ExpectedDice
from amvlm.sample.study import START_SET, sample_splits
from amvlm.store import LabelStore

Builder = Callable[..., AmvlmModel]
STUDY = Path(bundled_model_folder()).parent / "study" / "imagesTr"


@pytest.fixture(scope="module")
def bundled() -> AmvlmModel:
    return AmvlmModel.load(bundled_model_folder())


@pytest.fixture
def scan() -> Volume:
    return read_volume(sorted(STUDY.iterdir())[0])


def test_the_visible_slice_comes_first_then_outward(bundled: AmvlmModel, scan: Volume) -> None:
    session = Session(bundled, scan)
    results = list(session.segment("anterior hippocampus", visible=20))
    assert results[0].indices == [20]
    order = [z for result in results for z in result.indices]
    assert sorted(order) == list(range(session.slices))
    assert [abs(z - 20) for z in order] == sorted(abs(z - 20) for z in order)
    assert results[-1].done == results[-1].total == session.slices


def test_a_further_prompt_runs_no_image_network(
    bundled: AmvlmModel, scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(bundled, scan)
    first = session.segment_volume("anterior hippocampus")

    def never(*_: object) -> None:
        raise AssertionError("the image was embedded again")

    monkeypatch.setattr(bundled.generator, "encode", never)
    second = session.segment_volume("posterior hippocampus")
    again = session.segment_volume("anterior hippocampus")
    assert not np.array_equal(first["text mask"], second["text mask"])
    assert np.array_equal(first["text mask"], again["text mask"])


def test_cancelling_stops_between_batches_and_can_go_on(bundled: AmvlmModel, scan: Volume) -> None:
    session = Session(bundled, scan)
    steps = session.segment("anterior hippocampus")
    next(steps)
    steps.close()
    whole = Session(bundled, scan).segment_volume("anterior hippocampus")
    assert np.array_equal(session.segment_volume("anterior hippocampus")["text mask"], whole["text mask"])


def test_one_scan_in_48_orders_gives_one_mask(bundled: AmvlmModel, scan: Volume) -> None:
    wanted = Session(bundled, scan).segment_volume("posterior hippocampus")["merged"]
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            orientation = np.array(list(zip(axes, flips, strict=True)))
            affine = scan.affine @ inv_ornt_aff(orientation, scan.shape)
            other = Volume(apply_orientation(scan.array, orientation), affine)
            probs = Session(bundled, other).segment_volume("posterior hippocampus")["merged"]
            assert to_original(probs, other).shape == other.shape
            assert np.array_equal(probs, wanted)


def test_an_unknown_structure_is_said_before_running(bundled: AmvlmModel, scan: Volume) -> None:
    session = Session(bundled, scan)
    (warning,) = session.warnings("liver")
    assert "anterior hippocampus" in warning
    assert "Train" in warning
    assert session.warnings("the anterior hippocampus, upper third") == []
    assert session.prediction_of("liver") is None
    masks = session.segment_volume("liver")
    assert not masks["prediction"].any()
    assert np.array_equal(masks["merged"], masks["text mask"])


def test_another_kind_of_image_is_a_warning(bundled: AmvlmModel) -> None:
    picture = Volume(
        np.random.default_rng(0).random((40, 30, 1)), np.diag([-1.0, -1, 1, 1]), sides_known=False, planar=True
    )
    warnings = Session(bundled, picture).warnings("anterior hippocampus")
    assert any("2-D pictures" in text for text in warnings)
    assert any("left" in text for text in warnings)


def test_a_model_of_image_sides_reads_swapped_words(build_model: Builder, scan: Volume, tmp_path: Path) -> None:
    """A card of an earlier release; only its structures' own wordings are read as they are."""
    model = build_model(names=("lung", "left kidney"))
    prompts = ("right lung", "left kidney", "left kidney, upper pole")
    patient = {prompt: Session(model, scan).segment_volume(prompt)["text mask"] for prompt in prompts}
    model.card = model.card.model_copy(update={"laterality": "image"})
    model.save(tmp_path / "old")
    session = Session(AmvlmModel.load(tmp_path / "old"), scan)
    assert np.array_equal(session.segment_volume("left lung")["text mask"], patient["right lung"])
    assert np.array_equal(session.segment_volume("left kidney")["text mask"], patient["left kidney"])
    swapped = session.segment_volume("right kidney, upper pole")["text mask"]
    assert np.array_equal(swapped, patient["left kidney, upper pole"])


def test_rgb_pictures_are_segmented(build_model: Builder) -> None:
    picture = Volume(
        np.random.default_rng(0).integers(0, 255, (40, 30, 1, 3), np.uint8), np.diag([-1.0, -1, 1, 1]), False, True
    )
    assert Session(build_model(), picture).segment_volume("nuclei")["text mask"].shape == (40, 30, 1)


def test_empty_prompts_are_refused(bundled: AmvlmModel, scan: Volume) -> None:
    with pytest.raises(UserError, match="empty"):
        next(Session(bundled, scan).segment("  "))


def test_the_bundled_model_is_as_good_as_its_card_says(bundled: AmvlmModel, sample_store: LabelStore) -> None:
    found = evaluate(bundled, sample_store, "test", limit=4)
    for (kind, structure), summary in found.summaries().items():
        assert summary.mean_dice > 0.7, (kind, structure)
    assert bundled.card.labelled_cases == len(START_SET) == 5
    trained_on = {sample_store.case(r.case_id).case_id for r in sample_store.snapshot().revisions}
    assert trained_on.isdisjoint(found.case_ids)
    assert [split for name, split in sample_splits().items() if name in START_SET] == ["train"] * 5


def test_evaluation_without_a_truth_says_so(bundled: AmvlmModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expert mask"):
        evaluate(bundled, LabelStore.create(tmp_path / "s"), "test")


def test_canonical_results_lie_on_the_canonical_grid(bundled: AmvlmModel, scan: Volume) -> None:
    session = Session(bundled, scan)
    assert session.shape == to_canonical(scan).shape


def test_the_result_of_pamr_is_used(build_model: Builder, scan_path: Path) -> None:
    """The release throws it away."""
    model = build_model()
    plain = Session(model, read_volume(scan_path)).segment_volume("anterior hippocampus")["text mask"]
    model.generator_settings = model.generator_settings.model_copy(update={"pamr_iterations": 10})
    refined = Session(model, read_volume(scan_path)).segment_volume("anterior hippocampus")["text mask"]
    assert (plain != refined).any()


def test_doubts_are_said(bundled: AmvlmModel, scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(bundled, scan)
    list(session.segment("anterior hippocampus"))
    assert session.doubts("anterior hippocampus") == ""
    list(session.segment("spleen"))
    same = session._text("anterior hippocampus")
    monkeypatch.setattr(session, "_text", lambda _: same)  # a model that does not read
    list(session.segment("spleen"))
    assert "make no difference" in session.doubts("spleen")
    list(session.segment("anterior hippocampus"))
    monkeypatch.setattr(ExpectedDice, "of", lambda *_: 0.31)
    assert "expected Dice 0.31" in session.doubts("anterior hippocampus")
    monkeypatch.setattr(session, "_areas", session._areas * 0)
    monkeypatch.setattr(session, "signs", lambda _: SimpleNamespace(agreement=0.0))
    assert "finds no “anterior hippocampus”" in session.doubts("anterior hippocampus")
