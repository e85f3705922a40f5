"""A planned training step beside the plain loop that one writes first with MONAI: python benchmarks/planned_step.py

Both train the same half-resolution U-Net on 128-px patches (batches of 8, fp32, one thread, CPU) of the same synthetic
cases of 10 slices of 216×256 px. The plain loop crops and changes image by image with MONAI's transforms, in contiguous
memory, with DiceCELoss and AdamW. Rounds are interleaved; `--memory` runs one loop alone and prints its peak memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ResizeWithPadOrCropd,
)

from amvlm.learning.fitting import Phase, batches, fit, optimiser_of
from amvlm.learning.patches import PreparedCase
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan

BATCH, PATCH, CASES = 8, 128, 20


def plan_of(widths: tuple[int, ...]) -> Plan:
    return Plan(
        spacing_mm=(0.0, 1.5, 1.5), patch=(1, PATCH, PATCH), widths=widths, decoder="sum", structures=("a", "b", "c"),
        largest_part=(False,) * 3, any_angle=0.2, batch_size=BATCH, steps=1, minutes=1,
    )  # fmt: skip


def cases_of() -> list[PreparedCase]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(CASES):
        image = rng.standard_normal((10, 1, 216, 256)).astype(np.float16)
        labels = np.zeros((10, 1, 216, 256), np.uint8)
        for structure in (1, 2, 3):
            row, column = rng.integers(40, 150, 2)
            labels[2:8, 0, row : row + 30, column : column + 30] = structure
        found.append(PreparedCase(str(number), image, labels, np.ones(3, np.float32), (10.0, 1.5, 1.5)))
    return found


def ours(plan: Plan, cases: list[PreparedCase]) -> Iterator[float]:
    student = PlannedStudent(plan).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _, loss in fit(student, Phase(0, 10**6, [(cases, BATCH)]), optimiser_of(student), 0):
        yield float(loss.detach())


def plain(plan: Plan, cases: list[PreparedCase]) -> Iterator[float]:
    student, chosen = PlannedStudent(plan), ("image", "label")
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-2)
    loss_of, rng = DiceCELoss(to_onehot_y=True, softmax=True), np.random.default_rng(0)
    modes = ("bilinear", "nearest")
    change = Compose([
        RandCropByPosNegLabeld(chosen, "label", (176, 176), num_samples=1),
        RandAffined(chosen, prob=0.5, rotate_range=np.pi / 6, scale_range=0.3, mode=modes, padding_mode="border"),
        ResizeWithPadOrCropd(chosen, (PATCH, PATCH)), RandGaussianNoised("image", prob=0.15),
        RandGaussianSmoothd("image", prob=0.15), RandScaleIntensityd("image", 0.3, prob=0.3),
        RandShiftIntensityd("image", 0.4, prob=0.3), RandAdjustContrastd("image", prob=0.4, gamma=(0.7, 1.5)),
    ])  # fmt: skip
    student.train()
    while True:
        drawn = []
        for _ in range(BATCH):
            case, z = cases[int(rng.integers(len(cases)))], int(rng.integers(10))
            pair = {"image": case.image[z].astype(np.float32), "label": case.labels[z].astype(np.float32)}
            drawn.append(change(pair)[0])
        image, label = (torch.stack([one[key].as_tensor() for one in drawn]) for key in chosen)
        loss = loss_of(student(image), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield float(loss.detach())


def seconds_of(steps: Iterator[float], count: int) -> list[float]:
    times = [time.process_time()]
    for _ in range(count):
        next(steps)
        times.append(time.process_time())
    return np.diff(times).tolist()


def data_seconds(plan: Plan, cases: list[PreparedCase], count: int) -> list[float]:
    """What drawing and changing a batch alone takes."""
    made = batches(PlannedStudent(plan), Phase(0, 10**6, [(cases, BATCH)]), 0, 0, ahead=False)
    times = [time.process_time()]
    for _ in range(count):
        next(made)
        times.append(time.process_time())
    return np.diff(times).tolist()


def memory_mib(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--memory", choices=("ours", "plain"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan, cases = plan_of(tuple(given.widths)), cases_of()
    loops = {"ours": ours, "plain": plain}
    if given.memory:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory_mib("VmHWM")
        seconds_of(loops[given.memory](plan, cases), given.steps)
        print(memory_mib("VmHWM") - before)
        return
    running = {name: loop(plan, cases) for name, loop in loops.items()}
    found: dict[str, list[float]] = {name: [] for name in loops}
    for steps in running.values():
        seconds_of(steps, 3)
    for _ in range(given.rounds):
        for name, steps in running.items():
            found[name] += seconds_of(steps, given.steps)
    data = median(data_seconds(plan, cases, given.rounds * given.steps))
    command = [sys.executable, *sys.argv, "--memory"]
    memory = {name: subprocess.check_output([*command, name], text=True).strip() for name in loops}
    print("| loop | CPU-ms per step | of it drawing and changing | peak memory beyond the data, MiB |")
    print("|---|---|---|---|")
    for name, times in found.items():
        share = f"{data * 1000:.1f} ({data / median(times):.0%})" if name == "ours" else ""
        print(f"| {name} | {1000 * median(times):.0f} | {share} | {memory[name]} |")


if __name__ == "__main__":
    main()
