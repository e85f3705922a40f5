"""ACDC on a GPU: 30,000 iterations in parts of some minutes, from 3, 7 and all labelled patients.

    python benchmarks/gpu_acdc.py part ACDC WORK --minutes 9
    python benchmarks/gpu_acdc.py table WORK

`part` is run again until it prints "all done"; it goes on from the newest checkpoint of whatever was running. ``ACDC``
is a folder in MSD layout with ``protocol.json``. Patients: 3 and 7 of the community's protocol, labelled only and in
two phases (a third of the iterations, then the others labelled by that network); ``50`` are all that are not in the
own test split (see acdc_students.py), ``70`` all, measured on validation alone. Networks: ``dynunet``, which the plan
chooses on a GPU, and ``half_unet`` at full width. Neither napari nor SimpleITK is needed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acdc_students import NAMES, load, measured, patients_of, without_labels

from amvlm.config import TrainSettings
from amvlm.learning.fitting import Learner, Phase, pseudo_labelled
from amvlm.learning.patches import PreparedCase
from amvlm.learning.runtime import chosen_device, gpu_precision
from amvlm.planning import WIDTHS, Plan
from amvlm.planning.rules import level_strides

FIRST_SHARE, CHECKPOINT_EVERY = 1 / 3, 500
WIDE = (32, 64, 128, 256, 512, 512)


class OutOfTimeError(Exception):
    """The part ends here; the next one goes on from the newest checkpoint."""


class Protocol:
    """What is missing of the arms, one after another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.end = options, time.monotonic() + 60 * options.minutes
        self.settings = TrainSettings(device=options.device)
        self.device = chosen_device(self.settings)
        self.precision = gpu_precision(self.settings, self.device) if self.device.type != "cpu" else "fp32"
        self.roles = patients_of(options.acdc)
        self.roles["50"] = self.roles["rest"]
        self.roles["70"] = sorted({*self.roles["rest"], *self.roles["test"]})

    def run(self) -> None:
        for seed, patients, network, recipe in self.arms():
            name = f"{patients}-{network}-{recipe}-{seed}"
            results = self.options.work / "gpu_acdc.jsonl"
            if results.exists() and any(json.loads(line)["name"] == name for line in results.open()):
                continue
            plan = plan_of(self.options, network)
            student = self.student(name, plan, patients, recipe, seed)
            line: dict[str, Any] = {
                "name": name, "steps": self.options.steps, "batch": plan.batch_size, "precision": self.precision,
                "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            }  # fmt: skip
            for split in ("validation",) if patients == "70" else ("validation", "test"):
                cases = [load(self.options.acdc, case, plan) for case in self.roles[split]]
                line[split] = [[round(d, 4) for d in dices] for dices in measured(student, cases, accurate=False)]
                print(name, split, round(float(np.nanmean(line[split])), 4), flush=True)
            with results.open("a") as stream:
                stream.write(json.dumps(line) + "\n")

    def arms(self) -> Iterator[tuple[int, str, str, str]]:
        for seed in self.options.seeds:
            for patients in self.options.patients:
                for network in self.options.networks:
                    for recipe in ("labelled", "two_phase") if patients in ("3", "7") else ("labelled",):
                        yield seed, patients, network, recipe

    def student(self, name: str, plan: Plan, patients: str, recipe: str, seed: int) -> Any:
        labelled = self.cases(self.roles[patients], plan)
        learner = Learner(plan, self.device, self.precision, seed, self.options.work / "runs" / name)
        restored = learner.load()
        done, steps = 0 if restored is None else restored.step, self.options.steps
        lengths = [steps] if recipe == "labelled" else [round(FIRST_SHARE * steps), steps - round(FIRST_SHARE * steps)]
        for number, length in enumerate(lengths):
            before = sum(lengths[:number])
            if done >= before + length:
                continue
            groups = [(labelled, plan.batch_size)]
            if number:
                if done == before:
                    learner.next_phase()
                others = sorted(set(self.roles["rest"]) - set(self.roles[patients]))
                unlabelled = map(without_labels, self.cases(others, plan))
                pseudo = [pseudo_labelled(learner.first.eval(), case) for case in unlabelled]
                groups = [(labelled, plan.batch_size // 2), (pseudo, plan.batch_size - plan.batch_size // 2)]
            done = self.phase(name, learner, Phase(number, length, groups), done - before, before)
        return learner.student.eval()

    def phase(self, name: str, learner: Learner, phase: Phase, first: int, before: int) -> int:
        spoken = time.monotonic()
        for step, loss in learner.fit(phase, first):
            done, late = before + step + 1, time.monotonic() > self.end
            if done % CHECKPOINT_EVERY == 0 or late or step + 1 == phase.steps:
                learner.save(done)
            if time.monotonic() - spoken > 10:
                spoken = time.monotonic()
                print(f"{name}: {done}/{self.options.steps}, loss {float(loss):.3f}", flush=True)
            if late:
                raise OutOfTimeError
        return before + phase.steps

    def cases(self, names: list[str], plan: Plan) -> list[PreparedCase]:
        return [load(self.options.acdc, name, plan)[0] for name in names]


def plan_of(options: argparse.Namespace, network: str) -> Plan:
    """Native pixels, the heart's region, and the width that a GPU carries."""
    patch, spacing = (1, options.patch, options.patch), (10.0, 1.5, 1.5)
    widths = options.widths or (WIDE if network == "dynunet" else WIDTHS)
    return Plan(
        axis=2, spacing_mm=(0.0, 1.5, 1.5), patch=patch, region_mm=(150.0, 170.0, 170.0), network=network,
        widths=tuple(widths), decoder="sum", structures=NAMES, largest_part=(True,) * 3, any_angle=0.2,
        strides=level_strides(patch, spacing, len(widths)) if network == "dynunet" else (),
        batch_size=options.batch, steps=options.steps, minutes=1,
    )  # fmt: skip


def table(work: Path) -> None:
    print("| patients, network, recipe, seed | validation: RV | MYO | LV | mean | test: RV | MYO | LV | mean |")
    print("|---" * 9 + "|")
    for text in (work / "gpu_acdc.jsonl").read_text().splitlines():
        line = json.loads(text)
        cells = []
        for split in ("validation", "test"):
            means = np.nanmean(line[split], 0) if split in line else np.full(3, np.nan)
            cells += [f"{value:.3f}" for value in (*means, means.mean())]
        print(f"| {line['name']} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("part")
    part.add_argument("acdc", type=Path)
    part.add_argument("work", type=Path)
    part.add_argument("--minutes", type=float, default=9, help="when this part leaves off")
    part.add_argument("--seeds", type=int, nargs="+", default=[0])
    part.add_argument("--patients", nargs="+", choices=("3", "7", "50", "70"), default=["3", "7", "50", "70"])
    part.add_argument("--networks", nargs="+", choices=("dynunet", "half_unet"), default=["dynunet"])
    part.add_argument("--steps", type=int, default=30_000)
    part.add_argument("--batch", type=int, default=16)
    part.add_argument("--patch", type=int, default=192)
    part.add_argument("--widths", type=int, nargs="+", default=[], help="instead of the GPU's own")
    part.add_argument("--device", default="auto")
    commands.add_parser("table").add_argument("work", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        table(options.work)
        return
    try:
        Protocol(options).run()
        print("all done")
    except OutOfTimeError:
        print("time is up; the same command goes on from here")


if __name__ == "__main__":
    main()
