"""What the text is worth to a student that reads none: QaTa-COV19, arms by one recipe.

    python benchmarks/qata_students.py prepare QATA WORK      # after: python benchmarks/qata.py prepare QATA WORK
    python benchmarks/qata_students.py run WORK ARM[@PERCENT] … --seeds 0 1 2
    python benchmarks/qata_students.py table WORK

`Train_Folder` is the training set but for 300 of its `sub-*` images, which choose weights, α and the calibration of
expected Dice; of the rest PERCENT % keep their masks (10 by default), all keep their captions. Test: evenly chosen
images of `Val_Folder`, which choose nothing. The vision-language model is pre-trained once per seed without masks (300
steps of 32) and frozen; the text mask generator then learns from the labelled images (stage two of pre-training, 900
steps of 16) under the captions that its arm has, and is refined beside the student. Arms: ``labelled`` (labelled only),
``image`` (teacher-student without text), ``text`` (text-guided), ``shuffled`` (captions exchanged between classes in
training, true ones at test), ``second`` (a second network in the text mask's place that reads an empty caption), and
``labelled@100``, the ceiling without text. ``plan`` and ``phases`` train by ``--minutes`` with a plan of their own,
labelled only and as the plan says, on an untrained base: their students read no text. ``--seconds-per-megapixel`` is
the speed of the idle machine, where others use it; ``--coarser`` doubles the plan's spacing, for as many more steps.

Predictions, written before the first run: (1) text − image is 1 to 2 points of per-image Dice at 10 % and 4 or more at
1 %; (2) second − image is below 1 point at 10 %, and text − second above 1 at 1 %; (3) shuffled lies below image; (4)
image − labelled is below 1 point; (5) with the prompt read the merged mask lies 4 points or more above the student.
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
from experts import untrained_model
from scipy.stats import mannwhitneyu, spearmanr

from amvlm.config import Captions, EncoderSettings, PretrainSettings, TrainSettings
from amvlm.events import AnyEvent, Progress
from amvlm.exchange import import_study
from amvlm.imaging import canonical_mask
from amvlm.inference import Session
from amvlm.inference.evaluate import KINDS, prompt_of
from amvlm.learning import planned_opening, pretrain, train
from amvlm.metrics import Overlap, summarise
from amvlm.models import AmvlmModel
from amvlm.models.quality import judged_dice
from amvlm.planning import Fingerprint, Machine, Plan, make_plan
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

ARMS: dict[str, dict[str, Any]] = {
    "labelled": {"mode": "labelled_only"},
    "image": {"mode": "image_only"},
    "text": {"mode": "text_guided"},
    "shuffled": {"mode": "text_guided", "captions": "shuffled"},
    "second": {"mode": "text_guided", "captions": "empty"},
    "plan": {"mode": "labelled_only"},
    "phases": {},
}
BY_MINUTES = ("plan", "phases")
STRUCTURE = "pulmonary infection"


def prepare(source: Path, work: Path) -> None:
    """The study with all masks accepted, beside the ones of benchmarks/qata.py."""
    study = work / "qata-100"
    names = sorted(path.name for path in (source / "Train_Folder" / "img").glob("sub-*"))
    chosen = np.random.default_rng(0).permutation(len(names))[:300]
    held_out = {names[int(index)]: "val" for index in chosen}
    print(import_study(source / "Train_Folder", study, structure=STRUCTURE, split="train", splits=held_out).sentence())
    import_study(source / "Val_Folder", study, structure=STRUCTURE, split="test")


def text_side(work: Path, size: int, seed: int, threads: int) -> AmvlmModel:
    """The vision-language model, pre-trained without masks; made once per size and seed."""
    store, name = LabelStore(work / "qata-0"), f"text-{size}-{seed}"
    if not (store.folder / "models" / name).is_dir():
        settings = PretrainSettings(
            preset="tiny", steps=300, generator_steps=0, seed=seed, precision="bf16", threads=threads,
            encoders=EncoderSettings(image_size=size),
        )  # fmt: skip
        consume(pretrain(store, settings, RunFolder.new(store.folder), name))
    return AmvlmModel.load(store.folder / "models" / name)


def taught(work: Path, store: LabelStore, captions: Captions, seed: int, given: argparse.Namespace) -> AmvlmModel:
    """Stage two of pre-training: the text mask generator learns from this study's masks; made once per control."""
    base, name = text_side(work, given.size, seed, given.threads), f"taught-{given.size}-{captions}-{seed}"
    if not (store.folder / "models" / name).is_dir():
        settings = PretrainSettings(
            preset="tiny", steps=0, generator_steps=given.generator_steps, batch_size=16, seed=seed, precision="bf16",
            threads=given.threads, captions=captions, side_prompts=0.25 if captions == "true" else 0.0,
        )  # fmt: skip
        consume(pretrain(store, settings, RunFolder.new(store.folder), name, base=base))
    return AmvlmModel.load(store.folder / "models" / name)


def consume(events: Iterator[AnyEvent]) -> float:
    """Run a job; what share of the time its loop waited for data."""
    waiting = 0.0
    for event in events:
        if isinstance(event, Progress) and event.stage == "training":
            waiting = event.losses.get("waiting for data", 0.0)
    return waiting


def run(work: Path, arm: str, seed: int, given: argparse.Namespace) -> None:
    """Train one arm with one seed, measure it on test images, append a line."""
    kind, _, percent = arm.partition("@")
    store = LabelStore(work / f"qata-{percent or 10}")
    chosen: dict[str, Any] = ARMS[kind]
    if kind in BY_MINUTES:
        run_by_minutes(work, store, arm, kind, seed, given)
        return
    with_text = chosen["mode"] == "text_guided"
    base = (
        taught(work, store, chosen.get("captions", "true"), seed, given)
        if with_text
        else text_side(work, given.size, seed, given.threads)
    )
    settings = TrainSettings(
        steps=given.steps, batch_size=given.batch_size, seed=seed, precision="bf16", threads=given.threads,
        validate_every=given.steps // 4, checkpoint_every=10**6, unlabelled_weight=given.unlabelled_weight,
        targets=given.targets, **chosen,
    )  # fmt: skip
    name, began = f"student-{given.size}-{kind}-{seed}", time.time()
    shutil.rmtree(store.folder / "models" / name, ignore_errors=True)
    waiting = consume(train(store, base, settings, RunFolder.new(store.folder), name))
    seconds = time.time() - began
    model = AmvlmModel.load(store.folder / "models" / name)
    label = " ".join(filter(None, (arm, given.label)))
    line = {
        "arm": label, "seed": seed, "size": given.size, "steps": given.steps, "batch": given.batch_size,
        "labelled": model.card.labelled_cases, "seconds": round(seconds), "waiting for data": waiting,
        "text weight": model.card.structures[0].text_weight, "validation": model.card.validation,
        "found": measure(model, store, given.limit),
    }  # fmt: skip
    with (work / f"students-{given.size}.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(label, seed, round(seconds), "s", _short(line["found"]), flush=True)


def run_by_minutes(
    work: Path, store: LabelStore, arm: str, kind: str, seed: int, given: argparse.Namespace
) -> None:
    """A plan's student; the text mask gets its fewest steps."""
    torch.manual_seed(seed)
    base = untrained_model()
    machine = Machine(seconds_per_megapixel=given.seconds_per_megapixel)
    planned_opening.measured_machine = lambda *_: machine
    planned_opening.text_steps = lambda *_: 20
    if given.coarser:
        planned_opening.make_plan = coarser_plan
    settings = TrainSettings(
        minutes=given.minutes, seed=seed, precision="fp32", threads=1, checkpoint_every=10**6, **ARMS[kind]
    )
    label = " ".join(filter(None, (arm, "coarser" if given.coarser else "", given.label)))
    name, began = f"{kind}-{given.minutes:g}-{given.coarser}-{seed}", time.process_time()
    shutil.rmtree(store.folder / "models" / name, ignore_errors=True)
    consume(train(store, base, settings, RunFolder.new(store.folder), name))
    cpu_seconds = time.process_time() - began
    model = AmvlmModel.load(store.folder / "models" / name)
    assert model.plan is not None
    found = measure(model, store, given.limit)
    line = {
        "arm": label, "seed": seed, "minutes": given.minutes, "plan": model.plan.sentence(),
        "widths": model.plan.widths, "recipe": model.plan.recipe, "labelled": model.card.labelled_cases,
        "cpu_seconds": round(cpu_seconds), "found": found["prediction"],
    }  # fmt: skip
    with (work / "planned-students.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(line, flush=True)


def coarser_plan(facts: Fingerprint) -> Plan:
    """The plan of four times the minutes on a grid twice as coarse, which costs as much."""
    plan = make_plan(facts.model_copy(update={"minutes": 4 * facts.minutes}))
    rows, columns = (side // 2 for side in plan.patch[1:])
    spacing = (0.0, 2 * plan.spacing_mm[1], 2 * plan.spacing_mm[2])
    changes = {"patch": (1, rows, columns), "spacing_mm": spacing, "minutes": facts.minutes}
    return plan.model_copy(update=changes)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    short = {kind: round(found[kind]["mean"], 4) for kind in KINDS}
    return short | {"quality": {what: round(value, 3) for what, value in found.get("quality", {}).items()}}


def measure(model: AmvlmModel, store: LabelStore, limit: int) -> dict[str, Any]:
    """Dice per image and pooled and mIoU of the three masks, and how well expected Dice foretells true Dice."""
    torch.set_num_threads(1)
    cases, references, captions = store.cases("test"), store.references(), store.captions()
    cases = [cases[int(place)] for place in np.unique(np.linspace(0, len(cases) - 1, limit).round().astype(int))]
    structure = store.structures()[0]
    known = model.card.structures[0].expected_dice
    overlaps: dict[str, list[Overlap]] = {kind: [] for kind in KINDS}
    expected, true = [], []
    revisions = {r.case_id: r for r in store.snapshot().revisions}
    for case in cases:
        session, prompt = Session(model, store.read_image(case)), prompt_of(case, structure, captions)
        masks = session.segment_volume(prompt)
        key = (case.case_id, structure.name)
        mask = store.masks.read(references[key]).array if key in references else store.read_mask(revisions[key[0]])
        truth = torch.from_numpy(np.ascontiguousarray(canonical_mask(mask, session.volume))) > 0
        for kind in KINDS:
            overlaps[kind].append(Overlap.of(torch.from_numpy(masks[kind] > 127), truth))
        signs = session.signs(prompt)
        if known is not None and signs is not None:
            expected.append(known.of(signs))
            true.append(judged_dice(torch.from_numpy(masks["merged"] > 127), truth))
    summaries = {kind: summarise(found) for kind, found in overlaps.items()}
    found: dict[str, Any] = {
        kind: {"mean": s.mean_dice, "pooled": s.pooled_dice, "iou": s.mean_iou, "cases": s.cases - s.empty_truths}
        for kind, s in summaries.items()
    }
    found["dice"] = {kind: [round(o.dice, 4) for o in found_] for kind, found_ in overlaps.items()}
    if expected:
        found["quality"] = {
            "spearman": float(spearmanr(expected, true).statistic),
            "auroc below 0.7": auroc([-e for e in expected], [t < 0.7 for t in true]),
            "mean error": mean(e - t for e, t in zip(expected, true, strict=True)),
            "mean absolute error": mean(abs(e - t) for e, t in zip(expected, true, strict=True)),
        }
    return found


def auroc(score: list[float], positive: list[bool]) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney); ties count half."""
    first = [s for s, p in zip(score, positive, strict=True) if p]
    second = [s for s, p in zip(score, positive, strict=True) if not p]
    return float(mannwhitneyu(first, second).statistic / (len(first) * len(second))) if first and second else 0.5


def bootstrap(first: list[list[float]], second: list[list[float]], rounds: int = 5000) -> tuple[float, float, float]:
    """Mean difference of per-image Dice (means over seeds first) and its 95 % interval, paired over images."""
    difference = np.nanmean(np.array(first), 0) - np.nanmean(np.array(second), 0)
    rng = np.random.default_rng(0)
    means = [np.nanmean(difference[rng.integers(len(difference), size=len(difference))]) for _ in range(rounds)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.nanmean(difference)), float(low), float(high)


def table(work: Path, size: int) -> Iterator[str]:
    """Mean ± s.d. over seeds, and paired differences, as Markdown."""
    found = [json.loads(text) for text in (work / f"students-{size}.jsonl").read_text().splitlines()]
    lines = list({(line["arm"], line["seed"]): line for line in found}.values())
    arms = {arm: [line for line in lines if line["arm"] == arm] for arm in dict.fromkeys(line["arm"] for line in lines)}
    yield "| arm | seeds | labelled | steps | student, text-free: Dice | pooled | mIoU | text mask | merged | α |"
    yield "|---" * 10 + "|"
    for arm, own in arms.items():
        cells = [
            _cell(line["found"][kind][what] for line in own)
            for kind, what in (
                ("prediction", "mean"), ("prediction", "pooled"), ("prediction", "iou"), ("text mask", "mean"),
                ("merged", "mean"),
            )
        ]  # fmt: skip
        yield (
            f"| {arm} | {len(own)} | {own[0]['labelled']} | {own[0]['steps']} | "
            + " | ".join(cells)
            + (f" | {' '.join(str(line['text weight']) for line in own)} |")
        )
    yield ""
    yield "| difference of text-free students | seeds | Dice per image | 95 % interval over images |"
    yield "|---" * 4 + "|"
    for first, second in (
        ("image", "labelled"), ("text", "image"), ("text", "second"), ("second", "image"), ("shuffled", "image"),
        ("text", "shuffled"),
    ):  # fmt: skip
        for percent in ("", "@1"):
            pair = [
                {line["seed"]: line["found"]["dice"]["prediction"] for line in arms.get(a + percent, [])}
                for a in (first, second)
            ]
            seeds = sorted(pair[0].keys() & pair[1].keys())
            if seeds:
                value, low, high = bootstrap([pair[0][s] for s in seeds], [pair[1][s] for s in seeds])
                yield f"| {first} − {second} {percent} | {len(seeds)} | {value:+.3f} | {low:+.3f} … {high:+.3f} |"
    yield ""
    yield "| arm | expected Dice: Spearman | AUROC below 0.7 | mean error | mean absolute error |"
    yield "|---" * 5 + "|"
    for arm, own in arms.items():
        quality = [line["found"]["quality"] for line in own if "quality" in line["found"]]
        if quality:
            cells = [_cell(q[what] for q in quality) for what in quality[0]]
            yield f"| {arm} | " + " | ".join(cells) + " |"


def _cell(values: Any) -> str:
    found = list(values)
    return f"{mean(found):.3f}" + (f" ± {stdev(found):.3f}" if len(found) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("source", type=Path)
    first.add_argument("work", type=Path)
    second = commands.add_parser("run")
    second.add_argument("work", type=Path)
    second.add_argument("arms", nargs="+")
    second.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    second.add_argument("--steps", type=int, default=1200)
    second.add_argument("--batch-size", type=int, default=8)
    second.add_argument("--limit", type=int, default=500)
    second.add_argument("--threads", type=int, default=0)
    second.add_argument("--size", type=int, default=112, help="side of the network's input, px")
    second.add_argument("--generator-steps", type=int, default=900)
    second.add_argument("--unlabelled-weight", type=float, default=1.0)
    second.add_argument("--targets", choices=["merged", "three"], default="merged")
    second.add_argument("--minutes", type=float, default=10, help="for the arms plan and phases")
    second.add_argument("--seconds-per-megapixel", type=float, default=3.75)
    second.add_argument("--coarser", action="store_true")
    second.add_argument("--label", default="", help="added to the arm's name in the results")
    third = commands.add_parser("table")
    third.add_argument("work", type=Path)
    third.add_argument("--size", type=int, default=112)
    given = parser.parse_args()
    os.environ["AMVLM_CACHE"] = str(given.work / "cache")  # shared by all studies
    if given.command == "prepare":
        prepare(given.source, given.work)
    elif given.command == "run":
        for seed in given.seeds:
            for arm in given.arms:
                run(given.work, arm, seed, given)
    else:
        print("\n".join(table(given.work, given.size)))


if __name__ == "__main__":
    main()
