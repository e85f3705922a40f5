"""ACDC by the product itself: `amvlm train --minutes`, whose minutes hold plan, student, text mask and measuring.

    python benchmarks/acdc_product.py run ACDC WORK --patients 7 --minutes 7 20 --seeds 0
    python benchmarks/acdc_product.py table WORK

The same patients as in benchmarks/acdc_students.py: 3, 7 or 14 labelled, 10 for validation (labelled, as a study's own
validation cases are), 20 for the test, which choose nothing; the rest has no labels. The base is untrained, so nothing
is inherited. One thread, fp32. On a machine that others use, ``--seconds-per-megapixel`` and ``--text-step`` give the
speeds that were measured while it was idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from acdc_students import NAMES, patients_of
from experts import untrained_model

from amvlm.config import TrainSettings
from amvlm.events import Note
from amvlm.exchange import import_study
from amvlm.exchange.importing import Masks
from amvlm.inference import evaluate
from amvlm.inference.evaluate import KINDS
from amvlm.learning import planned_opening, train
from amvlm.learning.planned_text import TEXT_SHARE
from amvlm.models import AmvlmModel
from amvlm.planning import Machine, Plan
from amvlm.store import LabelStore
from amvlm.store.records import Split
from amvlm.store.runs import RunFolder


def study(source: Path, work: Path, patients: int) -> LabelStore:
    """The study with these patients' masks, made by imports as a person makes them."""
    folder, roles = work / f"study-{patients}", patients_of(source)
    if folder.exists():
        return LabelStore(folder)
    labelled = roles[str(patients)]
    parts: list[tuple[list[str], Split, Masks]] = [
        (labelled, "train", "labels"), (sorted(set(roles["rest"]) - set(labelled)), "train", "reference"),
        (roles["validation"], "val", "labels"), (roles["test"], "test", "reference"),
    ]  # fmt: skip
    for names, split, masks in parts:
        with tempfile.TemporaryDirectory() as place:
            for kind in ("imagesTr", "labelsTr"):
                (Path(place) / kind).mkdir()
                for name in names:
                    shutil.copy(source / kind / f"{name}.nii.gz", Path(place) / kind)
            shutil.copy(source / "dataset.json", place)
            print(import_study(Path(place), folder, masks=masks, split=split).sentence(), flush=True)
    return LabelStore(folder)


def at_given_speed(given: argparse.Namespace) -> None:
    """Count steps as the idle machine would have."""
    machine = Machine(seconds_per_megapixel=given.seconds_per_megapixel)

    def text_steps(_: object, __: object, plan: Plan, settings: TrainSettings) -> int:
        return int(TEXT_SHARE * 60 * settings.minutes / (1.15 * given.text_step * (plan.widths[0] / 16) ** 1.8))

    planned_opening.measured_machine = lambda *_: machine
    planned_opening.text_steps = text_steps


def run(given: argparse.Namespace, minutes: float, seed: int) -> dict[str, Any]:
    store, name = study(given.acdc, given.work, given.patients), f"m{minutes:g}-{seed}"
    settings = TrainSettings(
        minutes=minutes, seed=seed, threads=1, precision="fp32", device="cpu",
        **({"mode": "labelled_only"} if given.labelled_only else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    base = untrained_model()
    began, folder = time.process_time(), RunFolder.new(store.folder)
    with folder:
        for event in train(store, base, settings, folder, name):
            if isinstance(event, Note):
                print(event.text, flush=True)
    cpu_seconds = time.process_time() - began
    model = AmvlmModel.load(store.folder / "models" / name)
    assert model.plan is not None
    found = {split: evaluate(model, store, split).summaries() for split in ("val", "test")}
    return {
        "patients": given.patients, "minutes": minutes, "seed": seed, "labelled_only": given.labelled_only,
        "cpu_seconds": round(cpu_seconds), "plan": model.plan.sentence(), "widths": model.plan.widths,
        "recipe": model.plan.recipe, "alpha": [s.text_weight for s in model.card.structures],
        "dice": {
            split: {kind: [round(own[kind, name].mean_dice, 4) for name in NAMES] for kind in KINDS}
            for split, own in found.items()
        },
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> None:
    print("| patients | minutes | seed | recipe | split | mask | " + " | ".join(NAMES) + " | mean |")
    print("|---" * 10 + "|")
    for row in rows:
        for split, kinds in row["dice"].items():
            for kind, dices in kinds.items():
                cells = " | ".join(f"{dice:.3f}" for dice in [*dices, sum(dices) / 3])
                run = [row["patients"], f"{row['minutes']:g}", row["seed"], row["recipe"].replace("_", " ")]
                print("| " + " | ".join(map(str, [*run, split, kind])) + f" | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    first = commands.add_parser("run")
    first.add_argument("acdc", type=Path)
    first.add_argument("work", type=Path)
    first.add_argument("--patients", type=int, default=7, choices=(3, 7, 14))
    first.add_argument("--minutes", type=float, nargs="+", default=[7.0, 20.0])
    first.add_argument("--seeds", type=int, nargs="+", default=[0])
    first.add_argument("--labelled-only", action="store_true")
    first.add_argument("--seconds-per-megapixel", type=float, default=0)
    first.add_argument("--text-step", type=float, default=0.145, help="seconds of a text step, 16 channels")
    commands.add_parser("table").add_argument("work", type=Path)
    given = parser.parse_args()
    results = given.work / "product.jsonl"
    if given.command == "table":
        table([json.loads(line) for line in results.read_text().splitlines()])
        return
    os.environ["AMVLM_CACHE"] = str(given.work / "cache")
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if given.seconds_per_megapixel:
        at_given_speed(given)
    for seed in given.seeds:
        for minutes in given.minutes:
            row = run(given, minutes, seed)
            with results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(row["dice"]["test"], flush=True)


if __name__ == "__main__":
    main()
