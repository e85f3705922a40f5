"""The planned student's steps: devices, precision, memory, batches cut ahead, how patches are turned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amvlm.config import TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Note
from amvlm.learning import RunFolder, fitting, planned
from amvlm.learning.fitting import Phase, answer, batches, fit, gradient_scaler, optimiser_of, pseudo_labelled
from amvlm.learning.patches import PatchSampler, PreparedCase, affine_moves, moved
from amvlm.learning.runtime import chosen_device, gpu_precision, start_accelerator
from amvlm.models.half_unet import HalfUNet
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan


def _plan(**changes: object) -> Plan:
    return Plan.model_validate(
        {
            "spacing_mm": (0.0, 1.0, 1.0), "patch": (1, 32, 32), "widths": (4, 8), "structures": ("a", "b"),
            "largest_part": (False, False), "steps": 4, "minutes": 1, "batch_size": 4,
        } | changes
    )  # fmt: skip


def _case(shape: tuple[int, int, int] = (5, 40, 50)) -> PreparedCase:
    labels = np.zeros((shape[0], 1, *shape[1:]), np.uint8)
    labels[1:4, 0, 10:20, 10:20], labels[1:4, 0, 10:20, 20:30] = 1, 2
    image = np.random.default_rng(0).normal(size=(shape[0], 1, *shape[1:])).astype(np.float16) + labels
    return PreparedCase("case", image, labels, np.ones(2, np.float32), (1.0, 1.0, 1.0))


def _student(plan: Plan) -> PlannedStudent:
    torch.manual_seed(0)
    return PlannedStudent(plan)


class _SmallMemory(nn.Module):
    """A network on a pretended GPU that holds ``most`` samples at once."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most, self.seen = network, most, list[int]()

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.network(image)
        return logits


# -- the network ---------------------------------------------------------------------------------------


def test_a_summed_decoder_is_smaller_and_a_stored_plan_keeps_its_own() -> None:
    summed, concatenated = HalfUNet(1, 3, (4, 8, 16), "sum"), HalfUNet(1, 3, (4, 8, 16))
    assert summed(torch.randn(2, 1, 32, 48)).shape == (2, 3, 32, 48)
    assert sum(p.numel() for p in summed.parameters()) < sum(p.numel() for p in concatenated.parameters())
    stored = {k: v for k, v in _plan().model_dump().items() if k not in ("decoder", "any_angle")}
    before = Plan.model_validate(stored)
    assert (before.decoder, before.any_angle) == ("concat", 0.0)


# -- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlapping", [False, True])
def test_prediction_goes_in_smaller_parts_where_memory_does_not_hold_eight_windows(overlapping: bool) -> None:
    student = _student(_plan(patch=(1, 16, 16)) if overlapping else _plan()).eval()
    planes = torch.randn(11, 1, 40, 50)
    plenty = student.volume_logits(planes, (1.0, 1.0, 1.0))
    student.network = _SmallMemory(student.network, 3)
    little = student.volume_logits(planes, (1.0, 1.0, 1.0))
    assert torch.allclose(plenty, little, atol=1e-5)
    assert student.windows == 2


def test_validation_and_pseudo_labels_on_a_gpu_too_small_are_a_sentence() -> None:
    student = _student(_plan())
    student.network = _SmallMemory(student.network, 0)
    judged = _case()
    nobody = PreparedCase("x", judged.image, judged.labels, np.zeros_like(judged.known), judged.spacing_mm)
    for use, case in ((answer, judged), (pseudo_labelled, nobody)):
        with pytest.raises(UserError, match="does not hold one window of 32 × 32"):
            use(student, case)


def test_a_batch_that_memory_does_not_hold_is_learned_in_parts() -> None:
    losses = []
    for most in (4, 2):
        student = _student(_plan())
        student.network = _SmallMemory(student.network, most)
        phase = Phase(0, 1, [([_case()], 4)])
        losses += [float(loss) for _, loss in fit(student, phase, optimiser_of(student), 0)]
    assert student.network.seen == [4, 2, 2]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # batch norm sees two halves


# -- precision -----------------------------------------------------------------------------------------


def test_fp16_scales_the_loss_and_learns_as_fp32_does() -> None:
    weights = []
    for precision in ("fp32", "fp16"):
        student = _student(_plan())
        scaler = gradient_scaler(torch.device("cpu"), precision)
        phase = Phase(0, 3, [([_case()], 4)])
        for _ in fit(student, phase, optimiser_of(student), 0, precision=precision, scaler=scaler):
            pass
        assert scaler.is_enabled() == (precision == "fp16")
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, atol=5e-3)


def test_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, asked = torch.device("cuda"), list[bool]()

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert gpu_precision(TrainSettings(), gpu) == "fp16"
    assert asked == [False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert gpu_precision(TrainSettings(), gpu) == "bf16"
    assert gpu_precision(TrainSettings(precision="fp32"), gpu) == "fp32"
    assert gpu_precision(TrainSettings(), torch.device("mps")) == "fp32"


def test_fp16_without_a_gpu_is_a_sentence() -> None:
    with pytest.raises(UserError, match="fp16 needs an NVIDIA GPU"):
        start_accelerator(TrainSettings(device="cpu", precision="fp16"), "fp16")


# -- devices -------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_chosen_by_its_number() -> None:
    assert chosen_device(TrainSettings()) == torch.device("cuda")
    assert chosen_device(TrainSettings(device="cuda:1")) == torch.device("cuda:1")
    assert chosen_device(TrainSettings(device="cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match="no device cuda:2: torch sees 2"):
        chosen_device(TrainSettings(device="cuda:2"))


@pytest.mark.parametrize(
    ("device", "why"), [("cuda", "no NVIDIA GPU"), ("cuda:0", "no NVIDIA GPU"), ("mps", "no Apple GPU")]
)
def test_a_device_that_is_not_there_is_a_sentence(device: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=why):
        chosen_device(TrainSettings(device=device))
    assert chosen_device(TrainSettings()) == torch.device("cpu")


def test_an_apple_gpu_is_taken_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device(TrainSettings()) == torch.device("mps")


# -- batches -------------------------------------------------------------------------------------------


def test_batches_cut_ahead_in_a_thread_are_the_same() -> None:
    student = _student(_plan())
    phase = Phase(0, 4, [([_case()], 3), ([_case()], 1)])
    here, ahead = (list(batches(student, phase, 7, 1, flag)) for flag in (False, True))
    assert [step for step, _ in here] == [1, 2, 3] == [step for step, _ in ahead]
    for (_, one), (_, other) in zip(here, ahead, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.labels, other.labels)


def test_batches_are_cut_ahead_only_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(fitting, "batches", lambda *given, ahead: asked.append(ahead) or iter(()))
    student = _student(_plan())
    assert list(fit(student, Phase(0, 1, []), optimiser_of(student), 0)) == []
    assert asked == [False]


def test_some_patches_are_turned_by_any_angle() -> None:
    labels = np.zeros((1, 1, 64, 64), np.uint8)
    labels[0, 0, 30:34, 32:60] = 1  # a bar from the middle to the right
    case = PreparedCase("x", labels.astype(np.float16), labels, np.ones(1, np.float32), (1.0, 1.0, 1.0))
    whole = {"structures": ("a",), "largest_part": (False,), "patch": (1, 64, 64)}
    for share, least, most in ((0.0, 0.0, 0.0), (0.5, 0.1, 0.4)):
        plan = _plan(**whole, any_angle=share)
        crops = PatchSampler(plan, [case]).draw(1, np.random.default_rng(0))
        many = type(crops)(*(field.repeat_interleave(200, 0) for field in crops))
        moves = affine_moves(200, many.image.shape[-2:], plan, np.random.default_rng(1))
        turned = moved(many, plan, moves).labels[:, 0]
        leftwards = turned[:, :, :28].sum((1, 2)) > 2 * turned[:, :, 36:].sum((1, 2))
        assert least <= float(leftwards.float().mean()) <= most


def test_a_region_smaller_than_the_patch_lies_in_it_at_varying_places() -> None:
    plan = _plan(patch=(1, 64, 64), region_mm=(3.0, 30.0, 30.0))
    case = _case((5, 200, 200))
    sampler, rng = PatchSampler(plan, [case]), np.random.default_rng(0)
    centres = {tuple(sampler._centre(case, sampler._regions[0], rng)[1:]) for _ in range(200)}
    assert len(centres) > 100


def test_the_region_holds_at_least_one_patch() -> None:
    plan = _plan(patch=(1, 48, 48), region_mm=(2.0, 10.0, 10.0))
    student = _student(plan).eval()
    logits = -torch.ones(2, 5, 200, 200)
    logits[:, :, 90:110, 90:110] = 1
    student._windows = lambda planes, places, *_, **__: logits[:, places]  # type: ignore[method-assign]
    box = student.region(torch.zeros(5, 1, 200, 200), (1.0, 1.0, 1.0))
    assert box[1:] == (slice(76, 124), slice(76, 124))


def test_memory_that_ends_in_any_stage_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> Iterator[AnyEvent]:
        yield Note(text="reading images")
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(planned, "open_planned", full)
    run = RunFolder(tmp_path / "run")
    events = planned.train_planned(None, None, TrainSettings(), run, "x")  # type: ignore[arg-type]
    assert isinstance(next(events), Note)
    with pytest.raises(UserError, match="does not hold this training"):
        next(events)
