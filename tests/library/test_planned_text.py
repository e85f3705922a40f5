"""The text mask of a run by minutes: geometry, ablations, what is kept between prompts, model on disk, a session."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from amvlm.config import EncoderSettings, PlannedTextSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.flags import with_settings
from amvlm.imaging import Volume
from amvlm.imaging.resample import IntensityScale, SliceGrid, slabs
from amvlm.inference import Session
from amvlm.learning.patch_features import PatchFeatureStore
from amvlm.learning.patches import PatchSampler, Place, PreparedCase, affine_moves, moved
from amvlm.learning.planned import _without_steps
from amvlm.learning.planned_text import _one_sided
from amvlm.learning.study import open_study
from amvlm.learning.texts import TextTable
from amvlm.models import AmvlmModel, TextMaskGenerator, VisionLanguageModel
from amvlm.models.half_unet import HalfUNet
from amvlm.models.planned import SURELY_NOT, PlannedStudent
from amvlm.models.planned_text import (
    Frame,
    PatchFeatures,
    PlannedFilmUNet,
    composed,
    plan_of_slices,
    planned_film_unet,
    projected_patches,
)
from amvlm.models.text_volume import VolumeTextMask
from amvlm.models.windows import Windows
from amvlm.planning import Plan
from amvlm.store import LabelStore

NAME = "anterior hippocampus"


def _plan(**changes: object) -> Plan:
    return Plan.model_validate(
        {
            "spacing_mm": (0.0, 1.0, 1.0), "patch": (1, 32, 32), "widths": (4, 8), "structures": (NAME,),
            "largest_part": (False,), "exclusive": False, "steps": 4, "minutes": 1, "batch_size": 4,
        } | changes
    )  # fmt: skip


def _network(plan: Plan | None = None, **settings: bool) -> PlannedFilmUNet:
    torch.manual_seed(0)
    network = PlannedFilmUNet(PlannedTextSettings(**settings), plan or _plan(), 8, 12, 0.05)
    network.fit_text(torch.randn(5, 12))
    return network.eval()


def _seen(count: int) -> PatchFeatures:
    return PatchFeatures(torch.randn(count, 8, 4, 4).half(), torch.eye(2, 3).expand(count, -1, -1))


# -- geometry ------------------------------------------------------------------------------------------


def test_patches_lie_where_the_moved_crop_lies() -> None:
    """A ramp as image, and the same ramp as the encoder's grid: turned, scaled, mirrored and shifted alike."""
    volume = Volume(np.zeros((50, 30, 1), np.float32), np.diag([1.0, 2.0, 4.0, 1.0]), planar=True)
    grid = SliceGrid.of(volume, 64, axis=2)
    shape = (40, 48)  # the plan's grid: 1.25 mm
    plan = _plan(patch=(1, 16, 24), mirror=(True, True), spacing_mm=(0.0, 1.25, 1.25))
    ramps = torch.stack(
        torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in shape], indexing="ij")
    )
    image = ramps[0] + 10 * ramps[1]
    case = PreparedCase(
        "x", image[None, None].numpy().astype(np.float16), np.zeros((1, 1, *shape), np.uint8), np.ones(1, np.float32),
        (4.0, 1.25, 1.25),
    )  # fmt: skip
    square = torch.zeros(1, 1, 64, 64)
    top, left, height, width = grid.window
    rows, columns = ((torch.arange(64) + 0.5 - first) / side for first, side in ((top, height), (left, width)))
    square[0, 0] = rows[:, None] + 10 * columns[None]
    sampler = PatchSampler(plan, [case])
    places = [Place(case, [0, 22, 26]), Place(case, [0, 18, 20])] * 8
    moves = affine_moves(16, sampler.crop, plan, np.random.default_rng(2))
    patches = moved(sampler.cut(places), plan, moves).image[:, 0]
    corners = [Frame.of(grid).place(shape, sampler.corner(place), sampler.crop) for place in places]
    seen = PatchFeatures(square.expand(16, -1, -1, -1), composed(torch.stack(corners), moves))
    sampled = seen.sampled(seen.grid, (16, 24))[:, 0]
    inside = (patches > 0.5) & (patches < 10.5)
    middle = inside[:, 4:12, 6:18]  # edges of the crop are repeated, the ramp of the square is not
    difference = (patches - sampled)[:, 4:12, 6:18][middle].abs()
    assert middle.float().mean() > 0.8
    assert difference.quantile(0.9) < 0.05


def test_a_padded_input_keeps_its_place() -> None:
    network, image = _network(), torch.randn(1, 1, 30, 21)
    ramp = torch.linspace(-1, 1, 64).view(1, 1, 1, 64).expand(1, 8, 64, 64)
    whole = PatchFeatures(ramp, torch.eye(2, 3)[None])
    found = network.encode(image, whole).patches
    assert found is not None
    sampled = found.sampled(ramp, (32, 24))[0, 0, 0, :21]
    assert torch.allclose(sampled, torch.linspace(-1 + 1 / 21, 1 - 1 / 21, 21), atol=0.03)


def test_windows_cover_a_plane_and_join_what_they_cut() -> None:
    plane = torch.randn(2, 1, 100, 70)
    windows = Windows((100, 70), (32, 32))
    assert len(windows.corners) > 1
    assert torch.allclose(windows.joined(windows.cut(plane)[:, :, 0]), plane[:, 0], atol=1e-5)
    single = Windows((60, 40), (32, 32))
    assert single.size == (60, 40)
    assert len(single.corners) == 1
    narrow = Windows((100, 20), (32, 32))
    part = plane[..., :20]
    assert torch.allclose(narrow.joined(narrow.cut(part)[:, :, 0]), part[:, 0], atol=1e-5)


def test_slices_of_a_3d_plan_are_read_with_close_neighbours() -> None:
    changes = {"dimensions": 3, "patch": (16, 32, 32), "network": "dynunet", "strides": ((2, 2, 2),)}
    close = plan_of_slices(_plan(**changes, spacing_mm=(1.5, 1.0, 1.0)))
    assert (close.dimensions, close.patch, close.inputs) == (2, (1, 32, 32), 3)
    assert plan_of_slices(_plan(**changes, spacing_mm=(4.0, 1.0, 1.0))).inputs == 1


# -- the network ---------------------------------------------------------------------------------------


def test_half_unets_made_before_are_read_unchanged() -> None:
    names = set(HalfUNet(1, 2, (4, 8)).state_dict())
    assert {"down.0.0.weight", "up.0.0.weight", "read.bias"} <= names
    assert HalfUNet(1, 2, (4, 8)).up[0][0].weight.shape[1] == 12


def test_a_second_prompt_reads_the_same_features() -> None:
    network, image, seen, text = _network(), torch.randn(3, 1, 32, 40), _seen(3), torch.randn(3, 12)
    features = network.encode(image, seen)
    assert torch.equal(network.decode(features, text), network(image, seen, text))
    assert network.decode(features, text).shape == (3, 1, 32, 40)
    assert not torch.equal(network.decode(features, text), network.decode(features, -text))


@pytest.mark.parametrize("part", ["similarity", "patch_features"])
def test_each_input_from_the_vision_language_model_can_be_left_out(part: str) -> None:
    image, text, seen, others = torch.randn(2, 1, 32, 32), torch.randn(2, 12), _seen(2), _seen(2)
    reading, off = _network(), _network(**{part: False})
    assert not torch.equal(reading(image, seen, text), reading(image, others, text))
    both_off = _network(similarity=False, patch_features=False)
    assert torch.equal(both_off(image, None, text), both_off(image, seen, text))
    assert off.reads_patches
    assert not both_off.reads_patches
    with pytest.raises(ValueError, match="reads patch features"):
        off(image, None, text)


def test_text_enters_at_every_level_or_at_the_last_alone() -> None:
    every, last = _network(), _network(film_levels=False)
    assert every.film[-1].out_features == 2 * (8 + 4)
    assert last.film[-1].out_features == 2 * 4
    levels = every.encode(torch.randn(1, 1, 32, 32), _seen(1))
    assert last.decode(levels, torch.randn(1, 12)).isfinite().all()


def test_each_switch_has_a_flag() -> None:
    found = []

    @with_settings(TrainSettings)
    def command(settings: TrainSettings) -> None:
        found.append(settings.text_mask)

    app = typer.Typer()
    app.command()(command)
    CliRunner().invoke(app, ["--no-similarity", "--no-film-levels"], catch_exceptions=False)
    assert found == [PlannedTextSettings(similarity=False, film_levels=False)]


# -- one volume ----------------------------------------------------------------------------------------


def _volume(network: PlannedFilmUNet, planes: Tensor, **changes: int) -> VolumeTextMask:
    grid = torch.randn(len(planes), 8, 4, 4, generator=torch.Generator().manual_seed(1)).half()
    frame = Frame((0, 0, 64, 64), 64)
    return VolumeTextMask(network, planes, lambda z: grid[z], frame, **changes)


def test_another_prompt_runs_the_decoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, encoded = _network(), []
    original = PlannedFilmUNet.encode
    monkeypatch.setattr(PlannedFilmUNet, "encode", lambda *given: encoded.append(1) or original(*given))
    volume = _volume(network, torch.randn(5, 1, 40, 40))
    text = torch.randn(12)
    first = volume.logits([0, 1, 2, 3, 4], text, volume.everywhere)
    assert len(encoded) == 5
    volume.logits([0, 1, 2, 3, 4], -text, volume.everywhere)
    assert len(encoded) == 5
    assert torch.allclose(volume.logits([3, 1], text, volume.everywhere), first[[3, 1]], atol=1e-5)


def test_features_beyond_the_bound_are_made_again_to_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    network, planes, text = _network(), torch.randn(6, 1, 100, 90), torch.randn(12)
    roomy = _volume(network, planes)
    every = list(range(6))
    answer = roomy.logits(every, text, roomy.everywhere)
    bound = roomy._bytes // 2
    tight = _volume(network, planes, most_bytes=bound)
    for _ in range(2):
        assert torch.equal(tight.logits(every, text, tight.everywhere), answer)
    assert 0 < tight._bytes <= bound
    assert len(tight._kept) < 6
    box = (slice(0, 6), slice(0, 40), slice(0, 40))
    tight.prepare(every, box)
    assert any(key[1:] == (0, 40, 0, 40) for key in tight._kept)  # those of another box made room


def test_outside_the_box_the_text_mask_is_surely_not() -> None:
    volume = _volume(_network(), torch.randn(4, 1, 50, 50))
    box = (slice(1, 3), slice(10, 40), slice(5, 30))
    found = volume.logits([0, 1, 2, 3], torch.randn(12), box)
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[1:3, 10:40, 5:30] = True
    assert (found[~inside] == SURELY_NOT).all()
    assert (found[inside] != SURELY_NOT).all()


# -- models and sessions -------------------------------------------------------------------------------


def _model(base: AmvlmModel, **changes: object) -> AmvlmModel:
    """A planned student that copies intensities, and an untrained text network of every input."""
    plan = _plan(**changes)
    student = PlannedStudent(plan)
    if plan.dimensions == 2:
        student.network = torch.nn.Conv2d(1, 1, 1, bias=False)
        torch.nn.init.ones_(student.network.weight)
    torch.manual_seed(1)
    settings = PlannedTextSettings()
    network = planned_film_unet(settings, plan, base.vlm, 0.3)
    network.fit_text(base.vlm.embed_prompt([NAME, "liver", "left lung", ""]).detach())
    return dataclasses.replace(
        base, generator=network.eval(), generator_settings=settings, student=student.eval(), student_settings=None,
        plan=plan,
    )  # fmt: skip


def _scan() -> Volume:
    array = np.random.default_rng(0).normal(size=(44, 36, 9)).astype(np.float32) * 0.05
    array[5:20, 5:20, 2:8] += 1.0
    return Volume(array, np.diag([1.0, 1.0, 4.0, 1.0]))


def test_a_session_answers_text_prediction_and_merge_on_the_plans_grid(build_model: Callable[..., AmvlmModel]) -> None:
    model = _model(build_model(), spacing_mm=(0.0, 2.0, 2.0), region_mm=(16.0, 20.0, 20.0), patch=(1, 8, 8))
    session = Session(model, _scan())
    results = list(session.segment(NAME, visible=7))
    assert results[0].indices == [7]
    masks = session.segment_volume(NAME)
    assert np.array_equal(masks["text mask"][:, :, 7], results[0].text_mask[0])
    lower = np.minimum(masks["text mask"], masks["prediction"]).astype(int)
    upper = np.maximum(masks["text mask"], masks["prediction"]).astype(int)
    assert ((masks["merged"] >= lower - 1) & (masks["merged"] <= upper + 1)).all()
    assert masks["text mask"][40:, 30:].max() == 0  # outside the region
    assert session.signs(NAME) is not None
    everywhere = session.segment_volume("liver")
    assert not everywhere["prediction"].any()
    assert everywhere["text mask"][40:, 30:].max() > 0
    assert np.array_equal(everywhere["merged"], everywhere["text mask"])
    assert isinstance(session.doubts("liver"), str)


def test_a_3d_model_answers_on_the_scans_slices(build_model: Callable[..., AmvlmModel]) -> None:
    network = {"network": "dynunet", "widths": (4, 8, 16), "strides": ((2, 2, 2),) * 2}
    changes = {"dimensions": 3, "patch": (16, 16, 16)} | network
    session = Session(_model(build_model(), **changes, spacing_mm=(2.0, 2.0, 2.0)), _scan())
    first = next(session.segment(NAME, visible=3))
    masks = session.segment_volume(NAME)
    assert all(mask.shape == session.shape for mask in masks.values())
    assert np.array_equal(masks["text mask"][:, :, 3], first.text_mask[0])


def test_a_model_on_disk_answers_as_before(build_model: Callable[..., AmvlmModel], tmp_path: Path) -> None:
    model = _model(build_model())
    model.student = PlannedStudent(_plan()).eval()
    model.save(tmp_path / "planned")
    loaded = AmvlmModel.load(tmp_path / "planned")
    assert isinstance(loaded.generator, PlannedFilmUNet)
    before, after = (Session(each, _scan()).segment_volume(NAME)["text mask"] for each in (model, loaded))
    assert np.array_equal(before, after)


def test_a_run_without_a_step_leaves_a_text_mask_that_needs_no_plan(
    build_model: Callable[..., AmvlmModel], tmp_path: Path
) -> None:
    base = build_model()
    unused = dataclasses.replace(_model(base), student=None, plan=None)
    assert _without_steps(base, unused).generator is base.generator
    again = _without_steps(_model(base), unused)
    assert isinstance(again.generator, TextMaskGenerator)
    again.save(tmp_path / "stopped")
    assert AmvlmModel.load(tmp_path / "stopped").plan is None


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described.update(plan=None),
        lambda described: described["plan"].update(widths=[2048] * 8),
        lambda described: described["plan"].update(widths=[4, 8, 16]),
        lambda described: described["generator"].update(similarity=False),
        lambda described: described["generator"].update(film_levels=False),
        lambda described: described["generator"].update(patch_features="all"),
        lambda described: described["generator"].update(channels=[16, 16]),
        lambda described: described["encoders"].update(embedding_size=64),
    ],
)  # fmt: skip
def test_a_strangers_description_is_refused_in_a_sentence(
    change: Callable[[dict[str, object]], None], build_model: Callable[..., AmvlmModel], tmp_path: Path
) -> None:
    model = _model(build_model())
    model.student = PlannedStudent(_plan()).eval()
    model.save(tmp_path / "theirs")
    described = json.loads((tmp_path / "theirs" / "config.json").read_text())
    described["weights_sha256"] = ""
    change(described)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError) as raised:
        AmvlmModel.load(tmp_path / "theirs")
    assert len(str(raised.value)) < 400


# -- learning ------------------------------------------------------------------------------------------


def test_patches_of_a_study_are_those_of_a_session(sample_store: LabelStore) -> None:
    torch.manual_seed(0)
    vlm = VisionLanguageModel(EncoderSettings(image_size=32)).eval()
    study = open_study(sample_store)
    case_id = next(iter(study.training))
    volume = sample_store.read_image(study.cases[case_id])
    axis = SliceGrid.of(volume, 32).axis
    store = PatchFeatureStore(sample_store, vlm, axis, study.cases)
    assert list(store.prepare([case_id])) == [1]
    grid = SliceGrid.of(volume, 32, axis)
    stack = grid.stack(volume.array)
    fresh = projected_patches(vlm, slabs(stack, IntensityScale.of(stack), grid, [3]))[0]
    assert torch.allclose(store.slice(case_id, 3, len(stack)).float(), fresh.float(), atol=1e-3)
    assert torch.equal(store.slice(case_id, 6, 2 * len(stack)), store.slice(case_id, 3, len(stack)))
    assert store.frame(case_id) == Frame.of(grid)
    other = PatchFeatureStore(sample_store, VisionLanguageModel(EncoderSettings(image_size=32)), axis, study.cases)
    assert other._folder != store._folder


def test_a_finding_on_both_sides_is_halved_on_the_whole_slice(sample_store: LabelStore) -> None:
    study = open_study(sample_store, wanted=[NAME])
    study.captions[("x", NAME)] = "bilateral infection, two infected areas, left lung and right lung"
    labels = np.zeros((1, 1, 40, 40), np.uint8)
    labels[0, 0, 2:8, 10:20], labels[0, 0, 30:36, 10:20] = 1, 1
    case = PreparedCase("x", np.zeros((1, 1, 40, 40), np.float16), labels, np.ones(1, np.float32), (1.0, 1.0, 1.0))
    place, side = _one_sided(TextTable(study), Place(case, [0, 5, 15]), 0, np.random.default_rng(0), 1.0)
    assert side in ("left", "right")
    assert place.case.mask(0).sum() == 60
    assert _one_sided(TextTable(study), Place(case, [0, 5, 15]), 0, np.random.default_rng(0), 0.0)[1] is None
