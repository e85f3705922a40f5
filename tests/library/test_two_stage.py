"""The road from a text network to a student that reads nothing: its targets, its loss, and a run that a kill breaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from amvlm.config import TrainSettings
from amvlm.events import AnyEvent, Progress
from amvlm.learning import RunFolder, planned_text, train, two_stage
from amvlm.learning.patches import PatchBatch, PreparedCase
from amvlm.learning.two_stage import SoftCase, as_soft, soft_loss
from amvlm.losses import masked_dice_bce
from amvlm.losses.exclusive import exclusive_dice_ce, soft_exclusive_dice_ce
from amvlm.models import AmvlmModel
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan
from amvlm.store import LabelStore

Builder = Callable[..., AmvlmModel]


def plan_of(**changes: object) -> Plan:
    known = {
        "spacing_mm": (0.0, 1.0, 1.0), "patch": (1, 32, 32), "widths": (4, 8), "structures": ("a", "b"),
        "largest_part": (False, False), "steps": 4, "minutes": 1, "batch_size": 4,
    }  # fmt: skip
    return Plan.model_validate(known | changes)


def judged_case(channels: int = 1) -> PreparedCase:
    labels = np.zeros((5, channels, 40, 50), np.uint8)
    labels[1:4, 0, 10:20, 10:20] = 1
    labels[1:4, -1, 10:20, 20:30] = 3 - channels
    image = np.random.default_rng(0).normal(size=(5, 1, 40, 50)).astype(np.float16)
    return PreparedCase("case", image, labels, np.ones(2, np.float32), (1.0, 1.0, 1.0))


# -- targets and loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
def test_a_judged_case_says_the_same_as_probabilities(channels: int) -> None:
    case, plan = judged_case(channels), plan_of(region_mm=(3.0, 16.0, 24.0))
    soft = as_soft(case)
    assert soft.labels.shape == (5, 2, 40, 50)
    assert set(np.unique(soft.labels)) == {0, 255}
    for structure in (0, 1):
        assert np.array_equal(soft.mask(structure), case.mask(structure))
        assert np.array_equal(soft.foreground[structure], case.foreground[structure])
    assert soft.region(plan) == case.region(plan)
    faint = SoftCase.of(case, np.maximum(soft.labels, 60), case.known)
    assert faint.region(plan) == case.region(plan)  # what is merely not impossible moves no crop


@pytest.mark.parametrize("known", [[[1, 1], [1, 1]], [[1, 0], [1, 1]], [[0, 0], [0, 1]]])
def test_sure_probabilities_cost_what_masks_cost(known: list[list[int]]) -> None:
    torch.manual_seed(0)
    logits, judged = torch.randn(2, 3, 6, 7), torch.tensor(known).float()
    labels = torch.randint(0, 3, (2, 6, 7))
    labels = torch.where(judged[torch.arange(2)[:, None, None], (labels - 1).clamp(min=0)] > 0, labels, 0)
    masks = torch.stack([labels == 1, labels == 2], 1).float()
    hard, soft = exclusive_dice_ce(logits, labels, judged), soft_exclusive_dice_ce(logits, masks, judged)
    assert float(soft) == pytest.approx(float(hard), abs=1e-5)


def test_soft_targets_worked_by_hand() -> None:
    logits = torch.zeros(1, 3, 1, 1)  # each of three classes has ⅓
    target = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    dice = [(2 * p * t + 1) / (p + t + 1) for p, t in ((1 / 3, 0.5), (1 / 3, 0.25))]
    expected = np.log(3) + 1 - np.mean(dice)
    assert float(soft_exclusive_dice_ce(logits, target, torch.ones(1, 2))) == pytest.approx(expected, abs=1e-6)
    over = soft_exclusive_dice_ce(logits, torch.ones(1, 2, 1, 1), torch.ones(1, 2))  # they share the place
    halves = soft_exclusive_dice_ce(logits, torch.full((1, 2, 1, 1), 0.5), torch.ones(1, 2))
    assert float(over) == pytest.approx(float(halves))


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_student_learns_probabilities_of_each_structure(exclusive: bool) -> None:
    torch.manual_seed(0)
    student = PlannedStudent(plan_of(exclusive=exclusive))
    batch = PatchBatch(torch.randn(2, 1, 32, 32), torch.randint(0, 256, (2, 2, 32, 32)).float(), torch.ones(2, 2))
    student.eval()
    loss, logits = soft_loss(student, batch), student(batch.image)
    expected = (soft_exclusive_dice_ce if exclusive else masked_dice_bce)(logits, batch.labels / 255, batch.known)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


# -- a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def captioned_store(sample_store: LabelStore) -> LabelStore:
    """The sample study, its training cases captioned."""
    texts = ("a small anterior hippocampus", "a large hippocampus")
    for number, case in enumerate(sample_store.cases("train")):
        sample_store.set_captions({case.case_id: [texts[number % 2]]})
    return sample_store


def events_of(
    store: LabelStore, model: AmvlmModel, run: str, broken: str = "", resume: bool = False, **changed: object
) -> list[AnyEvent]:
    """Train in two stages; ``broken`` names the folder of checkpoints after whose first one the run ends as killed."""
    settings = TrainSettings(
        minutes=1, batch_size=4, threads=1, precision="fp32", checkpoint_every=1, device="cpu",
        **{"mode": "two_stage", **changed},
    )  # fmt: skip
    events: list[AnyEvent] = []
    with RunFolder(store.folder / "runs" / run) as folder:
        for event in train(store, model, settings, folder, run, resume=resume):
            events.append(event)
            if broken and list((folder.path).glob(broken)):
                break
    return events


def stages(events: list[AnyEvent]) -> list[str]:
    return list(dict.fromkeys(event.stage for event in events if isinstance(event, Progress)))


def weights(store: LabelStore, name: str) -> bytes:
    return (store.folder / "models" / name / "model.safetensors").read_bytes()


def test_the_text_mask_is_first_and_a_kill_changes_no_byte(
    captioned_store: LabelStore, build_model: Builder, quick: None
) -> None:
    model = build_model()
    order = stages(events_of(captioned_store, model, "whole"))
    wanted = ["training", "teaching the text mask", "reading captions of the other scans", "training on all scans"]
    assert [stage for stage in order if stage in wanted] == wanted
    for place in ("text/checkpoint-*1", "student/checkpoint-*7"):
        name = place.split("/")[0]
        events_of(captioned_store, model, name, broken=place)
        events_of(captioned_store, model, name, resume=True)
        assert weights(captioned_store, name) == weights(captioned_store, "whole"), name
    events_of(captioned_store, model, "shuffled", captions="shuffled")
    assert weights(captioned_store, "shuffled") != weights(captioned_store, "whole")


def test_without_captions_the_first_network_labels_the_others(
    sample_store: LabelStore, build_model: Builder, quick: None
) -> None:
    found = stages(events_of(sample_store, build_model(), "plain"))
    assert "labelling the other scans" in found
    assert "reading captions of the other scans" not in found


def test_judged_structures_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    case = judged_case(2)
    half = PreparedCase("case", case.image, case.labels, np.array([1.0, 0.0], np.float32), case.spacing_mm)

    class Reader:
        def __init__(self, *_: object) -> None:
            pass

        def logits(self, every: list[int], text: torch.Tensor, box: object) -> torch.Tensor:
            return torch.full((len(every), 40, 50), float(text))

    class Text:
        network = torch.nn.Identity()
        embeddings = torch.tensor([-9.0, 0.0])
        table = type("Table", (), {"rows": lambda *_: torch.tensor([[0, 1]])})()
        patches = type("Patches", (), {"frame": lambda *_: None})()

    monkeypatch.setattr(planned_text, "VolumeTextMask", Reader)
    found = two_stage.soft_labelled(Text(), PlannedStudent(plan_of()), half, np.array([0.0, 1.0], np.float32))
    assert np.array_equal(found.labels[:, 0] == 255, case.mask(0))
    assert set(np.unique(found.labels[:, 1])) == {128}
    assert found.known.tolist() == [1, 1]


def test_two_stages_belong_to_minutes() -> None:
    with pytest.raises(ValueError, match="two_stage belongs to a training by minutes"):
        TrainSettings(steps=10, mode="two_stage")
