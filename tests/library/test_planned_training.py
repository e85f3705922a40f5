"""Training by minutes: prepared study, patches, student, model on disk, session, resume."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from amvlm.cli import main
from amvlm.config import PlannedTextSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Finished, Note, Progress, Validation
from amvlm.imaging import Volume
from amvlm.imaging.regrid import grid_shape, resampled, resampled_labels
from amvlm.inference import Session, find_model
from amvlm.learning import RunFolder, planned_opening, planned_text, train
from amvlm.learning.before import dices_before
from amvlm.learning.fitting import patch_loss, pseudo_labelled
from amvlm.learning.going_on import known_text, start_student, widths_to_keep
from amvlm.learning.patches import PatchSampler, PreparedCase, affine_moves, augmented, moved, plain
from amvlm.learning.prepared import PreparedStudy
from amvlm.learning.runtime import Clock
from amvlm.learning.study import open_study
from amvlm.losses import masked_dice_bce
from amvlm.losses.exclusive import exclusive_dice_ce, structure_logits
from amvlm.models import AmvlmModel
from amvlm.models.half_unet import HalfUNet
from amvlm.models.planned import PlannedStudent, View, grown_box, keep_largest_part, turned, with_context
from amvlm.models.planned_text import PlannedFilmUNet, planned_film_unet
from amvlm.models.scan import plan_input
from amvlm.planning import Intensities, Normalisation, Plan
from amvlm.store import LabelStore


def _plan(**changes: object) -> Plan:
    return Plan.model_validate(
        {
            "spacing_mm": (0.0, 1.0, 1.0), "patch": (1, 32, 32), "widths": (4, 8), "structures": ("a", "b"),
            "largest_part": (False, False), "steps": 4, "minutes": 1, "batch_size": 4,
        } | changes
    )  # fmt: skip


def _case(shape: tuple[int, int, int] = (5, 40, 50), name: str = "case") -> PreparedCase:
    labels = np.zeros((shape[0], 1, *shape[1:]), np.uint8)
    labels[1:4, 0, 10:20, 10:20], labels[1:4, 0, 10:20, 20:30] = 1, 2
    image = np.random.default_rng(0).normal(size=(shape[0], 1, *shape[1:])).astype(np.float16) + labels
    return PreparedCase(name, image, labels, np.ones(2, np.float32), (1.0, 1.0, 1.0))


# -- the grid ------------------------------------------------------------------------------------------


def test_grids_keep_the_extent() -> None:
    assert grid_shape((10, 200, 100), (10.0, 1.5, 1.5), (0.0, 3.0, 0.75)) == (10, 100, 200)


@pytest.mark.parametrize("factor", [0.4, 1.7, 3.0])
def test_labels_of_another_resolution_never_dilate(factor: float) -> None:
    rows, columns = np.mgrid[:60, :60]
    disc = ((rows - 30) ** 2 + (columns - 30) ** 2 < 15**2).astype(np.uint8)[None]
    shape = (1, round(60 * factor), round(60 * factor))
    labels = resampled_labels([disc], shape, exclusive=True)
    area = labels.sum() / factor**2
    assert area == pytest.approx(disc.sum(), rel=0.03)


def test_exclusive_labels_lie_side_by_side_and_overlapping_ones_stay_apart() -> None:
    left, right = np.zeros((2, 1, 8, 9), np.uint8)
    left[0, :, :5], right[0, :, 4:] = 1, 1
    maps = resampled_labels([left, right], (1, 16, 18), exclusive=False)
    assert (maps[:, 0] & maps[:, 1]).any()
    right[0, :, 4] = 0
    label = resampled_labels([left, right], (1, 16, 18), exclusive=True)
    assert set(np.unique(label)) == {1, 2}


def test_resampling_across_slices_is_linear() -> None:
    planes = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert resampled(planes, (8, 2, 2))[3:5, 0, 0, 0].tolist() == [1.25, 1.75]


def test_ct_is_clipped_and_scaled_by_the_studys_foreground() -> None:
    hounsfield = Intensities(low=-100, high=300, mean=100, sd=50)
    plan = _plan(normalisation=Normalisation(modalities=("CT",), foreground=hounsfield))
    volume = Volume(np.full((4, 5, 6), 1000, np.int16), np.diag([1.0, 1.0, 2.0, 1.0]), modality="CT")
    planes, spacing = plan_input(volume, plan)
    assert planes.shape == (6, 1, 4, 5)
    assert spacing == (2.0, 1.0, 1.0)
    assert torch.all(planes == 4.0)  # (300 − 100) / 50


# -- losses --------------------------------------------------------------------------------------------


def test_exclusive_loss_by_hand() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    labels = torch.tensor([[[1, 1], [0, 0]]])
    found = exclusive_dice_ce(logits, labels, torch.ones(1, 2))
    dice = (2 * 2 / 3 + 1) / (4 / 3 + 2 + 1)  # p = 1/3 everywhere, two of four pixels; the absent one is skipped
    assert float(found) == pytest.approx(np.log(3) + 1 - dice)


def test_an_unjudged_structure_is_not_background() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 2] = 5.0
    known = torch.tensor([[1.0, 0.0]])
    unjudged = exclusive_dice_ce(logits, torch.zeros(1, 2, 2, dtype=torch.int64), known)
    assert unjudged.item() == pytest.approx(-np.log(1 - 1 / (2 + np.exp(5))), rel=1e-3)


def test_structure_logits_are_positive_where_the_structure_wins() -> None:
    logits = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    margins = structure_logits(logits, exclusive=True)
    winner = logits.argmax(1)
    for structure in range(3):
        assert torch.equal(margins[:, structure] > 0, winner == structure + 1)


# -- the network and its answers -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (30, 41), (7, 5)])
@pytest.mark.parametrize("strides", [(), ((1, 2, 2), (1, 2, 1))])
def test_a_student_reads_any_size(size: tuple[int, int], strides: tuple[tuple[int, int, int], ...]) -> None:
    plan = _plan(strides=strides, network="dynunet", widths=(4, 8, 8)) if strides else _plan()
    assert PlannedStudent(plan)(torch.randn(2, 1, *size)).shape == (2, 3, *size)


def test_folding_pixels_into_channels_loses_none() -> None:
    network = HalfUNet(1, 3, (4, 8))
    assert network.read.out_channels == 12
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 3, 8, 8)


def test_context_repeats_the_edges() -> None:
    planes = torch.arange(3.0).view(3, 1, 1, 1)
    assert with_context(planes, torch.tensor([0, 2]), 1).flatten(1).tolist() == [[0, 0, 1], [1, 2, 2]]


def test_a_box_grows_within_the_volume() -> None:
    box = (slice(0, 2), slice(10, 20), slice(28, 30))
    assert grown_box(box, [4.0, 4.0, 10.0], (5, 40, 30)) == (slice(0, 3), slice(10, 20), slice(24, 30))


def test_only_the_largest_part_is_kept() -> None:
    logits = torch.full((1, 10, 10), -3.0)
    logits[0, :4, :4], logits[0, 8:, 8:] = 2.0, 5.0
    keep_largest_part(logits)
    assert int((logits > 0).sum()) == 16
    assert logits[0, 9, 9] == -10


@pytest.mark.parametrize("patch", [(1, 32, 32), (1, 16, 16)])
def test_answers_lie_on_the_scans_grid_and_the_region_is_found(patch: tuple[int, int, int]) -> None:
    """A network that copies the intensity: the region keeps the large block, what is far from it is background."""
    plan = _plan(patch=patch, structures=("a",), largest_part=(False,), exclusive=False, region_mm=(4.0, 12.0, 12.0))
    student = PlannedStudent(plan)
    student.network = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(student.network.weight)
    planes = torch.full((5, 1, 60, 70), -1.0)
    planes[1:4, 0, 10:20, 10:20], planes[4, 0, 50:53, 60:63] = 1.0, 1.0
    logits = student.volume_logits(planes, (1.0, 1.0, 1.0))
    assert logits.shape == (1, 5, 60, 70)
    assert torch.equal(logits[0, 1:4, 10:20, 10:20] > 0, torch.ones(3, 10, 10, dtype=torch.bool))
    assert int((logits > 0).sum()) == 300


@pytest.mark.parametrize("mirror", [False, True])
def test_accurate_answers_average_turned_and_mirrored_copies(mirror: bool) -> None:
    student = PlannedStudent(_plan(mirror=(mirror, mirror))).eval()
    planes = torch.randn(3, 1, 32, 48)
    once, many = (student.volume_logits(planes, (1.0, 1.0, 1.0), accurate) for accurate in (False, True))
    assert not torch.equal(once, many)
    other_way = student.volume_logits(planes.flip(-1), (1.0, 1.0, 1.0), accurate=True)
    assert torch.allclose(many, other_way.flip(-1), atol=1e-4) == mirror


def test_a_turned_copy_comes_back() -> None:
    """A disc off the centre of a slice that is wider than high, turned by 30° and back."""
    rows, columns = np.mgrid[:40, :64]
    disc = torch.from_numpy(((rows - 14) ** 2 + (columns - 40) ** 2 < 25).astype(np.float32))[None]
    there = turned(disc, 30.0)
    centre = [float((there[0] * torch.from_numpy(place)).sum() / there.sum()) for place in (rows, columns)]
    middle, reach = np.array([19.5, 31.5]), np.hypot(5.5, 8.5)
    assert np.hypot(*(np.array(centre) - middle)) == pytest.approx(reach, abs=0.2)
    assert np.hypot(*(np.array(centre) - [14, 40])) == pytest.approx(2 * reach * np.sin(np.pi / 12), abs=0.2)
    assert float((View((-1,), 30.0).back(View((-1,), 30.0).of(disc)) - disc).abs().mean()) < 0.02


def test_a_3d_student_reads_blocks() -> None:
    plan = _plan(
        dimensions=3, spacing_mm=(1.0, 1.0, 1.0), patch=(8, 32, 32), network="dynunet", widths=(4, 8, 8),
        strides=((1, 2, 2), (2, 2, 2)),
    )  # fmt: skip
    batch = PatchSampler(plan, [_case()]).draw(2, np.random.default_rng(0))
    moved = augmented(batch, plan, np.random.default_rng(1))
    assert moved.image.shape == (2, 8, 32, 32)
    assert moved.labels.shape == (2, 1, 8, 32, 32)
    student = PlannedStudent(plan)
    assert patch_loss(student, moved).isfinite()
    assert student.volume_logits(torch.randn(5, 1, 40, 50), (1.0, 1.0, 1.0)).shape == (2, 5, 40, 50)


# -- patches -------------------------------------------------------------------------------------------


def test_a_third_of_the_patches_is_centred_on_foreground() -> None:
    plan = _plan(patch=(1, 4, 4), region_mm=(3.0, 30.0, 30.0))
    case = _case((5, 200, 200))
    rng = np.random.default_rng(0)
    batch = plain(PatchSampler(plan, [case]).draw(600, rng), plan)
    on_foreground = (batch.labels[:, 0, 2, 2] > 0).float().mean()
    assert 0.33 < on_foreground < 0.6  # a third by design, and some of those that fall into the region


def test_images_and_labels_move_together() -> None:
    labels = np.zeros((1, 1, 64, 64), np.uint8)
    labels[0, 0, 20:40, 25:45] = 1
    case = PreparedCase("x", labels.astype(np.float16), labels, np.ones(1, np.float32), (1.0, 1.0, 1.0))
    plan = _plan(structures=("a",), largest_part=(False,), patch=(1, 48, 48), mirror=(True, True), batch_size=16)
    sampler = PatchSampler(plan, [case])
    moves = affine_moves(16, sampler.crop, plan, np.random.default_rng(1))
    turned = moved(sampler.draw(16, np.random.default_rng(0)), plan, moves)
    assert ((turned.image > 0.5) == (turned.labels > 0.5)).float().mean() > 0.99


def test_a_case_smaller_than_the_patch_and_one_slice_are_read() -> None:
    plan = _plan(patch=(1, 64, 64))
    small = _case((1, 40, 30))
    batch = augmented(PatchSampler(plan, [small]).draw(4, np.random.default_rng(0)), plan, np.random.default_rng(0))
    assert batch.image.shape == (4, 1, 64, 64)
    assert batch.image.isfinite().all()


def test_the_same_chance_draws_the_same_patches() -> None:
    plan, cases = _plan(), [_case()]
    first, second = (
        augmented(PatchSampler(plan, cases).draw(4, np.random.default_rng(3)), plan, np.random.default_rng(4))
        for _ in range(2)
    )
    assert torch.equal(first.image, second.image)


def test_overlapping_structures_learn_by_a_sigmoid_each() -> None:
    plan = _plan(exclusive=False)
    student = PlannedStudent(plan)
    batch = PatchSampler(plan, [_case()]).draw(2, np.random.default_rng(0))
    stacked = torch.cat([batch.labels == 1, batch.labels == 2], 1).float()
    both = plain(batch._replace(labels=stacked), plan)
    expected = masked_dice_bce(student.eval()(both.image), both.labels, both.known)
    assert patch_loss(student, both).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("exclusive", [True, False])
def test_pseudo_labels_leave_what_was_judged_and_what_was_rejected(exclusive: bool) -> None:
    """Structure a was judged, b is missing, c was rejected; the student says that everything is b."""
    names = {"structures": ("a", "b", "c"), "largest_part": (False,) * 3, "exclusive": exclusive}
    student = PlannedStudent(_plan(**names)).eval()
    outputs = student.plan.outputs
    student.network = torch.nn.Conv2d(1, outputs, 1)
    torch.nn.init.zeros_(student.network.weight)
    with torch.no_grad():
        student.network.bias.fill_(-5.0)[outputs - 2] = 5.0
    labels = np.zeros((3, 1 if exclusive else 3, 32, 32), np.uint8)
    labels[1, 0, 5:9, 5:9] = 1
    case = PreparedCase("x", np.zeros((3, 1, 32, 32), np.float16), labels, np.array([1, 0, 0], np.float32), (1, 1, 1))
    found = pseudo_labelled(student, case, np.array([0, 1, 0], np.float32))
    assert found.known.tolist() == [1, 1, 0]
    assert np.array_equal(found.mask(0), labels[:, 0] == 1)
    assert found.mask(1).sum() == 3 * 32 * 32 - (16 if exclusive else 0)
    assert not found.mask(2).any()
    judged = PreparedCase("x", case.image, labels, np.ones(3, np.float32), (1, 1, 1))
    with pytest.raises(ValueError, match="x is judged"):
        pseudo_labelled(student, judged)


# -- a session -----------------------------------------------------------------------------------------


def _planned_model(model: AmvlmModel, **changes: object) -> AmvlmModel:
    """An untrained planned student, which copies intensities, beside the text side of ``model``."""
    plan = _plan(structures=("anterior hippocampus",), largest_part=(True,), exclusive=False, **changes)
    student = PlannedStudent(plan)
    student.network = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(student.network.weight)
    return dataclasses.replace(model, student=student.eval(), student_settings=None, plan=plan)


def _scan() -> Volume:
    """A large bright block and a small one far from it, on a coarse, oddly shaped grid."""
    array = np.zeros((44, 36, 9), np.float32)
    array[5:20, 5:20, 2:8], array[40:43, 30:34, 8] = 1.0, 1.0
    return Volume(array, np.diag([1.0, 1.0, 4.0, 1.0]))


def test_a_session_answers_the_slice_on_screen_first_and_drops_small_parts_at_the_end(
    build_model: Callable[..., AmvlmModel],
) -> None:
    session = Session(_planned_model(build_model()), _scan())
    results = list(session.segment("anterior hippocampus", visible=8))
    assert results[0].indices == [8]
    assert results[0].prediction[0][41, 32] > 127  # not known yet to be a part of its own
    assert results[-1].indices == [8]
    assert results[-1].prediction[0][41, 32] == 0
    again = session.segment_volume("anterior hippocampus")
    truth = np.zeros(session.shape, bool)
    truth[5:20, 5:20, 2:8] = True
    assert np.array_equal(again["prediction"] > 127, truth)


def test_text_and_prediction_meet_on_the_plans_grid(build_model: Callable[..., AmvlmModel]) -> None:
    model = _planned_model(build_model(), spacing_mm=(0.0, 2.0, 2.0))
    session = Session(model, _scan())
    masks = session.segment_volume("anterior hippocampus")
    lower = np.minimum(masks["text mask"], masks["prediction"]).astype(int)
    upper = np.maximum(masks["text mask"], masks["prediction"]).astype(int)
    assert ((masks["merged"] >= lower - 1) & (masks["merged"] <= upper + 1)).all()
    assert session.signs("anterior hippocampus") is not None
    unknown = session.segment_volume("liver")
    assert not unknown["prediction"].any()
    assert np.array_equal(unknown["merged"], unknown["text mask"])


def test_a_scan_stored_otherwise_gets_the_same_mask(build_model: Callable[..., AmvlmModel]) -> None:
    model, scan = _planned_model(build_model()), _scan()
    flipped = Volume(scan.array.transpose(2, 0, 1)[:, ::-1], _flipped_affine())
    first, second = (Session(model, each).segment_volume("anterior hippocampus") for each in (scan, flipped))
    assert np.array_equal(first["prediction"], second["prediction"])


def _flipped_affine() -> np.ndarray:
    """Storage axes slices, rows (reversed), columns → the world of :func:`_scan`."""
    return np.array([[0, -1.0, 0, 43], [0, 0, 1.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])


# -- a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def validated_store(sample_store: LabelStore) -> LabelStore:
    """The sample study with two validation cases judged."""
    for case in sample_store.cases("val")[:2]:
        for structure in sample_store.structures():
            mask = sample_store.read_reference(case, structure.name)
            if mask is not None:
                sample_store.accept(case.case_id, structure.name, mask)
    return sample_store


def _train(
    store: LabelStore, model: AmvlmModel, run: str, broken: str = "", resume: bool = False
) -> list[AnyEvent]:
    """Train by minutes; ``broken`` ends, as a kill would, after the first checkpoint of that stage."""
    settings = TrainSettings(minutes=1, batch_size=4, threads=1, precision="fp32", checkpoint_every=3, device="cpu")
    events: list[AnyEvent] = []
    with RunFolder(store.folder / "runs" / run) as folder:
        for event in train(store, model, settings, folder, run, resume=resume):
            events.append(event)
            if broken and any((folder.path / broken).glob("checkpoint-*")):
                break
    return events


def test_a_planned_run_saves_a_model_that_segments_on_the_scans_grid(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel], quick: None
) -> None:
    sample_store = validated_store
    events = _train(sample_store, build_model(), "first")
    assert isinstance(events[-1], Finished)
    said = next(e.text for e in events if isinstance(e, Note))
    assert said.startswith("The plan: 2-D, 1 mm, patches of")
    assert any(isinstance(e, Validation) and e.student for e in events)
    folder = sample_store.folder / "models" / "first"
    model = AmvlmModel.load(folder)
    assert model.plan is not None
    assert all(s.text_weight == 0.0 and s.expected_dice is None for s in model.card.structures)  # two cases are few
    assert model.plan.structures == tuple(s.name for s in model.card.structures)
    case = sample_store.cases("test")[0]
    volume = sample_store.read_image(case)
    session = Session(model, volume)
    masks = session.segment_volume(model.plan.structures[0])
    assert all(mask.shape == session.shape for mask in masks.values())
    assert session.signs(model.plan.structures[0]) is not None
    kept = json.loads((folder / "config.json").read_text())
    kept["plan"]["version"] = 99
    (folder / "config.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="another version"):
        AmvlmModel.load(folder)


def test_the_model_so_far_is_measured_on_the_new_grid(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel]
) -> None:
    study = open_study(validated_store)
    plan = _plan(structures=tuple(study.names))
    prepared = PreparedStudy(validated_store, plan)
    list(prepared.prepare(list(study.cases.values())))
    cases = [prepared.case(case_id, own) for case_id, own in study.validation.items()]
    bundled = AmvlmModel.load(find_model("bundled"))
    dices = dices_before(bundled, study, plan, cases, torch.device("cpu"))
    for kind in ("student", "text_mask"):
        assert set(dices[kind]) == set(study.names)
        assert all(dice > 0.7 for dice in dices[kind].values())
    as_planned = _planned_model(build_model())
    generator = planned_film_unet(PlannedTextSettings(), as_planned.plan, as_planned.vlm, 0.05).eval()
    for model in (as_planned, dataclasses.replace(as_planned, generator=generator)):
        found = dices_before(model, study, plan, cases, torch.device("cpu"))
        assert set(found["student"]) == set(found["text_mask"]) == {"anterior hippocampus"}
    assert dices_before(None, study, plan, cases, torch.device("cpu")) == {}


def test_the_plan_is_printed_with_its_reasons(
    sample_store: LabelStore, quick: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["plan", str(sample_store.folder), "--minutes", "2", "--json", str(tmp_path / "plan.json")])
    printed = capsys.readouterr().out
    assert printed.startswith("2-D, 0.5 mm, patches of")
    assert "they never overlap in the accepted masks" in " ".join(printed.replace("│", " ").split())
    assert Plan.model_validate_json((tmp_path / "plan.json").read_text()).minutes == 2
    with pytest.raises(SystemExit):
        main(["plan", str(sample_store.folder), "--minutes", "0.02"])
    assert "too few" in capsys.readouterr().err


def test_a_run_broken_off_goes_on_to_the_same_bytes(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel], quick: None
) -> None:
    """Broken off in the first phase, and resumed through the labelling of the other scans."""
    sample_store, model = validated_store, build_model()
    events = _train(sample_store, model, "whole")
    assert any(isinstance(e, Progress) and e.stage == "training on all scans" for e in events)
    _train(sample_store, model, "broken", broken="student")
    _train(sample_store, model, "broken", resume=True)
    whole, broken = (
        (sample_store.folder / "models" / name / "model.safetensors").read_bytes() for name in ("whole", "broken")
    )
    assert whole == broken


def test_a_run_goes_on_from_a_model_of_the_same_layers_and_structures(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel], quick: None
) -> None:
    """Its student and its text network; another structure, or the wish for it, begins with random weights."""
    _train(validated_store, build_model(), "first")
    base = AmvlmModel.load(validated_store.folder / "models" / "first")
    events = _train(validated_store, base, "second")
    assert any(isinstance(e, Note) and "goes on from first" in e.text for e in events)
    second = AmvlmModel.load(validated_store.folder / "models" / "second")
    assert second.plan is not None
    assert base.plan is not None
    assert second.plan.widths == base.plan.widths
    settings = TrainSettings()
    student = PlannedStudent(second.plan)
    assert start_student(student, base, settings)
    assert torch.equal(student.network.read.weight, base.student.network.read.weight)
    assert isinstance(second.generator, PlannedFilmUNet)
    assert known_text(base, second.generator, settings) is base.generator
    other = second.plan.model_copy(update={"structures": ("liver", "spleen")})
    assert not start_student(PlannedStudent(other), base, settings)
    anew = TrainSettings(from_scratch=True)
    assert not start_student(student, base, anew)
    assert known_text(base, second.generator, anew) is None
    assert widths_to_keep(base, ["liver"], settings) == widths_to_keep(base, base.plan.structures, anew) == ()


def test_a_run_that_goes_on_repeats_bit_for_bit_after_a_break(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel], quick: None
) -> None:
    _train(validated_store, build_model(), "first")
    base = AmvlmModel.load(validated_store.folder / "models" / "first")
    _train(validated_store, base, "whole")
    _train(validated_store, base, "broken", broken="student")
    _train(validated_store, base, "broken", resume=True)
    first, whole, broken = (
        (validated_store.folder / "models" / name / "model.safetensors").read_bytes()
        for name in ("first", "whole", "broken")
    )
    assert whole == broken != first


def test_a_structure_keeps_its_channels_among_others(build_model: Callable[..., AmvlmModel]) -> None:
    """From a sigmoid each of three structures to a softmax of two of them, in another order."""
    plan = _plan(structures=("a", "b", "c"), exclusive=False, largest_part=(False,) * 3)
    before = PlannedStudent(plan).eval()
    base = dataclasses.replace(build_model(), plan=plan, student=before)
    fewer = plan.model_copy(update={"structures": ("c", "a"), "exclusive": True, "largest_part": (False,) * 2})
    after = PlannedStudent(fewer).eval()
    assert start_student(after, base, TrainSettings())
    image = torch.randn(1, plan.inputs, 32, 32)
    with torch.no_grad():
        old, new = before(image), after(image)
    assert torch.allclose(new[:, 1:], old[:, [2, 0]], atol=1e-6)
    assert float(new[:, 0].abs().max()) == 0


def test_a_run_broken_off_in_the_text_stage_goes_on_to_the_same_bytes(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned_opening, "text_steps", lambda *_: 7)
    monkeypatch.setattr(planned_text, "Clock", _EveryStep)
    model = build_model()
    _train(validated_store, model, "whole")
    events = _train(validated_store, model, "broken", broken="text")
    assert isinstance(events[-1], Progress)
    assert (events[-1].stage, events[-1].step) == ("teaching the text mask", 4)
    _train(validated_store, model, "broken", resume=True)
    whole, broken = (
        (validated_store.folder / "models" / name / "model.safetensors").read_bytes() for name in ("whole", "broken")
    )
    assert whole == broken


class _EveryStep(Clock):
    """Progress at every step."""

    def due(self) -> bool:
        return True


def test_a_text_batch_that_memory_does_not_hold_goes_through_in_parts(
    validated_store: LabelStore, build_model: Callable[..., AmvlmModel], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = list[int](), PlannedFilmUNet.forward

    def small(self: PlannedFilmUNet, image: Tensor, *others: object) -> Tensor:
        if self.training:
            seen.append(len(image))
            if len(image) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(PlannedFilmUNet, "forward", small)
    assert isinstance(_train(validated_store, build_model(), "small")[-1], Finished)
    assert seen == [4, 2, 2, 2, 2]
    monkeypatch.setattr(PlannedFilmUNet, "forward", _full)
    with pytest.raises(UserError, match="does not hold one patch"):
        _train(validated_store, build_model(), "none")


def _full(*_: object) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")
