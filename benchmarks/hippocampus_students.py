"""Few labelled volumes, constant prompts: python benchmarks/hippocampus_students.py run TASK04 WORK ARM[@LABELS] …

Medical Segmentation Decathlon Task04 (200 of its volumes): 160 training volumes, 40 test volumes, no validation. Of the
160, LABELS keep their masks (5 by default; the same ones for all arms of a seed). Students at 64 px, 2-D (slabs of
three slices) or with ``3d`` in the arm's name in blocks; ``plan`` and ``phases`` train by ``--minutes`` with a plan of
their own, labelled only and in two phases. Arms: ``labelled``, ``image`` (teacher-student without text),
``text`` (the structures' prompts: all that they say is which structure, so this is at once the arm "second network
without text"); ``table WORK`` prints the figures.

The vision-language model is untrained: prompts are constant, so all that a text can say here is which structure.
Prediction, written before the first run: text = image to within the spread over seeds; 5 labels with
unlabelled volumes do not reach labelled only with 20.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from experts import accept_expert_masks, untrained_model

from amvlm.config import StudentSettings, TrainSettings
from amvlm.exchange import import_study
from amvlm.inference import evaluate
from amvlm.learning import planned_opening, train
from amvlm.models import AmvlmModel
from amvlm.planning import Machine
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

MODES: dict[str, dict[str, Any]] = {
    "labelled": {"mode": "labelled_only"},
    "image": {"mode": "image_only"},
    "text": {"mode": "text_guided"},
    "plan": {"mode": "labelled_only"},
    "phases": {},
}


def study(source: Path, work: Path, labels: int, seed: int) -> LabelStore:
    """Import once with all masks as references, then accept those of the chosen cases in a copy."""
    template = work / "template"
    if not template.exists():
        names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))
        order = np.random.default_rng(0).permutation(len(names))
        splits = {names[int(i)]: "test" if n < 40 else "train" for n, i in enumerate(order)}
        print(import_study(source, template, masks="reference", split="train", splits=splits).sentence(), flush=True)  # type: ignore[arg-type]
    folder = work / f"hippocampus-{labels}-{seed}"
    if not folder.exists():
        shutil.copytree(template, folder, ignore=shutil.ignore_patterns("cache"))
        store = LabelStore(folder)
        cases = store.cases("train")
        chosen = np.random.default_rng(100 + seed).permutation(len(cases))[:labels]
        accept_expert_masks(store, [cases[int(index)].case_id for index in chosen])
    return LabelStore(folder)


def run(given: argparse.Namespace, arm: str, seed: int) -> None:
    kind, _, labels = arm.partition("@")
    store = study(given.source, given.work, int(labels or 5), seed)
    torch.manual_seed(seed)
    base = untrained_model()
    student = StudentSettings(dimensions=3, channels=(16, 32, 64, 128)) if kind.endswith("3d") else StudentSettings()
    by_minutes = kind in ("plan", "phases")
    settings = TrainSettings(
        steps=0 if by_minutes else given.steps, minutes=given.minutes if by_minutes else 0.0,
        batch_size=32 if kind.endswith("3d") else 8, seed=seed,
        precision="fp32" if kind.endswith("3d") else given.precision,
        threads=given.threads, student=student, checkpoint_every=10**6,
        **MODES[kind.removesuffix("3d")],
    )  # fmt: skip
    if given.seconds_per_megapixel:  # on a machine that others use: what was measured when it was idle
        machine = Machine(seconds_per_megapixel=given.seconds_per_megapixel)
        planned_opening.measured_machine = lambda *_: machine
        planned_opening.text_steps = lambda *_: given.text_steps
    name, began, began_cpu = f"{kind}-{seed}", time.time(), time.process_time()
    folder = RunFolder.new(store.folder)
    with folder:
        for _ in train(store, base, settings, folder, name):
            pass
    seconds, cpu_seconds = time.time() - began, time.process_time() - began_cpu
    model = AmvlmModel.load(store.folder / "models" / name)
    found = evaluate(model, store, "test")
    line = {
        "arm": arm, "seed": seed, "steps": given.steps, "seconds": round(seconds), "cpu_seconds": round(cpu_seconds),
        "plan": None if model.plan is None else model.plan.sentence(),
        "text weight": [s.text_weight for s in model.card.structures],
        "found": {
            f"{k} / {s}": [v.mean_dice, v.pooled_dice, v.mean_iou] for (k, s), v in found.summaries().items()
        },
    }  # fmt: skip
    with (given.work / "hippocampus.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(arm, seed, round(seconds), "s", {k: round(v[0], 3) for k, v in line["found"].items()}, flush=True)  # type: ignore[attr-defined]


def table(work: Path) -> Iterator[str]:
    """Per-case mean Dice of the student, and of the merged mask, mean ± s.d. over seeds."""
    lines = [json.loads(text) for text in (work / "hippocampus.jsonl").read_text().splitlines()]
    lines = list({(line["arm"], line["seed"]): line for line in lines}.values())
    yield "| arm | seeds | steps | student: anterior | posterior | mIoU | merged: anterior | posterior | α |"
    yield "|---" * 9 + "|"
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = [line for line in lines if line["arm"] == arm]
        names = ("anterior hippocampus", "posterior hippocampus")

        def cell(values: list[float]) -> str:
            return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

        cells = [cell([line["found"][f"prediction / {n}"][0] for line in own]) for n in names]
        cells += [cell([mean(line["found"][f"prediction / {n}"][2] for n in names) for line in own])]
        cells += [cell([line["found"][f"merged / {n}"][0] for line in own]) for n in names]
        weights = " ".join("/".join(map(str, line["text weight"])) for line in own)
        yield f"| {arm} | {len(own)} | {own[0]['steps']} | " + " | ".join(cells) + f" | {weights} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("run")
    first.add_argument("source", type=Path)
    first.add_argument("work", type=Path)
    first.add_argument("arms", nargs="+")
    first.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    first.add_argument("--steps", type=int, default=1000)
    first.add_argument("--threads", type=int, default=0)
    first.add_argument("--minutes", type=float, default=7, help="for the arms plan (labelled only) and phases")
    first.add_argument("--seconds-per-megapixel", type=float, default=0)
    first.add_argument("--text-steps", type=int, default=365, help="of the text mask, beside --seconds-per-megapixel")
    first.add_argument("--precision", default="bf16", choices=("auto", "bf16", "fp32"))
    second = commands.add_parser("table")
    second.add_argument("work", type=Path)
    given = parser.parse_args()
    os.environ["AMVLM_CACHE"] = str(given.work / "cache")  # shared by all studies
    if given.command == "table":
        print("\n".join(table(given.work)))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for arm in given.arms:
            run(given, arm, seed)


if __name__ == "__main__":
    main()
