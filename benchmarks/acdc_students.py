"""Students on ACDC in the community's protocol: 3, 7 or 14 labelled patients, by CPU-seconds of one thread.

    python benchmarks/acdc_students.py run ACDC WORK --patients 7 --recipe labelled --cpu-seconds 420 --seeds 0 1 2
    python benchmarks/acdc_students.py table WORK

``ACDC`` is a folder in MSD layout with ``protocol.json``. Test: 20 patients drawn once from the training patients that
are in no labelled set; neither their images nor their masks are seen in training. Each result is one line of
``WORK/acdc.jsonl``; what is there already is passed over.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from teachers import BidirectionalCopyPaste, CutMix

from amvlm.imaging import Volume, to_canonical
from amvlm.imaging.regrid import back_on_slices, grid_shape, resampled, resampled_labels
from amvlm.imaging.resample import IntensityScale
from amvlm.learning.fitting import Phase, answer, fit, optimiser_of, pseudo_labelled
from amvlm.learning.patches import PreparedCase
from amvlm.metrics import Overlap
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan

COST = {"cutmix": 1.19, "bcp": 1.44, "bcp, labelled": 0.56}
"""Of a step with a teacher, in plain steps of as many patches: medians of 20 interleaved steps, 16 channels."""
BCP_FIRST = 0.25
"""Share of bidirectional copy-paste's first part, on labelled patches alone, as published."""
NO_KEY = ("acdc", "work", "seeds", "command", "splits")
NAMES = ("right ventricle", "myocardium", "left ventricle")


def patients_of(folder: Path) -> dict[str, list[str]]:
    """Frames by role: labelled_3/7/14, validation, test (20 patients), unlabelled (the rest)."""
    protocol = json.loads((folder / "protocol.json").read_text())
    roles = {str(n): protocol[f"labelled_{n}_patients"] for n in (3, 7, 14)}
    roles["validation"] = protocol["validation"]
    frames = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").glob("*.nii.gz"))
    taken = {name.split("_")[0] for name in (*roles["14"], *roles["validation"])}
    free = sorted({name.split("_")[0] for name in frames} - taken)
    test = set(np.random.default_rng(2026).permutation(free)[:20].tolist())
    roles["test"] = [name for name in frames if name.split("_")[0] in test]
    roles["rest"] = [name for name in frames if name.split("_")[0] not in test and name not in roles["validation"]]
    return roles


def load(folder: Path, name: str, plan: Plan) -> tuple[PreparedCase, np.ndarray]:
    """A case on the plan's grid, and its labels on its own grid (slices first)."""
    stored = nib.load(folder / "imagesTr" / f"{name}.nii.gz")
    volume = to_canonical(Volume(np.asanyarray(stored.dataobj), stored.affine))
    truth = np.asanyarray(nib.load(folder / "labelsTr" / f"{name}.nii.gz").dataobj).astype(np.uint8)
    truth = np.moveaxis(to_canonical(Volume(truth, stored.affine)).array, plan.axis, 0)
    stack = np.moveaxis(volume.array, plan.axis, 0)
    spacing = np.roll(volume.spacing_mm, 1) if plan.axis == 2 else volume.spacing_mm
    shape = grid_shape(stack.shape, spacing, plan.spacing_mm)
    image = torch.from_numpy(IntensityScale.of(stack).apply(stack))[:, None]
    own = tuple(float(mm if target == 0 else target) for mm, target in zip(spacing, plan.spacing_mm, strict=True))
    labels = resampled_labels([truth == value for value in (1, 2, 3)], shape, plan.exclusive)
    planes = resampled(image, shape).numpy().astype(np.float16)
    return PreparedCase(name, planes, labels, np.ones(3, np.float32), own), np.ascontiguousarray(truth)


def without_labels(case: PreparedCase) -> PreparedCase:
    """What a training may see of an unlabelled case."""
    labels, known = np.zeros_like(case.labels), np.zeros_like(case.known)
    return PreparedCase(case.case_id, case.image, labels, known, case.spacing_mm)


Read = tuple[PreparedCase, np.ndarray]


def measured(student: PlannedStudent, cases: list[Read], accurate: bool) -> list[list[float]]:
    """Dice per case and structure on the scans' own grid."""
    found = []
    for case, truth in cases:
        logits = back_on_slices(answer(student, case, accurate), truth.shape[1:])
        found.append([Overlap.of(logits[s] > 0, torch.from_numpy(truth == s + 1)).dice for s in range(3)])
    return found


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        axis=2, spacing_mm=(0.0, options.spacing, options.spacing), patch=(1, options.patch, options.patch),
        context=options.context, region_mm=(150.0, 170.0, 170.0) if options.region else None,
        widths=tuple(options.widths), decoder=options.decoder, structures=NAMES, largest_part=(True,) * 3,
        mirror=(options.mirror,) * 2,
        any_angle=options.any_angle, batch_size=options.batch, steps=1, minutes=options.cpu_seconds / 60,
    )  # fmt: skip


def trained(
    options: argparse.Namespace, plan: Plan, roles: dict[str, list[str]], seed: int
) -> tuple[PlannedStudent, dict[str, Any]]:
    """Train until the CPU-seconds are spent; preparation is not counted, pseudo-labelling is."""
    folder = Path(options.acdc)
    labelled = [load(folder, name, plan)[0] for name in roles[str(options.patients)]]
    others = sorted(set(roles["rest"]) - set(roles[str(options.patients)])) if options.recipe != "labelled" else []
    unlabelled = [without_labels(load(folder, name, plan)[0]) for name in others]
    torch.manual_seed(seed)
    student = PlannedStudent(plan).to(memory_format=torch.channels_last)
    each = options.step_seconds or seconds_of_a_step(plan, labelled)
    began = time.process_time()
    notes: dict[str, Any] = {"step_seconds": round(each, 4)}
    share = 1.0 if options.recipe == "labelled" else options.first_share
    first = int(share * options.cpu_seconds / each)
    if options.recipe in ("labelled", "two_phase"):
        notes["steps"] = [run(student, Phase(0, first, [(labelled, plan.batch_size)]), seed)]
    if options.recipe in ("cutmix", "bcp"):
        notes["steps"] = teach(options, student, labelled, unlabelled, seed, each)
    if options.recipe == "two_phase":
        measuring = time.process_time()
        notes["first phase"] = on_splits(options, plan, roles, student.eval())
        before = time.process_time()
        began += before - measuring
        rng = np.random.default_rng((seed, 5))
        chosen = rng.permutation(len(unlabelled))[: options.pseudo or None]
        pseudo = [pseudo_labelled(student, unlabelled[int(i)]) for i in chosen]
        notes["labelling_seconds"] = round(time.process_time() - before, 1)
        left = options.cpu_seconds - first * each - notes["labelling_seconds"]
        if options.fresh:
            torch.manual_seed(seed + 100)
            student = PlannedStudent(plan).to(memory_format=torch.channels_last)
        half = round(plan.batch_size * options.pseudo_share)
        groups = [(labelled, plan.batch_size - half), (pseudo, half)]
        notes["steps"].append(run(student, Phase(1, int(left / each), groups), seed))
    notes["cpu_seconds"] = round(time.process_time() - began, 1)
    return student, notes


def teach(
    options: argparse.Namespace, student: PlannedStudent, labelled: list[PreparedCase],
    unlabelled: list[PreparedCase], seed: int, each: float,
) -> list[int]:  # fmt: skip
    """The recipes with a teacher: how many steps each of their parts had."""
    half = student.plan.batch_size // 2
    both, own = [(labelled, half), (unlabelled, half)], [(labelled, half), (labelled, half)]
    if options.recipe == "cutmix":
        steps = int(options.cpu_seconds / (COST["cutmix"] * each))
        return [run(student, Phase(0, steps, both, loss=CutMix(steps, seed)), seed)]
    first = int(BCP_FIRST * options.cpu_seconds / (COST["bcp, labelled"] * each))
    second = int((1 - BCP_FIRST) * options.cpu_seconds / (COST["bcp"] * each))
    parts = [(own, first, True), (both, second, False)]
    return [
        run(student, Phase(number, steps, groups, loss=BidirectionalCopyPaste(steps, seed, labels)), seed)
        for number, (groups, steps, labels) in enumerate(parts)
    ]


def on_splits(
    options: argparse.Namespace, plan: Plan, roles: dict[str, list[str]], student: PlannedStudent
) -> dict[str, list[list[float]]]:
    """Dice per case and structure of each split; prints the means."""
    found = {}
    for split in options.splits:
        began = time.process_time()
        cases = [load(Path(options.acdc), name, plan) for name in roles[split]]
        dices = measured(student, cases, options.accurate)
        found[split] = [[round(d, 4) for d in case] for case in dices]
        print(split, np.nanmean(dices, 0).round(4), round(float(np.nanmean(dices)), 4), "seconds per case",
              round((time.process_time() - began) / len(cases), 2), flush=True)  # fmt: skip
    return found


def run(student: PlannedStudent, phase: Phase, seed: int) -> int:
    for step, loss in fit(student, phase, optimiser_of(student), seed):
        if step % 100 == 0:
            print(phase.number, step, phase.steps, round(float(loss), 4), round(time.process_time()), flush=True)
    return phase.steps


def seconds_of_a_step(plan: Plan, cases: list[PreparedCase]) -> float:
    """CPU-seconds of a step of a scratch network, batch and augmentation included."""
    student = PlannedStudent(plan).to(memory_format=torch.channels_last)
    times = [time.process_time()]
    for _ in fit(student, Phase(9, 8, [(cases, plan.batch_size)]), optimiser_of(student), 0):
        times.append(time.process_time())
    return float(np.median(np.diff(times)[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for command in ("run", "table"):
        sub = commands.add_parser(command)
        if command == "run":
            sub.add_argument("acdc")
        sub.add_argument("work", type=Path)
        sub.add_argument("--patients", type=int, default=7, choices=(3, 7, 14))
        sub.add_argument("--recipe", default="labelled", choices=("labelled", "two_phase", "cutmix", "bcp"))
        sub.add_argument("--cpu-seconds", type=float, default=420)
        sub.add_argument("--seeds", type=int, nargs="+", default=[0])
        sub.add_argument("--patch", type=int, default=128)
        sub.add_argument("--spacing", type=float, default=1.5)
        sub.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
        sub.add_argument("--decoder", default="sum", choices=("sum", "concat"))
        sub.add_argument("--context", type=int, default=0)
        sub.add_argument("--batch", type=int, default=8)
        sub.add_argument("--no-region", dest="region", action="store_false")
        sub.add_argument("--mirror", action="store_true")
        sub.add_argument("--any-angle", type=float, default=0.2, help="share of patches turned by any angle")
        sub.add_argument("--fresh", action="store_true", help="second phase from random weights")
        sub.add_argument("--first-share", type=float, default=0.4)
        sub.add_argument("--pseudo", type=int, default=0, help="how many unlabelled cases, 0 for all")
        sub.add_argument("--pseudo-share", type=float, default=0.5, help="of a batch")
        sub.add_argument("--step-seconds", type=float, default=0, help="instead of measuring: on a machine others use")
        sub.add_argument("--splits", nargs="+", default=["validation", "test"])
        sub.add_argument("--accurate", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / "acdc.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if options.command == "table":
        table(rows)
        return
    torch.set_num_threads(1)
    for seed in options.seeds:
        key = {k: v for k, v in vars(options).items() if k not in NO_KEY} | {"seed": seed}
        if any(row["key"] == key for row in rows):
            continue
        plan, roles = plan_of(options), patients_of(Path(options.acdc))
        student, notes = trained(options, plan, roles, seed)
        row: dict[str, Any] = {"key": key, **notes}
        row |= on_splits(options, plan, roles, student)
        with results.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def table(rows: list[dict]) -> None:
    for row in rows:
        shown = " ".join(f"{k}={v}" for k, v in row["key"].items())
        figures = {split: [*np.nanmean(row[split], 0).round(3).tolist(), round(float(np.nanmean(row[split])), 4)]
                   for split in ("validation", "test") if split in row}  # fmt: skip
        print(shown, row["steps"], row["step_seconds"], figures)


if __name__ == "__main__":
    main()
