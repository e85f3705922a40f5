"""Our pre-training step against a plain transcription of METHOD §2: python benchmarks/pretrain_step.py

Both compute L = L_ita + 0.5·L_css + 0.1·L_pdt + 0.1·L_local + 0.1·L_icl on the same encoders, batches, views and noise,
in one run and interleaved; the plain one loops over the batch and over each sample's words and patches (what runs over
candidates is one product), and stacks pairs of Gaussians. Both update their own copy of the weights, starting equal;
their losses must agree to 1e-5 over the first 20 steps (fp32). Time and peak memory are measured for one step each, the
memory in a process of its own. With --precision bf16 ours runs as it does in use (the agreement is only reported).
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from amvlm.config import EncoderSettings, PretrainSettings
from amvlm.learning.alignment import PRIOR_WEIGHT, Alignment, Branch
from amvlm.learning.captioned import CaptionedImage, negatives_of, positives_of
from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.pairs import Pairs
from amvlm.models import VisionLanguageModel
from amvlm.models.distribution import START_SD, DistributionTransformer, Gaussians
from amvlm.models.vlm import Tokens

TAU = 0.07
SIDES, LEVELS = ("left", "right"), ("upper", "middle", "lower", "upper middle", "middle lower")


def batch_of(vlm: VisionLanguageModel, count: int, size: int, seed: int, device: torch.device) -> Pairs:
    """Random images with captions of the kind of QaTa-COV19; some of them are equal."""
    chance = torch.Generator().manual_seed(seed)
    captions = []
    for _ in range(count):
        s, one, two = (int(torch.randint(n, (), generator=chance)) for n in (2, 5, 5))
        places = f"{LEVELS[one]} {SIDES[s]} lung" + (f" and {LEVELS[two]} {SIDES[1 - s]} lung" if two > 1 else "")
        captions.append(f"{'bilateral' if two > 1 else 'unilateral'} pulmonary infection, two infected areas, {places}")
    batch = [CaptionedImage(str(n), 0, text, frozenset([text])) for n, text in enumerate(captions)]
    unique = list(dict.fromkeys(captions))
    text, rows = vlm.tokenise(unique), torch.tensor([unique.index(caption) for caption in captions])
    width, patches, words = vlm.settings.embedding_size, (size // vlm.patch) ** 2, text.words.shape[1]
    return Pairs(
        image=torch.randn(count, 1, 3, size, size, generator=chance),
        other_view=torch.randn(count, 1, 3, size, size, generator=chance),
        present=torch.ones(count, 1, dtype=torch.bool), text=text, text_row=rows, other_text=text, other_row=rows,
        image_noise=torch.randn(2, count, 1 + patches, width, generator=chance),
        text_noise=torch.randn(2, count, 1 + words, width, generator=chance),
        positives=positives_of(batch), negatives=negatives_of(batch), own=torch.arange(count),
        case_ids=[item.case_id for item in batch],
    ).to(device)  # fmt: skip


# --- the plain transcription: one loop per index of the formulas


def plain_loss(alignment: Alignment, momentum: Branch, pairs: Pairs) -> dict[str, Tensor]:
    vlm = alignment.online.vlm
    image = vlm.encode_image(pairs.image[:, 0])
    text = Tokens(*(part[pairs.text_row] for part in vlm.encode_text(pairs.text)))
    numbers = pairs.text.words[pairs.text_row]
    with torch.no_grad():
        key_image = momentum.vlm.encode_image(pairs.other_view[:, 0])
        key_text = Tokens(*(part[pairs.other_row] for part in momentum.vlm.encode_text(pairs.other_text)))
        keys = [plain_draw(momentum.patches, key_image, pairs.image_noise[1]),
                plain_draw(momentum.words, key_text, pairs.text_noise[1])]  # fmt: skip
    queries = [plain_draw(alignment.online.patches, image, pairs.image_noise[0]),
               plain_draw(alignment.online.words, text, pairs.text_noise[0])]  # fmt: skip
    css_words, pdt_words, kl_words = plain_side(
        alignment, text, image, alignment.online.words, alignment.seen_patches, numbers
    )
    css_patches, pdt_patches, kl_patches = plain_side(
        alignment, image, text, alignment.online.patches, alignment.seen_words, None
    )
    kl = torch.stack([*kl_words, *kl_patches]).mean()
    icl = 0.5 * (
        plain_icl(queries[0], image.mask, keys[0], key_image.mask, pairs.negatives)
        + plain_icl(queries[1], text.mask, keys[1], key_text.mask, pairs.negatives)
    )
    return {
        "L_ita": plain_ita(image.cls, text.cls, pairs.positives),
        "L_css": 0.5 * 0.5 * (css_words + css_patches),
        "L_pdt": 0.1 * (0.5 * (pdt_words + pdt_patches) + PRIOR_WEIGHT * kl),
        "L_local": 0.1 * 0.5 * (plain_local(image, text.cls, pairs.positives)
                                + plain_local(text, image.cls, pairs.positives.T)),
        "L_icl": 0.1 * icl,
    }  # fmt: skip


def plain_draw(pdt: DistributionTransformer | None, own: Tokens, noise: Tensor) -> Tensor:
    assert pdt is not None
    gaussians = pdt(own.cls, own.tokens, own.mask)
    return torch.stack([
        F.normalize(mean + one * sd, dim=-1)
        for mean, sd, one in zip(gaussians.mean, gaussians.sd, noise[:, : gaussians.mean.shape[1]], strict=True)
    ])  # fmt: skip


def plain_ita(images: Tensor, texts: Tensor, positives: Tensor) -> Tensor:
    both = []
    for one, other, true in ((images, texts, positives), (texts, images, positives.T)):
        rows = []
        for i in range(len(one)):
            if bool(true[i].all()):
                continue
            logits = other @ one[i] / TAU
            logs = logits - logits.exp().sum().log()
            rows.append(-logs[true[i]].mean())
        both.append(torch.stack(rows).mean())
    return 0.5 * (both[0] + both[1])


def plain_local(own: Tokens, partners: Tensor, positives: Tensor) -> Tensor:
    samples = []
    for b in range(len(own.cls)):
        others = [g for g in range(len(partners)) if not bool(positives[b, g])]
        if not others:
            continue
        weights, entropies = [], []
        for t in range(own.tokens.shape[1]):
            if not bool(own.mask[b, t]):
                continue
            similarity = partners @ own.tokens[b, t]
            with torch.no_grad():
                rest = similarity[others]
                omega = (similarity[b] - rest.mean()).clamp(min=0) / (rest.std(correction=0) + 0.05)
            logs = similarity / TAU - (similarity / TAU).exp().sum().log()
            weights.append(omega)
            entropies.append(-logs[positives[b]].mean())
        omega = torch.stack(weights)
        uniform = len(others) < 3 or float(omega.sum()) <= 1e-12
        omega = torch.ones_like(omega) if uniform else omega * len(omega) / omega.sum()
        samples.append((omega * torch.stack(entropies)).mean())
    return torch.stack(samples).mean()


def plain_side(
    alignment: Alignment, own: Tokens, other: Tokens, own_pdt: DistributionTransformer | None,
    seen_pdt: DistributionTransformer | None, numbers: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    assert own_pdt is not None
    assert seen_pdt is not None
    assert alignment.log_distance_temperature is not None
    seen = []
    for b in range(len(own.cls)):
        rows = []
        for token in own.tokens[b]:
            keys = other.tokens[b][other.mask[b]]
            rows.append(F.normalize((keys @ token / TAU).softmax(0) @ keys, dim=-1))
        seen.append(torch.stack(rows))
    seen_tokens = torch.stack(seen)
    gaussians = own_pdt(own.cls.detach(), own.tokens.detach(), own.mask)
    others = seen_pdt(other.cls.detach(), seen_tokens.detach(), own.mask)
    scales = plain_scales(alignment.scales[0 if numbers is not None else 1], gaussians, others, own.mask)
    css, pdt, kl = [], [], [[], []]
    for b in range(len(own.cls)):
        valid = torch.nonzero(own.mask[b]).flatten()
        count = len(valid)
        mean, sd = gaussians.mean[b, 1:][valid], gaussians.sd[b, 1:][valid]
        mean_, sd_ = others.mean[b, 1:][valid], others.sd[b, 1:][valid]
        # every pair j, k stacked: (count, count, D)
        d_s = (mean[:, None] - mean_[None]).square().sum(-1) / scales[0].clamp(min=1e-6)
        d_u = d_s + (sd[:, None] - sd_[None]).square().sum(-1) / scales[1].clamp(min=1e-3)
        with torch.no_grad():
            u = (d_u / 200 + 4) / (d_s + 1e-6)
            median_u = u[~torch.eye(count, dtype=torch.bool, device=u.device)].median()
            g = torch.exp(-0.357 * u / median_u).clamp(0.3, 1)
            g.fill_diagonal_(1)
            attention = own.importance[b][valid]
            low, high = attention.quantile(0.1), attention.quantile(0.9)
            weights = attention.clamp(low, high) / attention.clamp(low, high).sum()
        same = torch.eye(count, dtype=torch.bool, device=u.device)
        if numbers is not None:
            same = numbers[b][valid][:, None] == numbers[b][valid][None]
        cosine = torch.stack([seen_tokens[b][valid] @ token for token in own.tokens[b][valid]])
        css.append(plain_entropy(1 - (1 - cosine / TAU) * g, same, weights))
        pdt.append(plain_entropy(-d_u / alignment.log_distance_temperature.exp(), same, weights))
        for found, each in ((kl[0], sd), (kl[1], sd_)):
            ratio = each / START_SD
            found.append((0.5 * (ratio.square() - 1) - ratio.log()).mean())
    return torch.stack(css).mean(), torch.stack(pdt).mean(), [torch.stack(found).mean() for found in kl]


@torch.no_grad()
def plain_scales(kept: Tensor, own: Gaussians, other: Gaussians, mask: Tensor) -> Tensor:
    """Running means of both distances over pairs j ≠ k, moved by this batch."""
    sums, pairs = torch.zeros(2, device=mask.device), 0
    for b in range(len(mask)):
        valid = 1 + torch.nonzero(mask[b]).flatten()
        for place, (mine, theirs) in enumerate(((own.mean, other.mean), (own.sd, other.sd))):
            distance = (mine[b][valid][:, None] - theirs[b][valid][None]).square().sum(-1)
            sums[place] += distance.sum() - distance.diagonal().sum()
        pairs += len(valid) * (len(valid) - 1)
    now = sums / max(1, pairs)
    kept.copy_(kept.lerp(now, 0.01) if float(kept[0]) > 0 else now)
    return kept


def plain_entropy(logits: Tensor, same: Tensor, weights: Tensor) -> Tensor:
    usable = [j for j in range(len(logits)) if not bool(same[j].all())]
    total = sum(float(weights[j]) for j in usable)
    loss = logits.new_zeros(())
    for way in (logits, logits.T):
        for j in usable:
            logs = way[j] - way[j].logsumexp(0)
            loss = loss - float(weights[j]) / total * logs[same[j]].mean()
    return loss / 2


def plain_icl(query: Tensor, mask: Tensor, key: Tensor, key_mask: Tensor, negatives: Tensor) -> Tensor:
    samples = []
    for b in range(len(query)):
        others = torch.nonzero(negatives[b]).flatten().tolist()
        if not others:
            continue
        pushed = torch.cat([key[g, 1:][key_mask[g]] @ query[b, 0] for g in others]) / TAU
        coarse = [
            -(query[b, 0] @ token / TAU) + torch.cat([(query[b, 0] @ token / TAU)[None], pushed]).logsumexp(0)
            for token in key[b, 1:][key_mask[b]]
        ]
        fine = []
        for token in query[b, 1:][mask[b]]:
            positive = token @ key[b, 0] / TAU
            away = torch.stack([token @ key[g, 0] for g in others]) / TAU
            fine.append(-positive + torch.cat([positive[None], away]).logsumexp(0))
        samples.append(0.5 * (torch.stack(coarse).mean() + torch.stack(fine).mean()))
    return torch.stack(samples).mean()


# --- measuring


class Arm:
    """One implementation with its own copy of the weights."""

    def __init__(self, alignment: Alignment, ours: bool, precision: str) -> None:
        self.alignment, self.ours, self.bf16 = alignment, ours, precision == "bf16" and ours
        self.momentum = make_teacher(alignment.online)
        self.optimiser = torch.optim.AdamW(alignment.parameters(), lr=1e-4)
        self.steps = 0

    def step(self, pairs: Pairs) -> float:
        self.optimiser.zero_grad()
        momentum = self.momentum
        assert isinstance(momentum, Branch)
        if self.ours:
            with torch.autocast(pairs.image.device.type, torch.bfloat16, enabled=self.bf16):
                losses, _ = self.alignment(pairs, momentum)
        else:
            losses = plain_loss(self.alignment, momentum, pairs)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        self.optimiser.step()
        update_ema(momentum, self.alignment.online, self.steps, 0.995)
        self.steps += 1
        return total.item()


def build(arguments: argparse.Namespace) -> Alignment:
    torch.manual_seed(0)
    settings = PretrainSettings(preset="tiny", encoders=EncoderSettings(image_size=arguments.size))
    return Alignment(VisionLanguageModel(settings.encoders), settings).to(arguments.device)


def peak(arguments: argparse.Namespace, ours: bool, answer: multiprocessing.Queue[float]) -> None:
    """Peak memory of one step in MiB, above what the process held before it."""
    device = torch.device(arguments.device)
    alignment = build(arguments)
    pairs = batch_of(alignment.online.vlm, arguments.batch, arguments.size, 0, device)
    arm = Arm(alignment, ours, arguments.precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        arm.step(pairs)
        answer.put((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = resident("VmRSS")
        arm.step(pairs)
        answer.put(resident("VmHWM") - before)


def resident(field: str) -> float:
    """Of this process, MiB. (The peak in rusage would be the parent's, which survives exec.)"""
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 2**10


def memory(arguments: argparse.Namespace, ours: bool) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak, args=(arguments, ours, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def without_waiting(arm: Arm, pairs: Pairs) -> str:
    """On a GPU: whether a step waits for the device by itself."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=arm.bf16):
            losses, _ = arm.alignment(pairs, arm.momentum)
        torch.stack(list(losses.values())).sum().backward()
        return "none"
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    alignment = build(arguments)
    arms = {"ours": Arm(copy.deepcopy(alignment), True, arguments.precision),
            "plain": Arm(copy.deepcopy(alignment), False, arguments.precision)}  # fmt: skip
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    worst = 0.0
    for step in range(arguments.steps):
        pairs = batch_of(alignment.online.vlm, arguments.batch, arguments.size, step, device)
        found = {}
        for name, arm in arms.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            found[name] = arm.step(pairs)
            seconds[name].append(time.perf_counter() - began)
        worst = max(worst, abs(found["ours"] - found["plain"]))
        print(f"step {step + 1}: ours {found['ours']:.6f}, plain {found['plain']:.6f}", flush=True)
    print(f"batch {arguments.batch}, {arguments.size} px, {arguments.device}, {arguments.precision}")
    if arguments.steps > 1:
        ratio = median(seconds["plain"][1:]) / median(seconds["ours"][1:])
        print(f"largest difference of the loss over {arguments.steps} steps: {worst:.2e}")
        print(f"time, plain ÷ ours: {ratio:.1f} ({median(seconds['ours'][1:]):.3f} s a step here)")
    ours, plain = memory(arguments, True), memory(arguments, False)
    print(f"peak memory of a step: ours {ours:.0f} MiB, plain {plain:.0f} MiB, ratio {plain / max(1.0, ours):.1f}")
    if device.type == "cuda" and arguments.steps:
        print("implicit synchronisation in a step:", without_waiting(arms["ours"], pairs))


if __name__ == "__main__":
    main()
