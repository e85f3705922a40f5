"""A contrastive step on cached tokens beside the end-to-end step: python benchmarks/locked_step.py

EfficientNet-Lite0 and MiniLM (amvlm weights fetch …), all losses of METHOD §2, the same captions and batch size, in one
run and interleaved, one thread, fp32. The end-to-end step draws nothing: its images and views lie ready. The step on
cached tokens reads its tokens from a memory-mapped file and looks its texts up. Both include momentum branch, backward
pass, clipping and update. Each is told as the median of its CPU seconds (others may use the machine) over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from pretrain_step import batch_of

from amvlm.config import EncoderSettings, PretrainSettings
from amvlm.learning.alignment import Alignment
from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.locked import VIEWS
from amvlm.learning.pairs import Pairs
from amvlm.models import VisionLanguageModel
from amvlm.models.vlm import RawTokens

IMAGES, PATCHES = 500, 49


class Side:
    """One of the two ways, with its own weights."""

    def __init__(self, towers: str, vlm: VisionLanguageModel) -> None:
        self.settings = PretrainSettings(preset="locked", towers=towers)
        torch.manual_seed(0)
        self.alignment = Alignment(vlm, self.settings)
        self.momentum = make_teacher(self.alignment.online)
        trained = [p for p in self.alignment.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        self.seconds: list[float] = []

    def step(self, pairs: Pairs, number: int) -> float:
        self.alignment.train()
        losses, _ = self.alignment(pairs, self.momentum)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.alignment.parameters(), 1.0)
        self.optimiser.step()
        update_ema(self.momentum, self.alignment.online, number, 0.995)
        return float(total.detach())


def cached(pairs: Pairs, kept: np.ndarray, vlm: VisionLanguageModel, step: int) -> Pairs:
    """The batch with tokens from the file instead of images, and its noise for as many patches."""
    rng = np.random.default_rng(step)
    rows, count = rng.integers(IMAGES, size=len(pairs.case_ids)), len(pairs.case_ids)
    read = []
    for view in (0, 2):
        tokens = torch.from_numpy(np.stack([kept[row, view] for row in rows]).astype(np.float32))
        read.append(RawTokens(tokens[:, 0, :-1], tokens[:, 1:, :-1], tokens[:, 1:, -1]))
    noise = torch.randn(2, count, 1 + PATCHES, vlm.settings.embedding_size)
    return replace(pairs, image=read[0], other_view=read[1], image_noise=noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=112)
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoders = EncoderSettings(image_encoder="efficientnet-lite0", text_encoder="minilm", image_size=given.size)
    vlms = [VisionLanguageModel(encoders) for _ in range(2)]
    sides = {"end to end": Side("unfrozen", vlms[0]), "cached tokens": Side("locked", vlms[1])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        shape = (IMAGES, VIEWS, 1 + PATCHES, vlms[1].image_width + 1)
        np.save(path, np.random.default_rng(0).normal(size=shape).astype(np.float16))
        kept = np.load(path, mmap_mode="r")
        for number in range(given.rounds + 1):
            plain = batch_of(vlms[0], given.batch_size, given.size, number, torch.device("cpu"))
            with torch.no_grad():
                texts = RawTokens(*(part.clone() for part in vlms[1].read_text(plain.text)))
            for name, side in sides.items():
                began = time.process_time()
                pairs = plain
                if name == "cached tokens":
                    pairs = replace(cached(plain, kept, vlms[1], number), read_text=texts, read_other_text=texts)
                side.step(pairs, number)
                if number:
                    side.seconds.append(time.process_time() - began)
    for name, side in sides.items():
        print(f"{name}: {1e3 * median(side.seconds):.0f} ms ({', '.join(f'{1e3 * s:.0f}' for s in side.seconds)})")
    ratio = median(sides["end to end"].seconds) / median(sides["cached tokens"].seconds)
    print(f"end to end / cached tokens: {ratio:.1f}")


if __name__ == "__main__":
    main()
