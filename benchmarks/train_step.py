"""Our training step against a plain loop with the same losses: python benchmarks/train_step.py STUDY --steps 20

The plain loop is what one writes first: augmentation image by image when the step needs it, fp32, channels first, the
average of the weights parameter by parameter. Both see the same weights, batches and noise. First the losses are
compared in fp32, then time is taken, interleaved, with ours in the precision that `auto` chooses; last, in two fresh
processes, peak memory (`--memory`).
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from amvlm.config import TrainSettings
from amvlm.learning.augment import cut_mix_boxes, mixed, strong_intensity, weak_view
from amvlm.learning.batches import LabelledBatch, UnlabelledBatch, labelled_batch, mirror_some, unlabelled_batch
from amvlm.learning.context import Context
from amvlm.learning.ema import update_ema
from amvlm.learning.networks import Networks
from amvlm.learning.noise import CaseNoise
from amvlm.learning.opening import open_run
from amvlm.learning.runtime import Prefetcher
from amvlm.learning.study import LabelledCase, sample_labelled, sample_unlabelled
from amvlm.learning.texts import TextTable
from amvlm.learning.train import mixed_targets, step_losses
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

STEPS = 1500
"""Of the run that the measured steps would belong to."""


class Side:
    """One of the two loops, with its own networks."""

    def __init__(self, context: Context, labelled: list[LabelledCase], settings: TrainSettings, base: AmvlmModel):
        self.context, self.labelled, self.settings = context, labelled, settings
        self.table = TextTable(context.study)
        torch.manual_seed(0)
        self.networks = Networks.fresh(base, settings, labelled, context, self.table)
        self.student, self.generator, self.optimiser = self.networks.prepare(context, settings)

    def update(self, labelled: LabelledBatch, unlabelled: UnlabelledBatch, step: int) -> float:
        self.student.train()
        self.generator.train()
        torch.manual_seed(step)
        targets = mixed_targets(self.networks, unlabelled, self.settings, self.context)
        losses = step_losses(
            self.networks, self.student, self.generator, labelled, unlabelled, targets, self.settings, step
        )
        total = torch.stack(list(losses.values())).sum()
        self.context.optimise(total, [self.student, self.generator], self.optimiser, self.settings, step, 1000)
        return float(total.detach())


class Ours(Side):
    def draw(self, step: int) -> tuple[LabelledBatch, UnlabelledBatch]:
        mirror = self.networks.mirror
        return (
            labelled_batch(self.context, self.labelled, self.table, self.settings, 2, step, mirror=mirror),
            unlabelled_batch(self.context, self.table, self.settings, 3, step, mirror),
        )

    def step(self, drawn: tuple[LabelledBatch, UnlabelledBatch], step: int) -> float:
        found = self.update(*(batch.to(self.context.device) for batch in drawn), step)
        update_ema(self.networks.teacher, self.networks.student, step, self.settings.ema_decay)
        update_ema(self.networks.generator_teacher, self.networks.generator, step, self.settings.ema_decay)
        return found


class Plain(Side):
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        for network in self.networks.parts().values():
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def draw(self, step: int) -> tuple[LabelledBatch, UnlabelledBatch]:
        """The same batch, image by image."""
        context, settings, count = self.context, self.settings, self.settings.batch_size
        rng = context.step_rng(settings, 2, step)
        places, masks, known = sample_labelled(self.labelled, count, rng)
        ids = [case_id for case_id, _ in places]
        named, sides = self.table.halves(ids, masks, rng, 0.0)
        mirrored = mirror_some(context, CaseNoise((settings.seed, 2, step), ids), self.networks.mirror)
        text = self.table.rows(ids, rng, mirrored.tolist(), sides)
        images, moved = [], []
        for row, place in enumerate(places):
            noise = CaseNoise((settings.seed, 2, step, 1), ids, slice(row, row + 1))
            both = torch.cat([masks[row], named[row]])[None]
            image, both = weak_view(
                context.bank.slabs([place]), both, noise, mirrored[row : row + 1], context.flip_axis or 2
            )
            images.append(strong_intensity(image, noise))
            moved.append(both)
        image, both = torch.cat(images), torch.cat(moved)
        first, second = both.chunk(2, 1)
        labelled = LabelledBatch(ids, image, first, known, image, second, text)
        rng = context.step_rng(settings, 3, step)
        places, wanted = sample_unlabelled(context.study, context.bank, count, rng)
        ids = [case_id for case_id, _ in places]
        mirrored = mirror_some(context, CaseNoise((settings.seed, 3, step), ids), self.networks.mirror)
        text = self.table.rows(ids, None, mirrored.tolist())
        weaks, strongs, boxes = [], [], []
        for row, place in enumerate(places):
            noise = CaseNoise((settings.seed, 3, step, 1), ids, slice(row, row + 1))
            slab = context.bank.slabs([place])
            weak, _ = weak_view(slab, None, noise, mirrored[row : row + 1], context.flip_axis or 2)
            weaks.append(weak)
            strongs.append(strong_intensity(weak, noise))
            boxes.append(cut_mix_boxes(noise, *weak.shape[2:], settings.cut_mix))
        box = torch.cat(boxes)
        return labelled, UnlabelledBatch(torch.cat(weaks), mixed(torch.cat(strongs), box), box, text, wanted)

    def step(self, drawn: tuple[LabelledBatch, UnlabelledBatch], step: int) -> float:
        found = self.update(*(batch.to(self.context.device) for batch in drawn), step)
        networks = self.networks
        average(networks.teacher, networks.student, step, self.settings.ema_decay)
        average(networks.generator_teacher, networks.generator, step, self.settings.ema_decay)
        return found


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, step: int, decay: float) -> None:
    """The textbook's moving average, one tensor after the other."""
    decay = min(1 - 1 / (step + 1), decay)
    new: dict[str, Tensor] = student.state_dict()
    for name, old in teacher.state_dict().items():
        old.copy_(decay * old + (1 - decay) * new[name] if old.is_floating_point() else new[name])


def opened(store: LabelStore, settings: TrainSettings, base: AmvlmModel) -> tuple[Context, list[LabelledCase], str]:
    """A run's context, its judged cases, and the precision it computes in."""
    work = opening(store, settings, base)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value.context, end.value.labelled, end.value.context.accelerator.mixed_precision


def opening(store: LabelStore, settings: TrainSettings, base: AmvlmModel):  # type: ignore[no-untyped-def]
    return open_run(store, base, settings, RunFolder(Path(tempfile.mkdtemp())), "none", False)


def agree(given: argparse.Namespace, store: LabelStore, base: AmvlmModel, steps: int = 5) -> float:
    """Largest relative difference of the loss in fp32 over some steps."""
    settings = TrainSettings(
        steps=STEPS, batch_size=given.batch_size, precision="fp32", device=given.device, threads=given.threads
    )
    settings = settings.model_copy(update={"side_prompts": 0.0})
    context, labelled, _ = opened(store, settings, base)
    sides = [Ours(context, labelled, settings, copy.deepcopy(base)), Plain(context, labelled, settings, base)]
    worst = 0.0
    for step in range(steps):
        ours, plain = (side.step(side.draw(step), step) for side in sides)
        worst = max(worst, abs(ours - plain) / abs(plain))
    return worst


def pace(side: Ours | Plain, steps: int, ahead: bool) -> tuple[list[float], float]:
    """Seconds of each step, its batch included, and the share that it waited for the batch."""
    seconds, waited = [], 0.0
    source = Prefetcher(side.draw, range(steps)) if ahead else ((s, None) for s in range(steps))
    began = time.perf_counter()
    for step, drawn in source:
        side.step(side.draw(step) if drawn is None else drawn, step)
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
    if isinstance(source, Prefetcher):
        waited = source.waited / sum(seconds)
    return seconds, waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--model", required=True, help="a model whose text side to use")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--memory", choices=["ours", "plain"], help="only run one loop and print its peak memory")
    given = parser.parse_args()
    store, base = LabelStore(given.study), AmvlmModel.load(given.model)
    common = {
        "steps": STEPS, "batch_size": given.batch_size, "device": given.device, "threads": given.threads,
        "side_prompts": 0.0,
    }  # fmt: skip
    if given.memory:
        own = {"precision": "fp32"} if given.memory == "plain" else {}
        context, labelled, _ = opened(store, TrainSettings(**common, **own), base)
        side = (Ours if given.memory == "ours" else Plain)(context, labelled, TrainSettings(**common, **own), base)
        pace(side, 3, given.memory == "ours")
        print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return
    print(f"largest relative difference of the loss over 5 steps, fp32: {agree(given, store, base):.1e}", flush=True)
    ratios = []
    for round_ in range(given.rounds):
        settings = TrainSettings(**common)
        context, labelled, precision = opened(store, settings, base)
        ours, waited = pace(Ours(context, labelled, settings, copy.deepcopy(base)), given.steps, True)
        settings = TrainSettings(**common, precision="fp32")
        context, labelled, _ = opened(store, settings, base)
        plain, _ = pace(Plain(context, labelled, settings, copy.deepcopy(base)), given.steps, False)
        ratios.append(median(plain[2:]) / median(ours[2:]))
        print(
            f"round {round_}: plain {median(plain[2:]):.3f} s, ours {median(ours[2:]):.3f} s ({precision}, "
            f"{torch.get_num_threads()} threads), ratio {ratios[-1]:.2f}, waiting for data {waited:.2%}",
            flush=True,
        )
    print(f"time, plain ÷ ours: {median(ratios):.2f}")
    memory = [
        int(subprocess.run([sys.executable, *sys.argv, "--memory", which], check=True, capture_output=True).stdout)
        for which in ("plain", "ours")
    ]
    print(f"peak memory of the process: plain {memory[0]} MiB, ours {memory[1]} MiB, ratio {memory[0] / memory[1]:.2f}")


if __name__ == "__main__":
    main()
