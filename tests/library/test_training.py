"""Students in two and three dimensions, what survives a crash or a full disk, and what one GPU cannot hold."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import Tensor, nn

from amvlm.config import StudentSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import Finished, Note, Progress, Started, Validation
from amvlm.inference import Session, evaluate
from amvlm.learning import checkpoint, runtime, train
from amvlm.learning.augment import mixed
from amvlm.learning.batches import UnlabelledBatch, block_count, slabs_of
from amvlm.learning.gathering import summed
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import load_labelled, open_study, sample_labelled, sample_unlabelled
from amvlm.learning.train import mixed_targets
from amvlm.losses import confident_bce, masked_dice_bce
from amvlm.models import AmvlmModel, build_student
from amvlm.models.student import Student, level_strides, load_encoder_weights
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

Builder = Callable[..., AmvlmModel]
NAMES = ("anterior hippocampus", "posterior hippocampus")
TINY = StudentSettings(network="unet", channels=(8, 16))
SMALL = {
    "steps": 4, "batch_size": 4, "validate_every": 2, "checkpoint_every": 2, "precision": "fp32", "device": "cpu",
    "student": TINY,
}  # fmt: skip


@pytest.fixture
def judged_store(sample_store: LabelStore) -> LabelStore:
    """The start set and five validation cases are judged."""
    for case in sample_store.cases("val")[:5]:
        for name in NAMES:
            sample_store.accept(
                case.case_id, name, sample_store.masks.read(sample_store.references()[case.case_id, name]).array
            )
    return sample_store


def run_training(
    store: LabelStore, model: AmvlmModel, settings: TrainSettings, name: str = "new", **more: object
) -> list[object]:
    run = RunFolder.new(store.folder)
    with run:
        return list(train(store, model, settings, run, name, **more))  # type: ignore[arg-type]


# -- networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["auto", "unet", "basic_unet", "efficientnet-lite0", "resnet10"])
@pytest.mark.parametrize("size", [64, 112])
def test_every_student_gives_a_logit_per_pixel_and_structure(network: str, size: int) -> None:
    student = build_student(StudentSettings(network=network), 2).eval()
    with torch.no_grad():
        assert student(torch.randn(1, 3, size, size)).shape == (1, 2, size, size)


def test_an_unknown_student_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"no 2-D student 'vgg'.*efficientnet-lite0"):
        build_student(StudentSettings(network="vgg"), 1)
    with pytest.raises(UserError, match="no 3-D student 'basic_unet'"):
        build_student(StudentSettings(network="basic_unet", dimensions=3), 1)


def test_thick_slices_are_mixed_last_and_thin_ones_first() -> None:
    thick = StudentSettings(dimensions=3, slice_ratio=5.0, channels=(8, 8, 8, 8))
    thin = StudentSettings(dimensions=3, slice_ratio=0.3, channels=(8, 8, 8, 8))
    assert level_strides(thick) == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert level_strides(thin) == ((2, 1, 1), (2, 2, 2), (2, 2, 2))
    for settings in (thick, thin):
        assert build_student(settings, 2)(torch.randn(2, 16, 16, 24)).shape == (2, 2, 16, 16, 24)


def test_a_volume_shorter_or_longer_than_a_block_is_read_whole() -> None:
    student = build_student(StudentSettings(dimensions=3, planes=8, channels=(4, 8)), 2).eval()
    for depth in (3, 8, 21):
        logits = student.volume_logits(torch.randn(depth, 16, 16))
        assert logits.shape == (2, depth, 16, 16)
        assert logits.isfinite().all()


def test_encoder_weights_come_from_a_local_file_by_either_naming(tmp_path: Path) -> None:
    settings = StudentSettings(network="efficientnet-lite0")
    torch.manual_seed(1)
    given = build_student(settings, 1).body.encoder.state_dict()
    flat = {
        ".".join([n.split(".")[0], *n.split(".")[2:]]) if n.startswith("_blocks") else n: t for n, t in given.items()
    }
    for number, tensors in enumerate((given, flat)):
        save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / f"{number}.safetensors")
        student = build_student(settings, 1)
        load_encoder_weights(student, tmp_path / f"{number}.safetensors")
        own = student.body.encoder.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in given.items() if tensor.is_floating_point())


def test_encoder_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    student = build_student(StudentSettings(network="efficientnet-lite0"), 1)
    save_file({"_conv_stem.weight": torch.zeros(32, 1, 3, 3)}, tmp_path / "grey.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.pth")
    with pytest.raises(UserError, match="do not fit efficientnet-lite0"):
        load_encoder_weights(student, tmp_path / "grey.safetensors")
    for name in ("pickled.pth", "missing.safetensors"):
        with pytest.raises(UserError, match="could not be read"):
            load_encoder_weights(student, tmp_path / name)
    with pytest.raises(UserError, match="no encoder to load"):
        load_encoder_weights(build_student(TINY, 1), tmp_path / "grey.safetensors")


def test_a_card_names_the_weights_file_without_its_path(judged_store: LabelStore, build_model: Builder) -> None:
    secret = judged_store.folder.parent / "Jane Doe"
    secret.mkdir()
    student = build_student(StudentSettings(network="efficientnet-lite0"), 1)
    save_file({n: t.contiguous() for n, t in student.body.encoder.state_dict().items()}, secret / "weights.safetensors")
    settings = StudentSettings(network="efficientnet-lite0", encoder_weights=str(secret / "weights.safetensors"))
    changed = TrainSettings(**{**SMALL, "steps": 2, "checkpoint_every": 1, "student": settings})
    run = RunFolder.new(judged_store.folder)
    with run:
        list(train(judged_store, build_model(names=NAMES), changed, run, "new"))
    kept = [judged_store.folder / "models" / "new" / name for name in ("card.json", "config.json")]
    for path in [*kept, run.path / "config.json"]:
        assert "weights.safetensors" in path.read_text()
        assert "Jane" not in path.read_text()
    shutil.rmtree(secret)
    again = TrainSettings(**run.read_config().settings)
    with run:
        events = list(train(judged_store, build_model(names=NAMES), again, run, "new", resume=True))
    assert isinstance(events[-1], Finished)  # the checkpoint holds the weights; their file is not needed


# -- three dimensions -------------------------------------------------------------------------------

BLOCKS = StudentSettings(dimensions=3, planes=8, channels=(4, 8))


def test_a_3d_student_trains_predicts_and_resumes(judged_store: LabelStore, build_model: Builder) -> None:
    settings = TrainSettings(**{**SMALL, "student": BLOCKS, "mode": "text_guided", "targets": "three"})
    events = run_training(judged_store, build_model(names=NAMES), settings)
    losses = {name for e in events if isinstance(e, Progress) for name in e.losses}
    assert {"L_sup", "L_pseudo", "L_text", "L_merged", "L_text_generator"} <= losses
    model = AmvlmModel.load(judged_store.folder / "models" / "new")
    assert model.student_settings is not None
    assert model.student_settings.slice_ratio > 0  # measured in the study
    scan = judged_store.read_image(judged_store.cases("test")[0])
    session = Session(model, scan)
    found = session.segment_volume(NAMES[0])
    bank = SliceBank(judged_store, model.image_size)
    list(bank.prepare(judged_store.cases("test")[:1]))
    assert isinstance(model.student, Student)
    logits = model.student.volume_logits(bank.planes(judged_store.cases("test")[0].case_id))
    assert session._student is not None
    assert torch.allclose(session._student.movedim(1, 0), logits, atol=0.05)  # the bank keeps float16
    assert found["prediction"].shape == session.shape
    assert evaluate(model, judged_store, "test", limit=1).case_ids == [judged_store.cases("test")[0].case_id]


def test_a_3d_student_refuses_pictures(picture_store: LabelStore, build_model: Builder) -> None:
    with pytest.raises(UserError, match="needs grey volumes"):
        run_training(picture_store, build_model(names=("nodule",)), TrainSettings(**{**SMALL, "student": BLOCKS}))


def test_a_3d_student_on_a_cpu_computes_in_fp32(judged_store: LabelStore, build_model: Builder) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, where bf16 is right in three dimensions")
    changed = {**SMALL, "student": BLOCKS, "steps": 1, "device": "auto"}
    with pytest.raises(UserError, match="cannot be trained in bf16 on a CPU"):
        run_training(judged_store, build_model(names=NAMES), TrainSettings(**{**changed, "precision": "bf16"}))
    events = run_training(judged_store, build_model(names=NAMES), TrainSettings(**{**changed, "precision": "auto"}))
    assert next(e.precision for e in events if isinstance(e, Started)) == "fp32"


def test_blocks_hold_their_slices_and_their_masks(judged_store: LabelStore) -> None:
    study = open_study(judged_store)
    bank = SliceBank(judged_store, 32)
    list(bank.prepare(list(study.cases.values())))
    labelled = load_labelled(bank, study.names, study.training)
    places, masks, _ = sample_labelled(labelled, 6, np.random.default_rng(0), 16)
    by_id = {case.case_id: case for case in labelled}
    blocks = bank.blocks(places, 16)
    for row, (case_id, first) in enumerate(places):
        depth = bank.depth(case_id)
        for offset in (0, 15):
            z = min(first + offset, depth - 1)
            assert torch.equal(blocks[row, offset], bank.slabs([(case_id, z)])[0, 1])
            assert torch.equal(masks[row, 0, offset], torch.from_numpy(np.array(by_id[case_id].masks[0][z])).float())
    assert torch.equal(slabs_of(blocks)[:16][5], blocks[0, 4:7])


def test_a_batch_of_slices_is_at_least_two_blocks_per_process() -> None:
    assert block_count(16, 0, 1) == 16
    assert block_count(16, 16, 1) == 2
    assert block_count(64, 16, 1) == 4
    assert block_count(64, 16, 2) == 4


# -- what is learned from ---------------------------------------------------------------------------


def test_a_rejected_structure_is_not_learned_though_another_one_is(sample_store: LabelStore) -> None:
    waiting = next(c.case_id for c in sample_store.cases("train") if not sample_store.current(c.case_id, NAMES[0]))
    sample_store.mark(waiting, NAMES[0], "rejected")
    study = open_study(sample_store)
    study.missing = {waiting: study.missing[waiting]}
    bank = SliceBank(sample_store, 32)
    list(bank.prepare(list(study.cases.values())))
    _, wanted = sample_unlabelled(study, bank, 3, np.random.default_rng(0))
    assert wanted.tolist() == [[0.0, 1.0]] * 3


def test_unlabelled_cases_are_drawn_independently_of_labelled_ones(judged_store: LabelStore) -> None:
    """The release ties the two indices together, so that one labelled image always meets the same unlabelled one."""
    study = open_study(judged_store)
    bank = SliceBank(judged_store, 32)
    list(bank.prepare(list(study.cases.values())))
    labelled = load_labelled(bank, study.names, study.training)
    met: dict[str, set[str]] = {}
    for step in range(20):
        first, _, _ = sample_labelled(labelled, 4, np.random.default_rng((0, 2, step)))
        second, _ = sample_unlabelled(study, bank, 4, np.random.default_rng((0, 3, step)))
        for (one, _), (other, _) in zip(first, second, strict=True):
            met.setdefault(one, set()).add(other)
    assert min(map(len, met.values())) > 3


def test_only_absent_judgements_teach_nothing(sample_store: LabelStore, build_model: Builder) -> None:
    for revision in sample_store.snapshot().revisions:
        sample_store.mark_absent(revision.case_id, revision.structure)
    with pytest.raises(UserError, match="no training case is labelled"):
        run_training(sample_store, build_model(names=NAMES), TrainSettings(**SMALL))


def test_without_captions_training_is_image_only_and_says_so(judged_store: LabelStore, build_model: Builder) -> None:
    events = run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL))
    assert any(isinstance(e, Note) and "image-only" in e.text for e in events)
    losses = {name for e in events if isinstance(e, Progress) for name in e.losses}
    assert "L_pseudo" in losses
    assert "L_text" not in losses


def test_the_hard_merged_mask_is_the_target_unless_three_are_wanted(
    judged_store: LabelStore, build_model: Builder
) -> None:
    for targets, names in (("merged", {"L_merged"}), ("three", {"L_pseudo", "L_text", "L_merged"})):
        settings = TrainSettings(**SMALL, mode="text_guided", targets=targets)
        events = run_training(judged_store, build_model(names=NAMES), settings)
        losses = {name for e in events if isinstance(e, Progress) for name in e.losses}
        assert losses - {"L_sup", "L_text_generator", "waiting for data"} == names


def test_the_next_round_is_compared_on_the_same_cases(judged_store: LabelStore, build_model: Builder) -> None:
    run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL), "first")
    first = AmvlmModel.load(judged_store.folder / "models" / "first")
    events = run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL), "second", previous=first)
    before = next(e for e in events if isinstance(e, Validation))
    assert before.step == 0
    assert before.student == first.card.validation["after student"]
    assert next(e for e in events if isinstance(e, Started)).validation == 5


def test_training_ends_early_when_nothing_gets_better(judged_store: LabelStore, build_model: Builder) -> None:
    settings = TrainSettings(**{**SMALL, "steps": 40, "validate_every": 1, "patience": 2, "learning_rate": 1e-9})
    events = run_training(judged_store, build_model(names=NAMES), settings)
    assert any(isinstance(e, Note) and "no longer rises" in e.text for e in events)
    assert max(e.step for e in events if isinstance(e, Validation)) < 40
    assert isinstance(events[-1], Finished)


# -- memory, disk, kills, processes -----------------------------------------------------------------


def test_a_batch_that_memory_does_not_hold_goes_through_in_parts(
    judged_store: LabelStore, build_model: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = Student.forward, 4

    def limited(self: Student, image: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(image) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, image)

    monkeypatch.setattr(Student, "forward", limited)
    events = run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL, threads=1))
    notes = [e.text for e in events if isinstance(e, Note) and "memory" in e.text]
    assert len(notes) == 1
    assert "halves of 2" in notes[0]
    assert isinstance(events[-1], Finished)
    room = 0
    with pytest.raises(UserError, match="does not hold a batch of 1"):
        run_training(judged_store, build_model(names=NAMES), TrainSettings(**SMALL, threads=1), "never")


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_a_batch_in_parts_keeps_each_mixed_image_with_its_targets(parts: int) -> None:
    rows = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4)
    box = torch.zeros(8, 1, 4, 4, dtype=torch.bool)
    box[:, :, 1:3] = True
    batch = UnlabelledBatch(rows, mixed(rows, box), box, torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1))
    networks = SimpleNamespace(
        batch_parts=parts, embeddings=torch.zeros(1, 4), targets=lambda _context, weak, _text: [weak, -weak]
    )
    settings, context = TrainSettings(steps=1, mode="text_guided"), SimpleNamespace(device=torch.device("cpu"))
    seen, negated = mixed_targets(networks, batch, settings, context)
    assert torch.equal(seen, batch.strong)
    assert torch.equal(negated, -batch.strong)


def test_a_full_disk_leaves_the_checkpoint_before(
    judged_store: LabelStore, build_model: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.write_bytes_atomically

    def full(path: Path, content: bytes) -> None:
        if "0000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_bytes_atomically", full)
    run = RunFolder.new(judged_store.folder)
    with pytest.raises(UserError, match=r"No space left on device.*the one before it is intact"), run:
        list(train(judged_store, build_model(names=NAMES), TrainSettings(**SMALL), run, "full"))
    assert [path.name for path in checkpoint.checkpoints(run.path)] == ["checkpoint-0000002"]
    monkeypatch.setattr(checkpoint, "write_bytes_atomically", real)
    with run:
        events = list(train(judged_store, build_model(names=NAMES), TrainSettings(**SMALL), run, "full", resume=True))
    assert isinstance(events[-1], Finished)


def test_a_killed_run_goes_on_from_the_command_line(judged_store: LabelStore, build_model: Builder) -> None:
    """With the bundled model as its base, which the run's config names by the card."""
    common = [sys.executable, "-m", "amvlm", "train", str(judged_store.folder), "--run-name", "r", "--name", "m"]
    small = ["--steps", "200", "--batch-size", "2", "--checkpoint-every", "2", "--network", "unet", "--channels", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*common, *small, "--channels", "16", "--device", "cpu"], env=environment) as process:
        folder = judged_store.folder / "runs" / "r"
        while not list(folder.glob("checkpoint-*/state.json")) and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert not (judged_store.folder / "models" / "m").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["base"] == "hippocampus-demo"
    config["settings"]["steps"] = int(checkpoint.checkpoints(folder)[-1].name[-7:]) + 2  # not all 200 here
    (folder / "config.json").write_text(json.dumps(config))
    subprocess.run([*common, "--resume"], check=True, timeout=240, env=environment)
    assert AmvlmModel.load(judged_store.folder / "models" / "m").student is not None
    build_model(names=NAMES).save(judged_store.folder / "models" / "other")
    refused = subprocess.run(
        [*common, "--resume", "--model", "other"], capture_output=True, text=True, check=False, env=environment
    )
    assert "began with another model" in refused.stderr


def test_two_checkpoints_are_kept(judged_store: LabelStore, build_model: Builder) -> None:
    run = RunFolder.new(judged_store.folder)
    with run:
        list(
            train(
                judged_store, build_model(names=NAMES),
                TrainSettings(**{**SMALL, "steps": 6, "checkpoint_every": 1, "validate_every": 100}), run, "kept",
            )
        )  # fmt: skip
    assert [path.name[-1] for path in checkpoint.checkpoints(run.path)] == ["5", "6"]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)


def _losses(net: nn.Module, rows: slice) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    image, masks = torch.randn(4, 1, 8, 8, generator=rng), (torch.rand(4, 2, 8, 8, generator=rng) > 0.7).float()
    masks[2:, 1] = 0
    known = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    logits = net.layer(image)[rows]  # type: ignore[operator, union-attr]
    teacher = torch.rand(4, 2, 8, 8, generator=rng)[rows]
    supervised = masked_dice_bce(logits, masks[rows], known[rows], summed)
    return supervised + confident_bce(logits, teacher, 0.9, known[rows], summed)


def _one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = _Net()
    loss = _losses(net, slice(2 * rank, 2 * rank + 2))
    loss.backward()
    gradients = [p.grad for p in net.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save({"loss": loss.detach(), "gradients": [g / 2 for g in gradients]}, f"{folder}/{rank}.pt")  # type: ignore[operator]
    dist.destroy_process_group()


def test_the_faster_of_two_is_chosen_and_the_first_unless_a_tenth_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"bf16": 1.0, "fp32": 0.95}
    monkeypatch.setattr(runtime, "_seconds_of_a_step", lambda network, image, precision: seconds[precision])
    student, image = build_student(TINY, 1), torch.randn(2, 3, 16, 16)
    assert runtime.fastest(student, image, ["bf16", "fp32"], [1]) == ("bf16", 1)
    seconds["fp32"] = 0.5
    assert runtime.fastest(student, image, ["bf16", "fp32"], [1]) == ("fp32", 1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_two_processes_share_a_batch_as_one_would_see_it(tmp_path: Path) -> None:
    """Dice sums over the whole batch: losses and averaged gradients of two processes are those of one."""
    mp.spawn(_one_of_two, (_free_port(), str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    net = _Net()
    loss = _losses(net, slice(0, 4))
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["loss"], loss, atol=1e-6)
        for own, theirs in zip(net.parameters(), found["gradients"], strict=True):
            assert own.grad is not None
            assert torch.allclose(own.grad, theirs, atol=1e-6)


def test_a_run_of_two_processes_follows_that_of_one(judged_store: LabelStore, build_model: Builder) -> None:
    """torchrun with gloo; batch statistics are each process's own on CPUs, so losses agree to 5 %, not to rounding."""
    build_model(names=NAMES).save(judged_store.folder / "models" / "base")
    common = [
        "train", str(judged_store.folder), "--model", "base", "--steps", "6", "--batch-size", "8", "--precision",
        "fp32", "--device", "cpu", "--threads", "1", "--validate-every", "100", "--network", "unet", "--channels", "8",
        "--channels", "16", "--mode", "text_guided",
    ]  # fmt: skip
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={_free_port()}", "-m",
        "amvlm",
    ]  # fmt: skip
    found = []
    for name, command in (("one", [sys.executable, "-m", "amvlm"]), ("two", torchrun)):
        subprocess.run(
            [*command, *common, "--run-name", name, "--name", name], check=True, timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        lines = (judged_store.folder / "runs" / name / "events.jsonl").read_text().splitlines()
        found.append([e for e in map(json.loads, lines) if e["event"] == "progress" and e["stage"] == "training"][-1])
    for loss in ("L_sup", "L_text_generator"):
        assert found[1]["losses"][loss] == pytest.approx(found[0]["losses"][loss], rel=0.05)
    models = [AmvlmModel.load(judged_store.folder / "models" / name).card for name in ("one", "two")]
    assert models[0].revisions == models[1].revisions


@pytest.fixture
def picture_store(tmp_path: Path) -> LabelStore:
    """Four 2-D pictures with a labelled disc."""
    from PIL import Image

    from amvlm.exchange import import_study

    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        grey = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 8:16] = 255
        Image.fromarray(grey).save(source / "images" / f"p{number}.png")
        Image.fromarray(mask).save(source / "masks" / f"p{number}.png")
    import_study(source, tmp_path / "pictures", structure="nodule", split="train")
    shutil.rmtree(source)
    return LabelStore(tmp_path / "pictures")
