"""The pre-training losses as one module: gradients reach what they should, and only the batch is a batch."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amvlm.config import EncoderSettings, GeneratorSettings, PretrainSettings
from amvlm.errors import UserError
from amvlm.events import Note, Progress
from amvlm.exchange import import_study
from amvlm.learning import pretrain
from amvlm.learning.align import validation_interval
from amvlm.learning.alignment import Alignment
from amvlm.learning.augment import weak_view
from amvlm.learning.batches import shuffled_order
from amvlm.learning.captioned import CaptionedImage, CaptionedImages, negatives_of, positives_of
from amvlm.learning.context import Context
from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.noise import CaseNoise
from amvlm.learning.pairs import Pairs, draw_pairs
from amvlm.learning.runtime import FiniteWatch, start_accelerator
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import load_labelled, open_study
from amvlm.models import AmvlmModel, VisionLanguageModel, build_generator
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

SIZE = 32
ENCODERS = EncoderSettings(image_size=SIZE, embedding_size=32)
CAPTIONS = ["left lung, upper", "right lung, lower", "left lung, upper", "both lungs", "left lobe and left lung"]


def settings(**changed: object) -> PretrainSettings:
    return PretrainSettings(**{"encoders": ENCODERS, "batch_size": 4, "precision": "fp32", "device": "cpu", **changed})


def some_pairs(vlm: VisionLanguageModel, captions: list[str], shared: bool = True) -> Pairs:
    torch.manual_seed(1)
    count = len(captions)
    batch = [CaptionedImage(f"case-{n}", 0, text, frozenset([text])) for n, text in enumerate(captions)]
    unique = list(dict.fromkeys(captions))
    text, rows = vlm.tokenise(unique), torch.tensor([unique.index(caption) for caption in captions])
    words = text.words.shape[1]
    patches = (SIZE // vlm.patch) ** 2
    return Pairs(
        image=torch.randn(count, 1, 3, SIZE, SIZE), other_view=torch.randn(count, 1, 3, SIZE, SIZE),
        present=torch.ones(count, 1, dtype=torch.bool), text=text, text_row=rows, other_text=text, other_row=rows,
        image_noise=torch.randn(2, count, 1 + patches, 32), text_noise=torch.randn(2, count, 1 + words, 32),
        positives=positives_of(batch, shared), negatives=negatives_of(batch, shared), own=torch.arange(count),
        case_ids=[item.case_id for item in batch],
    )  # fmt: skip


def permuted(pairs: Pairs, order: Tensor) -> Pairs:
    found = copy.copy(vars(pairs))
    for name in ("image", "other_view", "present", "text_row", "other_row"):
        found[name] = found[name][order]
    for name in ("image_noise", "text_noise"):
        found[name] = found[name][:, order]
    for name in ("positives", "negatives"):
        found[name] = found[name][order][:, order]
    return Pairs(**found)


@pytest.fixture
def vlm() -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(ENCODERS)


def stirred(alignment: Alignment) -> Alignment:
    """Away from the start, where last layers are zero."""
    torch.manual_seed(3)
    for name, parameter in alignment.named_parameters():
        if "vlm" not in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return alignment


def test_every_part_is_there_and_finite(vlm: VisionLanguageModel) -> None:
    alignment = Alignment(vlm, settings())
    losses, notes = alignment(some_pairs(vlm, CAPTIONS), make_teacher(alignment.online))
    assert set(losses) == {"L_ita", "L_local", "L_css", "L_pdt", "L_icl"}
    assert all(bool(torch.isfinite(loss)) and loss.item() > 0 for loss in losses.values())
    assert {"sd_log_g_words", "sd_log_g_patches", "similarity"} <= set(notes)


@pytest.mark.parametrize("uncertainty", ["exp", "exp_paper", "sigmoid"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_ablations_run(vlm: VisionLanguageModel, uncertainty: str, shared: bool) -> None:
    positives = "multi_positive" if shared else "diagonal"
    alignment = Alignment(vlm, settings(uncertainty=uncertainty, positives=positives))
    losses, _ = alignment(some_pairs(vlm, CAPTIONS, shared), make_teacher(alignment.online))
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ("css_weight", {"L_css", "L_pdt"}),
        ("local_weight", {"L_local"}),
        ("icl_weight", {"L_icl"}),
        ("pdt_weight", {"L_pdt"}),
    ],
)
def test_a_weight_of_zero_leaves_a_part_out(vlm: VisionLanguageModel, off: str, gone: set[str]) -> None:
    alignment = Alignment(vlm, settings(**{off: 0.0}))
    momentum = make_teacher(alignment.online) if off != "icl_weight" else None
    losses, _ = alignment(some_pairs(vlm, CAPTIONS), momentum)
    assert set(losses) == {"L_ita", "L_local", "L_css", "L_pdt", "L_icl"} - gone


def test_icl_alone_reaches_every_parameter_of_both_online_encoders(vlm: VisionLanguageModel) -> None:
    """The release computes it without gradient. Keys' biases are left out: attention does not depend on them."""
    alignment = stirred(Alignment(vlm, settings()))
    momentum = make_teacher(alignment.online)
    losses, _ = alignment(some_pairs(vlm, CAPTIONS), momentum)
    losses["L_icl"].backward()
    constant = ("key.bias", "k_proj.bias")
    silent = [
        name
        for name, parameter in vlm.named_parameters()
        if (parameter.grad is None or float(parameter.grad.abs().max()) == 0) and not name.endswith(constant)
    ]
    assert silent == []
    assert all(parameter.grad is None for parameter in momentum.parameters())


def test_css_gives_no_gradient_to_the_transformers_and_pdt_none_to_the_encoders(vlm: VisionLanguageModel) -> None:
    alignment = stirred(Alignment(vlm, settings(icl_weight=0.0)))
    losses, _ = alignment(some_pairs(vlm, CAPTIONS), None)
    transformers = [p for name, p in alignment.named_parameters() if "online.vlm" not in name]
    losses["L_css"].backward(retain_graph=True)
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in transformers)
    vlm.zero_grad()
    losses["L_pdt"].backward()
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in vlm.parameters())


def test_every_distribution_transformer_moves(vlm: VisionLanguageModel) -> None:
    alignment = Alignment(vlm, settings())
    momentum = make_teacher(alignment.online)
    parts = {
        "patches": alignment.online.patches, "words": alignment.online.words,
        "seen patches": alignment.seen_patches, "seen words": alignment.seen_words,
    }  # fmt: skip
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    optimiser = torch.optim.AdamW(alignment.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(12):
        optimiser.zero_grad()
        losses, _ = alignment(some_pairs(vlm, CAPTIONS), momentum)
        sum(losses.values()).backward()
        optimiser.step()
        update_ema(momentum, alignment.online, 1, 0.995)
    for name, part in parts.items():
        still = [key for key, tensor in part.state_dict().items() if torch.equal(tensor, before[name][key])]
        assert still == [], name


def test_permuting_the_batch_permutes_nothing_but_the_batch(vlm: VisionLanguageModel) -> None:
    alignment = stirred(Alignment(vlm, settings()))
    momentum = make_teacher(alignment.online)
    pairs, order = some_pairs(vlm, CAPTIONS), torch.tensor([3, 0, 4, 2, 1])
    one, _ = alignment(pairs, momentum)
    two, _ = alignment(permuted(pairs, order), momentum)
    for name, loss in one.items():
        assert loss.item() == pytest.approx(two[name].item(), abs=1e-5), name


def test_two_samples_of_one_caption_do_not_repel_each_other(vlm: VisionLanguageModel) -> None:
    """With one caption in the whole batch there is nothing between samples to learn."""
    alignment = stirred(Alignment(vlm, settings()))
    losses, _ = alignment(some_pairs(vlm, ["left lung, upper"] * 3), make_teacher(alignment.online))
    assert [losses[name].item() for name in ("L_ita", "L_local", "L_icl")] == [0, 0, 0]
    same_story = ["lung infection, two infected areas, left lung", "left lung, pulmonary infection"]
    batch = [CaptionedImage(text, 0, text, frozenset([text])) for text in same_story]
    assert not bool(negatives_of(batch).any())


def test_a_batch_of_one_and_empty_captions_are_zero_not_nan(vlm: VisionLanguageModel) -> None:
    alignment = Alignment(vlm, settings())
    for captions in (["left lung"], ["", ""], ["left lung", ""]):
        losses, _ = alignment(some_pairs(vlm, captions), make_teacher(alignment.online))
        assert all(bool(torch.isfinite(loss)) for loss in losses.values()), captions


def test_a_mirrored_pair_is_the_pair_with_sides_swapped() -> None:
    item = CaptionedImage("c", 0, "upper left lung", frozenset({"upper left lung", "both"}))
    assert item.mirrored() == CaptionedImage("c", 0, "upper right lung", frozenset({"upper right lung", "both"}))
    assert item.mirrored().mirrored() == item


def test_a_study_that_names_places_is_never_turned(captioned_store: LabelStore) -> None:
    captioned_store.add_structure("left hippocampus")
    with pytest.raises(UserError, match="cannot be turned: a text names a side or a level, “left hippocampus”"):
        run(captioned_store, settings(**SHORT, any_orientation=True), "m")


def test_quarter_turns_happen_only_when_asked() -> None:
    image = torch.zeros(16, 3, 33, 33)
    image[:, :, 16, 24:] = 1  # a ray along the last axis
    names = [str(n) for n in range(16)]

    def quarters(any_orientation: bool) -> int:
        moved, _ = weak_view(image, None, CaseNoise((0,), names), any_orientation=any_orientation)
        mass = moved[:, 0]
        rows = torch.arange(33.0) - 16
        across, along = (mass.sum(1) * rows).sum(1), (mass.sum(2) * rows).sum(1)
        return int((along.abs() > across.abs()).sum() + (across < 0).sum())

    assert quarters(False) == 0
    assert quarters(True) > 6


def test_noise_belongs_to_the_case_not_to_its_place() -> None:
    whole = CaseNoise((1, 2), ["a", "b", "a", "c"])
    numbers, grain = whole.uniform(0, 1), whole.normal(2, 3)
    half = CaseNoise((1, 2), ["a", "b", "a", "c"], slice(2, 4))
    assert torch.equal(half.uniform(0, 1), numbers[2:])
    assert torch.equal(half.normal(2, 3), grain[2:])
    assert numbers[0] != numbers[2]  # a case that comes twice is seen in two ways


def test_an_epoch_sees_every_case_once_and_needs_no_memory() -> None:
    epoch = shuffled_order(10, 10, 0, 0)
    assert sorted(epoch) == list(range(10))
    assert shuffled_order(10, 4, 0, 6) == epoch[6:]
    assert sorted(shuffled_order(3, 6, 0, 0)) == [0, 0, 1, 1, 2, 2]


def run(
    store: LabelStore, changed: PretrainSettings, name: str, folder: RunFolder | None = None, **more: object
) -> list:
    folder = folder or RunFolder.new(store.folder)
    with folder:
        return list(pretrain(store, changed, folder, name, **more))


SHORT = {"steps": 5, "generator_steps": 4, "checkpoint_every": 2, "validate_every": 2}


@pytest.mark.parametrize("killed_in", ["aligning images and captions", "teaching the text mask"])
def test_a_killed_pretraining_resumes_to_bitwise_the_same_weights(captioned_store: LabelStore, killed_in: str) -> None:
    changed = settings(**SHORT, generator={"network": "unet", "channels": (8, 16)})
    run(captioned_store, changed, "whole")
    folder = RunFolder.new(captioned_store.folder)
    stage = folder.path / ("align" if killed_in.startswith("align") else "teach")
    with folder:
        for _ in pretrain(captioned_store, changed, folder, "broken"):
            if list(stage.glob("checkpoint-*2/state.json")) and not list(stage.glob("checkpoint-*4/state.json")):
                break  # killed with two steps on disk
    assert list(stage.glob("checkpoint-*"))
    run(captioned_store, changed, "broken", folder, resume=True)
    whole, broken = (AmvlmModel.load(captioned_store.folder / "models" / name) for name in ("whole", "broken"))
    for part, network in whole.networks().items():
        other = broken.networks()[part].state_dict()
        differing = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, other[name])]
        assert differing == [], part


def test_validation_is_reported_and_pictures_are_kept(captioned_store: LabelStore) -> None:
    folder = RunFolder.new(captioned_store.folder)
    events = run(captioned_store, settings(**SHORT), "m", folder)
    losses = [e.losses for e in events if isinstance(e, Progress)]
    assert any("validation" in found for found in losses)
    assert any("waiting for data" in found for found in losses)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = EventAccumulator(str(folder.path / "tensorboard"))
    kept.Reload()
    assert {"similarity", "text mask"} <= set(kept.Tags()["images"])


def test_training_stops_early_when_the_validation_loss_rises(captioned_store: LabelStore) -> None:
    changed = settings(steps=40, generator_steps=0, validate_every=1, patience=2, learning_rate=0.5)
    events = run(captioned_store, changed, "m")
    assert any(isinstance(e, Note) and "no longer falls" in e.text for e in events)


def test_few_captioned_cases_do_not_end_a_run_early(captioned_store: LabelStore) -> None:
    """An epoch of one step would spend the patience, which counts validations, within the warm-up."""
    assert validation_interval(63, PretrainSettings(preset="tiny")) == 30
    assert validation_interval(5716, PretrainSettings(preset="tiny")) == 178
    events = run(captioned_store, settings(steps=40, generator_steps=0, patience=100), "m")
    assert sum(isinstance(e, Progress) and "validation" in e.losses for e in events) <= 20


def test_a_loss_that_is_no_number_names_its_cases_and_keeps_the_checkpoint(
    captioned_store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Alignment.forward

    def broken(self: Alignment, pairs: Pairs, momentum: object) -> object:
        losses, notes = true(self, pairs, momentum)
        broken.calls += 1
        return ({**losses, "L_css": losses["L_css"] * float("nan")} if broken.calls > 3 else losses), notes

    broken.calls = 0
    monkeypatch.setattr(Alignment, "forward", broken)
    folder = RunFolder.new(captioned_store.folder)
    with pytest.raises(UserError, match=r"L_css became NaN at step 4; the batch held case-\d+"):
        run(captioned_store, settings(**{**SHORT, "validate_every": 100}), "m", folder)
    assert not (captioned_store.folder / "models" / "m").exists()
    kept = [path.parent.name for path in (folder.path / "align").glob("*/state.json")]
    assert kept == ["checkpoint-0000002"]


def test_the_watch_waits_for_no_device_until_asked() -> None:
    watch = FiniteWatch()
    watch.see(0, {"a": torch.tensor(1.0)}, ["x"])
    watch.see(1, {"a": torch.tensor(1.0), "b": torch.tensor(float("inf"))}, ["y", "z"])
    with pytest.raises(UserError, match="b became NaN at step 2; the batch held y, z"):
        watch.check()


def test_without_two_captions_nothing_is_aligned_and_it_is_said(sample_store: LabelStore) -> None:
    for revision in sample_store.snapshot().revisions:
        sample_store.undo(revision.case_id, revision.structure)
    with pytest.raises(UserError, match="neither captions nor labels"):
        run(sample_store, settings(**SHORT), "m")


def picture_store(folder: Path, captions: list[str]) -> LabelStore:
    """Pictures of 32 px; "" is a case without a caption."""
    (folder / "img").mkdir(parents=True)
    (folder / "labelcol").mkdir()
    rows = ["Image,Description"]
    for n, caption in enumerate(captions):
        pixels = np.random.default_rng(n).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(pixels).save(folder / "img" / f"{n}.png")
        Image.fromarray((pixels > 200).astype(np.uint8) * 255).save(folder / "labelcol" / f"{n}.png")
        rows += [f'{n}.png,"{caption}"'] if caption else []
    (folder / "text.csv").write_text("\n".join(rows))
    import_study(folder, folder / "study", structure="infection", split="train", masks="reference")
    return LabelStore(folder / "study")


def test_a_case_without_a_caption_gets_the_template_and_is_counted(tmp_path: Path) -> None:
    store = picture_store(tmp_path, ["left lung", "right lung", "", ""])
    events = run(store, settings(steps=2, generator_steps=0), "m")
    assert any(isinstance(e, Note) and e.text.startswith("2 cases have no caption") for e in events)


@pytest.mark.parametrize("control", ["true", "empty"])
def test_equal_captions_are_said_and_nothing_is_lost(tmp_path: Path, control: str) -> None:
    captions = ["Left lung."] * 3 if control == "true" else ["left lung", "right lung"]
    events = run(picture_store(tmp_path, captions), settings(steps=2, generator_steps=0, captions=control), "m")
    assert any(isinstance(e, Note) and "No two captions differ" in e.text for e in events)
    assert (tmp_path / "study" / "models" / "m").is_dir()


def test_a_batch_of_one_is_said_and_runs(tmp_path: Path) -> None:
    store = picture_store(tmp_path, ["left lung", "right lung"])
    events = run(store, settings(steps=2, generator_steps=0, batch_size=1), "m")
    assert any(isinstance(e, Note) and "batch of one" in e.text for e in events)


def test_a_caption_beyond_the_encoder_is_refused(tmp_path: Path) -> None:
    store = picture_store(tmp_path, ["left lung " * 200, "right lung"])
    with pytest.raises(UserError, match=r"has \d+ tokens, the encoder reads 128"):
        run(store, settings(steps=2, generator_steps=0), "m")


def test_encoders_of_another_model_can_be_the_start(captioned_store: LabelStore) -> None:
    run(captioned_store, settings(**SHORT), "first")
    first = AmvlmModel.load(captioned_store.folder / "models" / "first")
    run(captioned_store, settings(**{**SHORT, "steps": 0}), "second", base=first)
    second = AmvlmModel.load(captioned_store.folder / "models" / "second").vlm.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.vlm.state_dict().items())


def test_two_processes_give_the_losses_of_one(captioned_store: LabelStore, tmp_path: Path) -> None:
    """torchrun with gloo, fp32: losses of six steps and the validation loss agree to 1e-5."""
    common = [
        "pretrain", str(captioned_store.folder), "--preset", "tiny", "--steps", "6", "--generator-steps", "0",
        "--batch-size", "4", "--precision", "fp32", "--device", "cpu", "--image-size", "32", "--validate-every", "3",
        "--threads", "1", "--checkpoint-every", "100",
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={port}",
        "-m",
        "amvlm",
    ]
    found = []
    for name, command in (("one", [sys.executable, "-m", "amvlm"]), ("two", torchrun)):
        subprocess.run(
            [*command, *common, "--run-name", name, "--name", name], env=environment, check=True, timeout=240
        )
        lines = (captioned_store.folder / "runs" / name / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        found.append([(e["step"], e["losses"]["validation"]) for e in events if "validation" in e.get("losses", {})])
    assert [step for step, _ in found[0]] == [step for step, _ in found[1]] == [3, 6]
    assert [loss for _, loss in found[1]] == pytest.approx([loss for _, loss in found[0]], abs=1e-5)


def test_the_momentum_branch_sees_the_image_not_a_black_one(captioned_store: LabelStore) -> None:
    """The release casts floats in [0, 1] to uint8; here both views are the slice itself, seen otherwise."""
    changed = settings()
    study = open_study(captioned_store, need_labels=False)
    bank = SliceBank(captioned_store, SIZE)
    list(bank.prepare(list(study.cases.values())))
    captioned = CaptionedImages(study, load_labelled(bank, study.names, study.training), "train", bank)
    context = Context(study, bank, start_accelerator(changed, "fp32"), RunFolder.new(captioned_store.folder), 2)
    pairs = draw_pairs(context, VisionLanguageModel(ENCODERS), captioned, changed, 0)
    assert pairs.image.shape == pairs.other_view.shape == (4, 1, 3, SIZE, SIZE)
    for view in (pairs.image, pairs.other_view):
        assert float(view.flatten(1).std(1).min()) > 0.3
    assert not torch.equal(pairs.image, pairs.other_view)


def test_a_mask_belongs_to_its_own_text_alone(vlm: VisionLanguageModel) -> None:
    """The release averages masks over the batch's texts."""
    generator = build_generator(GeneratorSettings(network="unet", channels=(8, 16)), vlm, 0.1).eval()
    prompts = vlm.embed_prompt(["upper left lung", "lower right lung", "liver"]).detach()
    generator.fit_text(prompts)
    image = torch.randn(2, 3, SIZE, SIZE)
    one = generator(image, prompts[[0, 1]][:, None])
    two = generator(image, prompts[[0, 2]][:, None])
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])
