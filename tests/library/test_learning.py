"""The loops on the real sample study, with the smallest networks: they learn, stop, resume and say what is missing."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from amvlm.config import EncoderSettings, GeneratorSettings, PretrainSettings, StudentSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import EventReader, Finished, Note, Progress, Started, Validation
from amvlm.imaging.halves import half
from amvlm.learning import pretrain, train
from amvlm.learning.augment import cut_mix_boxes, mixed, weak_view
from amvlm.learning.calibration import CaseLogits, fit_text_weights
from amvlm.learning.captioned import _written
from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.noise import CaseNoise
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import LabelledCase, load_labelled, open_study, sample_labelled, with_controls
from amvlm.learning.texts import TextTable
from amvlm.models import AmvlmModel, build_student
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

Builder = Callable[..., AmvlmModel]
NAMES = ("anterior hippocampus", "posterior hippocampus")
SMALL = {
    "steps": 6,
    "batch_size": 4,
    "validate_every": 3,
    "checkpoint_every": 2,
    "precision": "fp32",
    "device": "cpu",
    "student": StudentSettings(network="unet", channels=(8, 16)),
}


def accept_reference(store: LabelStore, case_id: str, structures: tuple[str, ...] = NAMES) -> None:
    for name in structures:
        store.accept(case_id, name, store.masks.read(store.references()[case_id, name]).array)


@pytest.fixture
def judged_store(sample_store: LabelStore) -> LabelStore:
    """The start set and five validation cases are judged."""
    for case in sample_store.cases("val")[:5]:
        accept_reference(sample_store, case.case_id)
    return sample_store


def run_training(store: LabelStore, model: AmvlmModel, settings: TrainSettings, name: str = "new") -> list[object]:
    run = RunFolder.new(store.folder)
    with run:
        return list(train(store, model, settings, run, name))


def test_training_saves_a_model_and_says_what_it_learned_from(judged_store: LabelStore, build_model: Builder) -> None:
    events = run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL))
    started = next(e for e in events if isinstance(e, Started))
    assert (started.labelled, started.unlabelled, started.validation) == (5, 17, 5)
    assert [e.step for e in events if isinstance(e, Validation)] == [0, 3, 6]
    assert isinstance(events[-1], Finished)
    card = AmvlmModel.load(judged_store.folder / "models" / "new").card
    assert card.revisions == tuple(r.revision_id for r in judged_store.snapshot().revisions)
    assert [s.calibration for s in card.structures] == ["validation cases"] * 2
    assert set(card.validation) >= {"before student", "after student", "after text_mask", "after merged"}


def test_training_in_bf16(judged_store: LabelStore, build_model: Builder) -> None:
    for form in ("film_unet", "frozen_linear"):
        events = run_training(
            judged_store, build_model(form, names=NAMES), TrainSettings(**{**SMALL, "precision": "bf16"})
        )
        losses = [value for e in events if isinstance(e, Progress) for value in e.losses.values()]
        assert losses
        assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize("mode", ["image_only", "labelled_only"])
def test_the_controls_run_by_the_same_recipe(judged_store: LabelStore, build_model: Builder, mode: str) -> None:
    events = run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL, mode=mode))
    losses = {name for e in events if isinstance(e, Progress) for name in e.losses}
    assert "L_text" not in losses
    assert ("L_pseudo" in losses) == (mode == "image_only")


def test_few_cases_are_calibrated_by_cross_fit(sample_store: LabelStore, build_model: Builder) -> None:
    events = run_training(sample_store, build_model(names=NAMES), TrainSettings(**SMALL))
    assert any(isinstance(e, Note) and "No validation case" in e.text for e in events)
    card = AmvlmModel.load(sample_store.folder / "models" / "new").card
    assert [s.calibration for s in card.structures] == ["cross-fit"] * 2


def test_one_labelled_case_is_enough_and_uncalibrated(sample_store: LabelStore, build_model: Builder) -> None:
    keep = sample_store.snapshot().revisions[0].case_id
    for revision in sample_store.snapshot().revisions:
        if revision.case_id != keep:
            sample_store.undo(revision.case_id, revision.structure)
    run_training(sample_store, build_model(names=NAMES), TrainSettings(**SMALL))
    card = AmvlmModel.load(sample_store.folder / "models" / "new").card
    assert card.labelled_cases == 1
    assert [s.calibration for s in card.structures] == ["uncalibrated"] * 2
    assert [s.text_weight for s in card.structures] == [0.5, 0.5]


def test_without_a_label_training_says_what_to_do(sample_store: LabelStore, build_model: Builder) -> None:
    for revision in sample_store.snapshot().revisions:
        sample_store.undo(revision.case_id, revision.structure)
    with pytest.raises(UserError, match="no training case is labelled"):
        run_training(sample_store, build_model(names=NAMES), TrainSettings(**SMALL))


def test_a_structure_without_a_label_is_named(judged_store: LabelStore, build_model: Builder) -> None:
    judged_store.add_structure("liver")
    with pytest.raises(UserError, match="nothing is accepted for liver"):
        run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL, structures=("liver",)))


def test_references_and_test_cases_are_never_trained_on(judged_store: LabelStore) -> None:
    test_case = judged_store.cases("test")[0].case_id
    accept_reference(judged_store, test_case)
    study = open_study(judged_store)
    assert test_case not in study.training
    assert test_case not in study.unlabelled
    assert all(judged_store.current(case_id, name) for case_id, found in study.training.items() for name in found)


def test_an_unjudged_structure_is_unknown_and_a_rejected_one_left_alone(sample_store: LabelStore) -> None:
    pool = [c.case_id for c in sample_store.cases("train") if not sample_store.current(c.case_id, NAMES[0])]
    accept_reference(sample_store, pool[0], NAMES[:1])
    for name in NAMES:
        sample_store.mark(pool[1], name, "rejected")
    study = open_study(sample_store)
    assert pool[0] in study.unlabelled  # for its other structure
    assert pool[1] not in study.unlabelled
    bank = SliceBank(sample_store, 32)
    list(bank.prepare(list(study.cases.values())))
    labelled = {case.case_id: case for case in load_labelled(bank, study.names, study.training)}
    assert labelled[pool[0]].known.tolist() == [1.0, 0.0]


def test_a_mask_changed_on_disk_is_refused(judged_store: LabelStore, build_model: Builder) -> None:
    revision = judged_store.snapshot().revisions[0]
    path = judged_store.masks.path(revision.mask_sha256)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|changed on disk"):
        run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL))


def test_stopping_leaves_a_usable_model(judged_store: LabelStore, build_model: Builder) -> None:
    run = RunFolder.new(judged_store.folder)
    steps = {**SMALL, "steps": 5000, "validate_every": 5000}
    with run:
        events = train(judged_store, build_model(names=NAMES), TrainSettings(**steps), run, "stopped")
        for event in events:
            if isinstance(event, Progress) and event.stage == "training":
                run.ask_to_stop()
            last = event
    assert isinstance(last, Finished)
    assert last.stopped_early
    assert AmvlmModel.load(judged_store.folder / "models" / "stopped").student is not None


def test_a_resumed_run_is_bitwise_the_unbroken_one(
    judged_store: LabelStore, build_model: Builder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = build_model(names=NAMES)
    settings = TrainSettings(**SMALL)
    run_training(judged_store, base, settings, "whole")
    run = RunFolder.new(judged_store.folder)
    with run:
        for event in train(judged_store, base, settings, run, "broken"):
            if isinstance(event, Validation) and event.step == 3:
                break  # killed after step 3; the last checkpoint is of step 2
    assert (run.path / "checkpoint-0000002" / "state.json").is_file()
    judged_store.mark_absent(judged_store.cases("train")[0].case_id, NAMES[0])  # later edits do not reach the run
    with run:
        list(train(judged_store, base, settings, run, "broken", resume=True))
    whole, broken = (AmvlmModel.load(judged_store.folder / "models" / name) for name in ("whole", "broken"))
    for part, network in whole.networks().items():
        other = broken.networks()[part].state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items()), part
    assert whole.card.revisions == broken.card.revisions


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pretraining_aligns_and_teaches_both_forms(sample_store: LabelStore, precision: str) -> None:
    for form in ("film_unet", "frozen_linear"):
        settings = PretrainSettings(
            steps=3, generator_steps=3, batch_size=4, precision=precision, device="cpu",
            encoders=EncoderSettings(image_size=32),
            generator=GeneratorSettings(form=form, network="unet", channels=(8, 16)),
        )  # fmt: skip
        run = RunFolder.new(sample_store.folder)
        with run:
            events = list(pretrain(sample_store, settings, run, form))
        losses = {name for e in events if isinstance(e, Progress) for name in e.losses}
        parts = {"L_ita", "L_css", "L_pdt", "L_local", "L_icl", "L_mask"}
        assert losses >= parts | ({"L_tg"} if form == "frozen_linear" else set())
        assert all(math.isfinite(value) for e in events if isinstance(e, Progress) for value in e.losses.values())
        card = AmvlmModel.load(sample_store.folder / "models" / form).card
        assert (card.kind, card.labelled_cases) == ("pretrained", 5)


def test_the_teacher_averages_buffers_too() -> None:
    student = build_student(StudentSettings(network="unet", channels=(8, 16)), 1)
    teacher = make_teacher(student)
    student.train()(torch.randn(2, 3, 16, 16) * 5)
    update_ema(teacher, student, step=1, decay=0.99)  # d = min(1 − 1/2, 0.99) = 0.5
    before, now = (
        make_teacher(build_student(StudentSettings(network="unet", channels=(8, 16)), 1)),
        student.state_dict(),
    )
    del before
    for name, tensor in teacher.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.allclose(tensor, 0.5 * now[name], atol=1e-6)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_cut_mix_moves_image_and_targets_by_the_same_box() -> None:
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    box = cut_mix_boxes(CaseNoise((1,), "abcd"), 16, 16)
    strong, target, block = mixed(image, box), mixed(image[:, :1], box), mixed(image[:, None], box)
    assert torch.equal(strong[:, :1], target)
    assert torch.equal(strong, block[:, 0])
    assert torch.equal((strong != image)[:, :1], box)
    assert box.flatten(1).any(1).tolist().count(True) in (1, 2, 3)
    assert not cut_mix_boxes(CaseNoise((1,), "abcd"), 16, 16, share=0.0).any()


def test_a_weak_view_moves_image_and_mask_together() -> None:
    mask = torch.zeros(8, 1, 32, 32)
    mask[:, :, 8:20, 10:24] = 1
    mirrored = torch.arange(8) % 2 == 0
    image, moved = weak_view(mask.expand(-1, 3, -1, -1).clone(), mask, CaseNoise((0,), "abcdefgh"), mirrored, 2)
    agree = ((image[:, :1] > 0.5) == (moved > 0.5)).float().mean()
    assert agree > 0.99
    assert (moved != mask).any()


def test_at_most_a_third_of_the_slices_is_empty() -> None:
    masks = np.zeros((1, 30, 8, 8), np.uint8)
    masks[0, 10:13] = 1
    case = LabelledCase("c", masks, np.ones(1, np.float32))
    _, found, _ = sample_labelled([case], 600, np.random.default_rng(0))
    empty = float((found.sum((1, 2, 3)) == 0).float().mean())
    assert 0.25 < empty < 0.42


def test_a_bad_text_mask_gets_no_weight_and_a_good_one_all() -> None:
    masks = np.zeros((1, 4, 8, 8), np.uint8)
    masks[0, 1:3, 2:6, 2:6] = 1
    case = LabelledCase("c", masks, np.ones(1, np.float32))
    right = torch.from_numpy(masks).float() * 8 - 4
    assert fit_text_weights([CaseLogits(right, -3 * right, case)], 1) == [0.0]
    assert fit_text_weights([CaseLogits(-3 * right, right, case)], 1) == [1.0]
    assert fit_text_weights([CaseLogits(right, right, case)], 1) == [0.5]


def test_shuffled_and_empty_captions_change_training_texts_only(sample_store: LabelStore) -> None:
    study = open_study(sample_store)
    study.captions = {(case_id, NAMES[0]): f"caption {n % 3}" for n, case_id in enumerate(study.cases)}
    true = set(study.captions.values())
    shuffled = with_controls(study, "shuffled", 0)
    assert set(shuffled.captions.values()) == true
    assert all(shuffled.captions[key] != text for key, text in study.captions.items())
    assert set(TextTable(with_controls(study, "empty", 0), wordings=False).texts) == {*NAMES, ""}


def test_masks_are_not_dilated_by_resampling(sample_store: LabelStore) -> None:
    study = open_study(sample_store)
    bank = SliceBank(sample_store, 64)
    list(bank.prepare(list(study.cases.values())))
    found = next(iter(study.training.values()))
    revision = found[NAMES[0]]
    share = bank.mask(revision).mean()
    mask = sample_store.read_mask(revision)
    shape = np.array(mask.shape)
    padding = shape[:2].min() / shape[:2].max()
    assert share == pytest.approx(mask.mean() * padding, rel=0.05)


def test_the_cache_can_be_deleted(sample_store: LabelStore) -> None:
    study = open_study(sample_store)
    for _ in range(2):
        bank = SliceBank(sample_store, 32)
        list(bank.prepare(list(study.cases.values())))
        assert bank.slabs([(next(iter(study.cases)), 0)]).shape == (1, 3, 32, 32)
        shutil.rmtree(sample_store.folder / "cache")


def test_a_follower_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = Progress(stage="training", step=1, steps=2, losses={"L": math.pi}).model_dump_json() + "\n"
    reader = EventReader(path)
    assert list(reader.new_events()) == []
    path.write_text(line + line[:10])
    assert len(list(reader.new_events())) == 1
    path.write_text(line + line)
    assert len(list(reader.new_events())) == 1


def test_captions_written_from_masks_name_what_is_there() -> None:
    masks = np.zeros((1, 9, 10, 10), np.uint8)
    masks[0, 1, 1:3, 1:3] = 1  # two parts, both at low x: the patient's left
    masks[0, 1, 1:3, 6:8] = 1
    masks[0, 8, 6:9, 2:9] = 1
    judged = LabelledCase("c", masks, np.ones(1, np.float32))
    one, two = list(_written(judged, ["lesion"], "left"))
    assert one.caption == "lesion, two areas, lower third, medium, left side"
    assert two.caption == "lesion, one area, upper third, large, right side"
    assert next(_written(judged, ["lesion"], None)).caption == "lesion, two areas, lower third, medium"
    picture = np.zeros((1, 1, 10, 10), np.uint8)
    picture[0, 0, 0, 8] = 1  # one pixel of a picture, high up
    (only,) = _written(LabelledCase("p", picture, np.ones(1, np.float32)), ["lesion"], "right")
    assert only.caption == "lesion, one area, upper third, small, right side"


def test_half_a_finding_is_its_connected_parts_on_that_side() -> None:
    mask = np.zeros((10, 10), np.float32)
    mask[1:4, 2:4] = 1
    mask[3:9, 6:9] = 1  # reaches over the middle, its centre does not
    assert np.array_equal(half(mask, low=True), mask * (np.arange(10) < 5)[None])
    assert np.array_equal(half(mask, low=True) + half(mask, low=False), mask)


def test_a_mirrored_sample_gets_its_text_with_sides_swapped(sample_store: LabelStore) -> None:
    study = open_study(sample_store)
    case_id = next(iter(study.training))
    study.captions = {(case_id, NAMES[0]): "two areas, upper left lung and lower right lung"}
    table = TextTable(study)
    plain, mirrored, left = (
        table.texts[int(table.rows([case_id], None, [turned], [side])[0, 0])]
        for turned, side in ((False, None), (True, None), (True, "left"))
    )
    assert plain == "two areas, upper left lung and lower right lung"
    assert mirrored == "two areas, upper right lung and lower left lung"
    assert left == "upper right lung"
