"""Losses and fusion against slow independent references and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from amvlm.losses import (
    bag_similarity,
    confident_bce,
    consistency_weight,
    extended_info_nce,
    masked_dice_bce,
    merged_logits,
    multi_positive_info_nce,
    positive_pairs,
)
from amvlm.metrics import Overlap, summarise


def slow_info_nce(similarity: np.ndarray, positives: np.ndarray, temperature: float) -> float:
    def one_way(rows: np.ndarray, mask: np.ndarray) -> float:
        losses = []
        for i in range(len(rows)):
            if mask[i].all() or not mask[i].any():
                continue
            exponentials = [math.exp(value / temperature) for value in rows[i]]
            share = 1 / mask[i].sum()
            losses.append(-sum(share * math.log(exponentials[j] / sum(exponentials)) for j in np.flatnonzero(mask[i])))
        return sum(losses) / len(losses) if losses else 0.0

    return 0.5 * (one_way(similarity, positives) + one_way(similarity.T, positives.T))


@pytest.mark.parametrize("seed", range(3))
def test_info_nce_matches_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    captions = ["a", "b", "a", "c", "b"]
    positives = positive_pairs(captions, [{c} for c in captions])
    similarity = rng.uniform(-1, 1, (5, 5))
    found = multi_positive_info_nce(torch.from_numpy(similarity), positives, 0.07)
    assert float(found) == pytest.approx(slow_info_nce(similarity, positives.numpy(), 0.07), rel=1e-5)


def test_info_nce_worked_by_hand() -> None:
    # two pairs, similarity 1 on the diagonal and 0 beside it, τ = 1: −log(e/(e+1)) both ways
    loss = multi_positive_info_nce(torch.eye(2), torch.eye(2, dtype=torch.bool), 1.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_equal_captions_give_no_loss_and_no_gradient() -> None:
    similarity = torch.rand(3, 3, requires_grad=True)
    loss = multi_positive_info_nce(similarity, torch.ones(3, 3, dtype=torch.bool), 0.07)
    loss.backward()
    assert loss.item() == 0
    assert similarity.grad is not None
    assert float(similarity.grad.abs().sum()) == 0


def test_two_images_with_one_caption_do_not_repel() -> None:
    captions = ["x", "x", "y"]
    positives = positive_pairs(captions, [{c} for c in captions])
    similarity = torch.zeros(3, 3, requires_grad=True)
    multi_positive_info_nce(similarity, positives, 0.5).backward()
    assert similarity.grad is not None
    assert float(similarity.grad[0, 1]) < 0  # raising the twin's similarity lowers the loss
    assert float(similarity.grad[0, 2]) > 0


def test_an_image_with_several_captions_counts_them_all() -> None:
    positives = positive_pairs(["anterior", "posterior"], [{"anterior", "posterior"}, {"posterior"}])
    assert positives.tolist() == [[True, True], [False, True]]


def test_a_bag_looks_at_the_slab_that_agrees() -> None:
    slabs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    text = torch.tensor([[0.0, 1.0]])
    both = bag_similarity(slabs, torch.ones(1, 2, dtype=torch.bool), text, 0.07)
    assert float(both) > 0.999
    hidden = bag_similarity(slabs, torch.tensor([[True, False]]), text, 0.07)
    assert float(hidden) == pytest.approx(0.0, abs=1e-6)


def test_extended_info_nce_prefers_masks_on_their_own_text() -> None:
    features = torch.zeros(2, 2, 2, 2)
    features[:, 0, :, 0] = 1  # left column speaks of text 0
    features[:, 1, :, 1] = 1  # right column of text 1
    text = torch.eye(2)
    right = torch.zeros(2, 2, 2, 2)
    right[:, 0, :, 0] = 1
    right[:, 1, :, 1] = 1
    positives = torch.eye(2, dtype=torch.bool)
    good = extended_info_nce(features[:, :, :, :], right, text, positives, torch.tensor(5.0))
    bad = extended_info_nce(features, right.flip(3), text, positives, torch.tensor(5.0))
    assert float(bad) >= float(good)


def slow_dice_bce(logits: Tensor, target: Tensor, known: Tensor) -> float:
    bces, dices = [], []
    for b in range(len(logits)):
        for s in range(logits.shape[1]):
            if known[b, s]:
                p = logits[b, s].double().sigmoid()
                t = target[b, s].double()
                bces.append(float(-(t * p.log() + (1 - t) * (1 - p).log()).mean()))
    for s in range(logits.shape[1]):
        rows = [b for b in range(len(logits)) if known[b, s]]
        p = torch.cat([logits[b, s].double().sigmoid().flatten() for b in rows])
        t = torch.cat([target[b, s].double().flatten() for b in rows])
        if t.sum() > 0:
            dices.append(float(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)))
    return sum(bces) / len(bces) + (sum(dices) / len(dices) if dices else 0)


def test_masked_dice_bce_matches_a_slow_reference() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(4, 3, 5, 5), (torch.rand(4, 3, 5, 5) > 0.5).float()
    target[:, 2] = 0
    known = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0]]).float()
    assert float(masked_dice_bce(logits, target, known)) == pytest.approx(
        slow_dice_bce(logits, target, known), rel=1e-5
    )


def test_an_unjudged_structure_teaches_nothing() -> None:
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    masked_dice_bce(logits, torch.zeros(2, 2, 4, 4), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).backward()
    assert logits.grad is not None
    assert float(logits.grad[:, 1].abs().sum()) == 0
    assert float(logits.grad[:, 0].abs().sum()) > 0


def test_only_confident_voxels_become_pseudo_labels() -> None:
    logits = torch.zeros(1, 1, 1, 3, requires_grad=True)
    teacher = torch.tensor([[[[0.95, 0.6, 0.02]]]])
    confident_bce(logits, teacher, 0.9, torch.ones(1, 1)).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0, 0] < 0
    assert logits.grad[0, 0, 0, 1] == 0
    assert logits.grad[0, 0, 0, 2] > 0


def test_two_sure_backgrounds_merge_to_background() -> None:
    """The release adds two probabilities and squashes again: every unlabelled pixel becomes foreground."""
    sure = torch.full((1, 1, 2, 2), math.log(0.01 / 0.99))
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert float(merged_logits(sure, sure, weight).sigmoid().max()) <= 0.0100001


def test_text_weight_is_per_structure() -> None:
    teacher, text = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    merged = merged_logits(teacher, text, torch.tensor([0.0, 0.75]))
    assert merged.flatten().tolist() == [0.0, 0.75]


def test_ramp_up_follows_its_formula() -> None:
    assert consistency_weight(0, 100, 0.3) == pytest.approx(math.exp(-5))
    assert consistency_weight(15, 100, 0.3) == pytest.approx(math.exp(-5 * 0.25))
    assert consistency_weight(30, 100, 0.3) == 1
    assert consistency_weight(99, 100, 0.3) == 1


def test_dice_of_an_empty_truth_is_undefined_and_counted() -> None:
    empty = Overlap.of(torch.tensor([True, False]), torch.tensor([False, False]))
    half = Overlap.of(torch.tensor([True, True]), torch.tensor([True, False]))
    assert math.isnan(empty.dice)
    assert half.dice == pytest.approx(2 / 3)
    assert half.iou == pytest.approx(1 / 2)
    summary = summarise([empty, half, half])
    assert (summary.cases, summary.empty_truths) == (3, 1)
    assert summary.mean_dice == pytest.approx(2 / 3)
    assert summary.pooled_dice == pytest.approx(4 / 7)


def test_measuring_changes_no_argument() -> None:
    probs, truth = torch.rand(4, 4), torch.rand(4, 4)
    before = probs.clone(), truth.clone()
    Overlap.of(probs > 0.5, truth > 0.5)
    masked_dice_bce(probs[None, None], truth[None, None], torch.ones(1, 1))
    assert torch.equal(probs, before[0])
    assert torch.equal(truth, before[1])


def test_dice_agrees_with_monai() -> None:
    from monai.metrics import DiceMetric

    torch.manual_seed(1)
    predicted, truth = torch.rand(3, 1, 6, 6) > 0.5, torch.rand(3, 1, 6, 6) > 0.5
    expected = DiceMetric(include_background=True, reduction="none")(predicted.float(), truth.float())
    found = [Overlap.of(p, t).dice for p, t in zip(predicted, truth, strict=True)]
    assert found == pytest.approx(expected.flatten().tolist())
