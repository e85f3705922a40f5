"""CSS, L_pdt, L_local and L_icl against slow float64 references (values and gradients) and cases worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from amvlm.losses import (
    Scales,
    attended,
    distance_agreement,
    gain_spread,
    intra_modal_contrast,
    local_contrast,
    mean_distances,
    on_one_scale,
    pairwise_wasserstein,
    similarity_gain,
    similarity_supervision,
    standard_deviation_divergence,
    token_weights,
    two_way_cross_entropy,
)
from amvlm.models.distribution import START_SD, DistributionTransformer

TAU = 0.07


def unit(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def some_mask(rows: int, width: int, seed: int = 0) -> Tensor:
    lengths = torch.randint(2, width + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(width)[None] < lengths[:, None]


def same_with_gradient(fast: Callable[..., Tensor], slow: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Both give one value and one gradient, the slow one in float64."""
    single = [x.float().detach().requires_grad_() for x in inputs]
    double = [x.double().detach().requires_grad_() for x in inputs]
    found, expected = fast(*single), slow(*double)
    assert found.item() == pytest.approx(expected.item(), rel=2e-4, abs=1e-6)
    found.backward()
    expected.backward()
    for one, other in zip(single, double, strict=True):
        assert other.grad is not None
        scale = float(other.grad.abs().max()) or 1.0
        assert one.grad is not None
        assert float((one.grad.double() - other.grad).abs().max()) < 1e-3 * scale


# --- Gaussians


def test_wasserstein_is_exact_and_pairwise() -> None:
    rng = np.random.default_rng(0)
    mean, other = rng.normal(size=(1, 3, 5)), rng.normal(size=(1, 4, 5))
    sd, other_sd = rng.uniform(0.1, 2, (1, 3, 5)), rng.uniform(0.1, 2, (1, 4, 5))
    _, found = pairwise_wasserstein(*(torch.from_numpy(x) for x in (mean, sd, other, other_sd)))
    for j in range(3):
        for k in range(4):
            a, b = np.diag(sd[0, j] ** 2), np.diag(other_sd[0, k] ** 2)
            root = scipy.linalg.sqrtm(scipy.linalg.sqrtm(b) @ a @ scipy.linalg.sqrtm(b))
            exact = ((mean[0, j] - other[0, k]) ** 2).sum() + np.trace(a + b - 2 * np.real(root))
            assert float(found[0, j, k]) == pytest.approx(exact, rel=1e-5)


def test_equal_gaussians_are_not_apart() -> None:
    mean, sd = unit(1, 3, 128), torch.full((1, 3, 128), 0.027)
    d_s, d_u = pairwise_wasserstein(mean, sd, mean, sd)
    assert float(d_s.diagonal(dim1=1, dim2=2).max()) < 1e-5
    assert bool((d_s >= 0).all())
    assert torch.allclose(d_s, d_u)


@pytest.mark.parametrize("form", ["exp", "exp_paper", "sigmoid"])
def test_g_is_in_its_range_and_finite_where_distances_vanish(form: str) -> None:
    d_s = torch.rand(2, 5, 5) * 4
    d_s[0, 1, 2] = 0
    g = similarity_gain(d_s, d_s + torch.rand(2, 5, 5), some_mask(2, 5), form)
    assert bool(torch.isfinite(g).all())
    assert float(g.min()) >= (0.3 if form == "exp" else 0)
    assert float(g.max()) <= 1
    if form == "exp":
        assert bool((g.diagonal(dim1=1, dim2=2) == 1).all())


def test_g_worked_by_hand() -> None:
    # two tokens: both pairs j ≠ k have D_s = 1, D_u = 2, so u is its own median and g = e^−0.357
    d_s, d_u = torch.ones(1, 2, 2), 2 * torch.ones(1, 2, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    g = similarity_gain(d_s, d_u, mask)
    assert g[0].tolist() == [[1, pytest.approx(math.exp(-0.357))], [pytest.approx(math.exp(-0.357)), 1]]
    u = (2 / 200 + 4) / (1 + 1e-6)
    assert float(similarity_gain(d_s, d_u, mask, "exp_paper")[0, 0, 1]) == pytest.approx(math.exp(-0.357 * u), rel=1e-4)
    assert float(similarity_gain(d_s, d_u, mask, "sigmoid")[0, 0, 1]) == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-4)


def test_a_constant_g_is_seen_as_inert_although_its_diagonal_is_one() -> None:
    mask = torch.ones(1, 6, dtype=torch.bool)
    constant = similarity_gain(torch.ones(1, 6, 6), torch.ones(1, 6, 6), mask)
    assert float(gain_spread(constant, mask)) == pytest.approx(0, abs=1e-6)
    varied = similarity_gain(torch.rand(1, 6, 6) + 0.1, torch.rand(1, 6, 6) + 1, mask)
    assert float(gain_spread(varied, mask)) > 0.02


def test_token_weights_are_clipped_attention_that_sums_to_one() -> None:
    importance = torch.tensor([[100.0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 77, 77]])
    mask = torch.tensor([[True] * 10 + [False] * 2])
    weights = token_weights(importance, mask)
    low, high = np.quantile(importance[0, :10].numpy(), (0.1, 0.9))
    expected = np.clip(importance[0, :10].numpy(), low, high)
    assert weights[0, :10].numpy() == pytest.approx(expected / expected.sum(), rel=1e-5)
    assert weights[0, 10:].tolist() == [0, 0]


def slow_two_way(logits: Tensor, same: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    found = []
    for b in range(len(logits)):
        valid = [t for t in range(mask.shape[1]) if mask[b, t]]
        usable = [j for j in valid if any(not same[b, j, k] for k in valid)]
        if not usable:
            continue
        total = sum(float(weights[b, j]) for j in usable)
        loss = logits.new_zeros(())
        for way in (logits[b], logits[b].T):
            for j in usable:
                normaliser = torch.stack([way[j, k] for k in valid]).exp().sum().log()
                twins = [k for k in valid if same[b, j, k]]
                entropy = sum((normaliser - way[j, k]) / len(twins) for k in twins)
                loss = loss + float(weights[b, j]) / total * entropy
        found.append(loss / 2)
    return torch.stack(found).mean()


@pytest.mark.parametrize("seed", range(3))
def test_similarity_supervision_matches_a_slow_reference(seed: int) -> None:
    mask = some_mask(4, 6, seed)
    numbers = torch.randint(0, 4, (4, 6), generator=torch.Generator().manual_seed(seed))
    same = numbers[:, :, None] == numbers[:, None]
    weights = token_weights(torch.rand(4, 6), mask)
    d_s = torch.rand(4, 6, 6)
    g = similarity_gain(d_s, d_s + torch.rand(4, 6, 6), mask)

    def fast(similarity: Tensor) -> Tensor:
        value, counted = similarity_supervision(similarity, g, same, weights, mask, TAU)
        return (value * counted).sum() / counted.sum()

    def slow(similarity: Tensor) -> Tensor:
        return slow_two_way(1 - (1 - similarity / TAU) * g.double(), same, weights, mask)

    same_with_gradient(fast, slow, torch.rand(4, 6, 6, dtype=torch.float64) * 2 - 1)


@pytest.mark.parametrize("seed", range(5))
def test_an_ambiguous_negative_is_pushed_more_softly(seed: int) -> None:
    """For S ≥ 0, lowering g of a negative pair lowers the gradient on its similarity."""
    chance = torch.Generator().manual_seed(seed)
    mask, weights = torch.ones(1, 6, dtype=torch.bool), torch.full((1, 6), 1 / 6)
    similarity = torch.rand(1, 6, 6, generator=chance).requires_grad_()
    gains = 0.3 + 0.7 * torch.rand(1, 6, 6, generator=chance)

    def push(gain: float, j: int, k: int) -> float:
        g = gains.clone()
        g[0, j, k] = gain
        value, _ = similarity_supervision(similarity, g, None, weights, mask, TAU)
        (gradient,) = torch.autograd.grad(value.sum(), similarity)
        return float(gradient[0, j, k])

    for j in range(6):
        for k in range(6):
            if j != k:
                pushes = [push(gain, j, k) for gain in (0.05, 0.3, 0.6, 1.0)]
                assert pushes == sorted(pushes)
                assert pushes[0] >= 0


def test_both_distances_are_brought_to_one_scale() -> None:
    mask = some_mask(3, 7, 1)
    d_s = 50 * torch.rand(3, 7, 7)
    d_u = d_s + 0.01 * torch.rand(3, 7, 7)
    over, over_sd, pairs = mean_distances(d_s, d_u, mask)
    scaled_s, scaled_u = on_one_scale(d_s, d_u, Scales(over / pairs, over_sd / pairs))
    others = mask[:, :, None] & mask[:, None, :] & ~torch.eye(7, dtype=torch.bool)
    assert float(scaled_s[others].mean()) == pytest.approx(1, rel=1e-4)
    assert float((scaled_u - scaled_s)[others].mean()) == pytest.approx(1, rel=1e-2)
    _, quiet = on_one_scale(d_s, d_s + 1e-9, Scales(torch.tensor(25.0), torch.tensor(1e-9)))
    assert torch.allclose(quiet, d_s / 25, atol=1e-4)  # rounding is not blown up


def test_agreement_with_the_cosine_is_spearmans() -> None:
    mask, similarity = some_mask(4, 7, 3), torch.rand(4, 7, 7)
    assert float(distance_agreement(2 - 2 * similarity, similarity, mask)) == pytest.approx(1, abs=1e-6)
    assert float(distance_agreement(similarity.exp(), similarity, mask)) == pytest.approx(-1, abs=1e-6)
    noise = torch.rand(4, 7, 7)
    expected = []
    for b in range(4):
        pairs = mask[b][:, None] & mask[b][None] & ~torch.eye(7, dtype=torch.bool)
        expected.append(scipy.stats.spearmanr(noise[b][pairs], 1 - similarity[b][pairs]).statistic)
    assert float(distance_agreement(noise, similarity, mask)) == pytest.approx(np.mean(expected), abs=1e-5)


def test_g_matches_a_slow_reference() -> None:
    mask = some_mask(3, 7, 1)
    d_s = torch.rand(3, 7, 7, dtype=torch.float64)
    d_u = d_s + torch.rand(3, 7, 7, dtype=torch.float64)
    found = similarity_gain(d_s.float(), d_u.float(), mask)
    for b in range(3):
        valid = [t for t in range(7) if mask[b, t]]
        u = {(j, k): float((d_u[b, j, k] / 200 + 4) / (d_s[b, j, k] + 1e-6)) for j in valid for k in valid if j != k}
        ordered = sorted(u.values())
        median = ordered[(len(ordered) - 1) // 2]
        for (j, k), value in u.items():
            expected = min(1.0, max(0.3, math.exp(-0.357 * value / median)))
            assert float(found[b, j, k]) == pytest.approx(expected, rel=1e-4)


def test_padding_changes_no_loss() -> None:
    similarity, mask = torch.rand(2, 4, 4), torch.ones(2, 4, dtype=torch.bool)
    d_s = torch.rand(2, 4, 4)
    pad = torch.nn.functional.pad
    narrow = similarity_supervision(
        similarity, similarity_gain(d_s, d_s + 0.1, mask), None, token_weights(torch.ones(2, 4), mask), mask, TAU
    )
    more = pad(mask, (0, 3))
    far = pad(d_s, (0, 3, 0, 3), value=9.0)
    weights = token_weights(pad(torch.ones(2, 4), (0, 3), value=7.0), more)
    wide = similarity_supervision(
        pad(similarity, (0, 3, 0, 3), value=5.0), similarity_gain(far, far + 0.1, more), None, weights, more, TAU
    )
    assert torch.allclose(narrow[0], wide[0], atol=1e-6)
    tokens, others = unit(2, 4, 8).float(), unit(3, 8, seed=1).float()
    positives, own = torch.eye(3, dtype=torch.bool)[:2], torch.arange(2)
    one = local_contrast(tokens, mask, others, positives, own, TAU)[0]
    two = local_contrast(pad(tokens, (0, 0, 0, 3), value=3.0), more, others, positives, own, TAU)[0]
    assert torch.allclose(one, two, atol=1e-6)


def test_tokens_without_a_negative_teach_nothing() -> None:
    same = torch.ones(1, 3, 3, dtype=torch.bool)
    mask = torch.ones(1, 3, dtype=torch.bool)
    value, counted = two_way_cross_entropy(torch.rand(1, 3, 3), same, torch.ones(1, 3), mask)
    assert (float(value), bool(counted)) == (0.0, False)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    value, counted = two_way_cross_entropy(torch.rand(1, 3, 3), same, token_weights(torch.ones(1, 3), nothing), nothing)
    assert (float(value), bool(counted)) == (0.0, False)


def test_what_is_seen_is_the_attended_mean() -> None:
    words, patches = unit(2, 3, 8).float(), unit(2, 5, 8, seed=1).float()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = attended(words, patches, mask, TAU)
    for b in range(2):
        for j in range(3):
            scores = np.array([float(words[b, j] @ patches[b, n]) / TAU for n in range(5) if mask[b, n]])
            weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            seen = (weights[:, None] * patches[b, : len(scores)].numpy()).sum(0)
            assert found[b, j].numpy() == pytest.approx(seen / np.linalg.norm(seen), abs=1e-5)


def test_the_divergence_vanishes_at_the_prior_only() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert float(standard_deviation_divergence(torch.full((1, 2, 4), 0.5), mask, 0.5)) == pytest.approx(0, abs=1e-7)
    # KL(N(0, 4) ‖ N(0, 1)) = ½(4 − 1) − ln 2
    found = float(standard_deviation_divergence(torch.full((1, 2, 4), 2.0), mask, 1.0))
    assert found == pytest.approx(1.5 - math.log(2), rel=1e-6)


# --- L_local


def slow_local(tokens: Tensor, partners: Tensor, mask: Tensor, positives: Tensor, own: Tensor) -> Tensor:
    found = []
    for b in range(len(tokens)):
        others = [g for g in range(len(partners)) if not positives[b, g]]
        valid = [t for t in range(mask.shape[1]) if mask[b, t]]
        if not others or not valid or not bool(positives[b].any()):
            continue
        omega = []
        for t in valid:
            scores = np.array([(tokens[b, t] @ partners[g]).item() for g in others])
            own_score = (tokens[b, t] @ partners[own[b]]).item()
            omega.append(max(0.0, own_score - scores.mean()) / (scores.std() + 0.05))
        if len(others) < 3 or sum(omega) <= 1e-12:
            omega = [1.0] * len(valid)
        scale = len(valid) / sum(omega)
        loss = tokens.new_zeros(())
        for weight, t in zip(omega, valid, strict=True):
            logits = torch.stack([tokens[b, t] @ partner / TAU for partner in partners])
            twins = [g for g in range(len(partners)) if positives[b, g]]
            entropy = sum((logits.exp().sum().log() - logits[g]) / len(twins) for g in twins)
            loss = loss + weight * scale * entropy
        found.append(loss / len(valid))
    return torch.stack(found).mean()


@pytest.mark.parametrize("captions", ["abcde", "aabbc", "aaaab"])
def test_local_contrast_matches_a_slow_reference(captions: str) -> None:
    mask, own = some_mask(5, 4, 3), torch.arange(5)
    positives = torch.tensor([[one == other for other in captions] for one in captions])

    def fast(tokens: Tensor, partners: Tensor) -> Tensor:
        value, counted = local_contrast(tokens, mask, partners, positives, own, TAU)
        return (value * counted).sum() / counted.sum()

    def slow(tokens: Tensor, partners: Tensor) -> Tensor:
        return slow_local(tokens, partners, mask, positives, own)

    same_with_gradient(fast, slow, unit(5, 4, 8), unit(5, 8, seed=2))


# --- L_icl


def slow_icl(
    query_cls: Tensor, query_tokens: Tensor, query_mask: Tensor, key_cls: Tensor, key_tokens: Tensor,
    key_mask: Tensor, own: Tensor, negatives: Tensor,
) -> Tensor:  # fmt: skip
    found = []
    for b in range(len(query_cls)):
        others = [g for g in range(len(key_cls)) if negatives[b, g]]
        if not others:
            continue

        def loss(positive: Tensor, pushed: list[Tensor]) -> Tensor:
            top = (positive / TAU).exp()
            return -(top / (top + torch.stack([(x / TAU).exp() for x in pushed]).sum())).log()

        pushed = [query_cls[b] @ key_tokens[g, t] for g in others for t in range(key_mask.shape[1]) if key_mask[g, t]]
        i = int(own[b])
        coarse = [loss(query_cls[b] @ key_tokens[i, t], pushed) for t in range(key_mask.shape[1]) if key_mask[i, t]]
        fine = [
            loss(query_tokens[b, t] @ key_cls[i], [query_tokens[b, t] @ key_cls[g] for g in others])
            for t in range(query_mask.shape[1])
            if query_mask[b, t]
        ]
        found.append((torch.stack(coarse).mean() + torch.stack(fine).mean()) / 2)
    return torch.stack(found).mean()


@pytest.mark.parametrize("captions", ["abcd", "aabc", "aaab"])
def test_intra_modal_contrast_matches_a_slow_reference(captions: str) -> None:
    query_mask, key_mask, own = some_mask(4, 5, 1), some_mask(4, 6, 2), torch.arange(4)
    negatives = torch.tensor([[one != other for other in captions] for one in captions])
    key_cls, key_tokens = unit(4, 8, seed=5), unit(4, 6, 8, seed=6)

    def fast(cls: Tensor, tokens: Tensor) -> Tensor:
        value, counted = intra_modal_contrast(
            cls, tokens, query_mask, key_cls.float(), key_tokens.float(), key_mask, own, negatives, TAU
        )
        return (value * counted).sum() / counted.sum()

    def slow(cls: Tensor, tokens: Tensor) -> Tensor:
        return slow_icl(cls, tokens, query_mask, key_cls, key_tokens, key_mask, own, negatives)

    same_with_gradient(fast, slow, unit(4, 8), unit(4, 5, 8, seed=3))


def test_intra_modal_contrast_worked_by_hand() -> None:
    # one token each, two samples, orthogonal: positive 1, negative 0, τ = 1 → ln(1 + e^−1) in both directions
    z = torch.eye(2)
    ones = torch.ones(2, 1, dtype=torch.bool)
    negatives = ~torch.eye(2, dtype=torch.bool)
    value, counted = intra_modal_contrast(z, z[:, None], ones, z, z[:, None], ones, torch.arange(2), negatives, 1.0)
    assert value.tolist() == pytest.approx([math.log(1 + math.exp(-1))] * 2)
    assert counted.tolist() == [True, True]


def test_one_caption_for_all_leaves_nothing_to_repel() -> None:
    cls = torch.rand(3, 4, requires_grad=True)
    tokens, mask = torch.rand(3, 2, 4), torch.ones(3, 2, dtype=torch.bool)
    none = torch.zeros(3, 3, dtype=torch.bool)
    value, counted = intra_modal_contrast(cls, tokens, mask, cls.detach(), tokens, mask, torch.arange(3), none, TAU)
    value.sum().backward()
    assert not bool(counted.any())
    assert value.sum().item() == 0
    assert cls.grad is not None
    assert float(cls.grad.abs().sum()) == 0


# --- the transformer


def test_a_new_transformer_leaves_means_and_starts_narrow() -> None:
    torch.manual_seed(0)
    pdt = DistributionTransformer(128)
    cls, tokens = unit(2, 128).float(), unit(2, 5, 128).float()
    gaussians = pdt(cls, tokens, torch.ones(2, 5, dtype=torch.bool))
    assert torch.allclose(gaussians.mean, torch.cat([cls[:, None], tokens], 1), atol=1e-6)
    assert torch.allclose(gaussians.sd, torch.full_like(gaussians.sd, START_SD), atol=1e-5)
    assert gaussians.sd.norm(dim=-1).mean().item() == pytest.approx(0.3, abs=0.02)
    draws = [gaussians.sample(torch.randn(2, 6, 128)) for _ in range(2)]
    assert (draws[0] * draws[1]).sum(-1).mean().item() > 0.85  # two draws of one token are the same token still


def test_padding_is_not_attended() -> None:
    torch.manual_seed(0)
    pdt = DistributionTransformer(16)
    for parameter in pdt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    cls, tokens = torch.randn(1, 16), torch.randn(1, 4, 16)
    mask = torch.tensor([[True, True, True, False]])
    changed = tokens.clone()
    changed[:, 3] = 9
    one, two = pdt(cls, tokens, mask), pdt(cls, changed, mask)
    assert torch.allclose(one.mean[:, :4], two.mean[:, :4], atol=1e-6)
    assert torch.allclose(one.sd[:, :4], two.sd[:, :4], atol=1e-6)
