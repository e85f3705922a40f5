"""How many labels, and how much painting, for the same Dice.

    python benchmarks/label_efficiency.py QATA WORK ARM … --seeds 0 1

A simulated clinician labels QaTa-COV19 in rounds. 600 training images at 56 px with their captions, none labelled; 60
validation images, labelled, choose weights, α and the calibration of expected Dice; 300 test images. The first round is
20 random images outlined from nothing. Then a model is trained from scratch (the text side is pre-trained once on the
600 captions), the queue is ordered, and the next images are taken from its head. Of each the merged mask is offered
(the prediction alone in ``labelled``): where its Dice is 0.85 or more the clinician accepts it as it is, mistakes
included; else it is corrected to the expert's mask, and the pixels that differ count as edited.

An arm is MODE-ORDER: ``text`` or ``labelled``, and ``random``, ``worst``, ``disagreement`` or ``diverse``.

Predictions, written before the first run: (1) text-random needs at most 60 % of the labels of labelled-random for its
Dice at 160 labels; (2) no order differs from random by more than 2 points at equal labels, since images are many and
alike; (3) ``worst`` asks for more edited pixels per label than ``random``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from experts import accept_expert_masks

from amvlm.config import EncoderSettings, PretrainSettings, TrainSettings
from amvlm.exchange import import_study
from amvlm.imaging import canonical_mask, to_original
from amvlm.inference import Session, assess, evaluate
from amvlm.inference.evaluate import prompt_of
from amvlm.learning import pretrain, train
from amvlm.metrics import Overlap
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore, queue
from amvlm.store.runs import RunFolder

STRUCTURE = "pulmonary infection"
ROUNDS = (20, 40, 80, 160)
GOOD_ENOUGH = 0.85


def prepare(source: Path, work: Path) -> None:
    """The template study, and the text side learned from its captions alone."""
    template = work / "template"
    if template.exists():
        return
    subset = work / "subset"
    rng = np.random.default_rng(0)
    counts = {"Train_Folder": 660, "Val_Folder": 300}
    splits = {}
    for folder, count in counts.items():
        (subset / folder / "img").mkdir(parents=True)
        (subset / folder / "labelcol").mkdir()
        for table in (source / folder).glob("*.xlsx"):
            shutil.copy(table, subset / folder)
        names = sorted(path.name for path in (source / folder / "img").glob("sub-*"))
        chosen = sorted(names[int(i)] for i in rng.permutation(len(names))[:count])
        for number, name in enumerate(chosen):
            shutil.copy(source / folder / "img" / name, subset / folder / "img")
            shutil.copy(source / folder / "labelcol" / f"mask_{Path(name).stem}.png", subset / folder / "labelcol")
            if folder == "Train_Folder" and number % 11 == 0:
                splits[name] = "val"
    import_study(
        subset / "Train_Folder", template, structure=STRUCTURE, split="train", masks="reference", splits=splits
    )  # type: ignore[arg-type]
    import_study(subset / "Val_Folder", template, structure=STRUCTURE, split="test")
    store = LabelStore(template)
    accept_expert_masks(store, [case.case_id for case in store.cases("val")])
    settings = PretrainSettings(
        preset="tiny", steps=300, generator_steps=0, precision="bf16", encoders=EncoderSettings(image_size=56),
        css_weight=0, local_weight=0, icl_weight=0,
    )  # fmt: skip
    run = RunFolder.new(store.folder)
    with run:
        for _ in pretrain(store, settings, run, "base"):
            pass


def simulate(work: Path, arm: str, seed: int, given: argparse.Namespace) -> None:
    mode, _, order = arm.partition("-")
    folder = work / f"{arm}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "template", folder)
    store = LabelStore(folder)
    base = AmvlmModel.load(store.folder / "models" / "base")
    cases = [case.case_id for case in store.cases("train")]
    waiting = [cases[int(i)] for i in np.random.default_rng(seed).permutation(len(cases))]
    model, edited, accepted = None, 0, 0
    for labels in ROUNDS:
        have = len([r for r in store.snapshot().revisions if store.case(r.case_id).split == "train"])
        for case_id in waiting[: labels - have]:
            pixels, as_it_is = judge(store, model, case_id, "prediction" if mode == "labelled" else "merged")
            edited, accepted = edited + pixels, accepted + as_it_is
        settings = TrainSettings(
            steps=given.steps, batch_size=8, seed=seed, precision="bf16", threads=given.threads,
            validate_every=given.steps // 3, checkpoint_every=10**6,
            mode="labelled_only" if mode == "labelled" else "text_guided",
        )  # fmt: skip
        began, run = time.time(), RunFolder.new(store.folder)
        with run:
            for _ in train(store, base, settings, run, f"round-{labels}"):
                pass
        model = AmvlmModel.load(store.folder / "models" / f"round-{labels}")
        waiting = queue(assess(model, store), order, seed)  # type: ignore[arg-type]
        found = evaluate(model, store, "test").summaries()
        line = {
            "arm": arm, "seed": seed, "labels": labels, "edited": edited, "accepted as it is": accepted,
            "dice": found["prediction", STRUCTURE].mean_dice, "merged": found["merged", STRUCTURE].mean_dice,
            "seconds": round(time.time() - began),
        }  # fmt: skip
        with (work / "efficiency.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(line, flush=True)


def judge(store: LabelStore, model: AmvlmModel | None, case_id: str, kind: str) -> tuple[int, bool]:
    """What a clinician does with one case: pixels edited, and whether the offered mask was accepted as it is."""
    case = store.case(case_id)
    volume = store.read_image(case)
    truth = canonical_mask(store.masks.read(store.references()[case_id, STRUCTURE]).array, volume) > 0
    offered = np.zeros_like(truth)
    if model is not None:
        prompt = prompt_of(case, store.structures()[0], store.captions())
        offered = Session(model, volume).segment_volume(prompt)[kind] > 127
    good = Overlap.of(torch.from_numpy(offered), torch.from_numpy(np.ascontiguousarray(truth))).dice >= GOOD_ENOUGH
    kept = offered if good else truth
    pixels = 0 if good else int((offered != truth).sum())
    mask = np.ascontiguousarray(to_original(kept.astype(np.uint8), volume))
    store.accept(
        case_id, STRUCTURE, mask, edited_voxels=pixels, source="by hand" if model is None else "merged",
        model_fingerprint="" if model is None else model.fingerprint,
    )  # fmt: skip
    return pixels, bool(good)


def table(work: Path) -> None:
    lines = [json.loads(text) for text in (work / "efficiency.jsonl").read_text().splitlines()]
    lines = list({(x["arm"], x["seed"], x["labels"]): x for x in lines}.values())
    print(
        "| arm | seeds | " + " | ".join(f"{n} labels" for n in ROUNDS) + " | edited pixels by then | accepted as is |"
    )
    print("|---" * (len(ROUNDS) + 4) + "|")
    for arm in dict.fromkeys(x["arm"] for x in lines):
        own = [x for x in lines if x["arm"] == arm]
        seeds = sorted({x["seed"] for x in own})
        cells = []
        for labels in ROUNDS:
            found = [x["dice"] for x in own if x["labels"] == labels]
            cells.append(" ".join(f"{d:.3f}" for d in found))
        last = [x for x in own if x["labels"] == ROUNDS[-1]]
        edits = " ".join(f"{x['edited']:,}" for x in last)
        as_is = " ".join(str(x["accepted as it is"]) for x in last)
        print(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + f" | {edits} | {as_is} |")


def plot(work: Path, into: Path) -> None:
    """Dice against labels and against edited pixels, one line per arm (mean over seeds)."""
    from matplotlib import pyplot

    lines = [json.loads(text) for text in (work / "efficiency.jsonl").read_text().splitlines()]
    lines = list({(x["arm"], x["seed"], x["labels"]): x for x in lines}.values())
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for arm in dict.fromkeys(x["arm"] for x in lines):
        rounds = [[x for x in lines if x["arm"] == arm and x["labels"] == n] for n in ROUNDS]
        rounds = [found for found in rounds if found]
        dice = [float(np.mean([x["dice"] for x in found])) for found in rounds]
        style = {"marker": "o", "linestyle": "--" if arm.startswith("labelled") else "-", "label": arm}
        axes[0].plot([found[0]["labels"] for found in rounds], dice, **style)
        axes[1].plot([np.mean([x["edited"] for x in found]) / 1000 for found in rounds], dice, **style)
    axes[0].set(xlabel="labelled images", ylabel="Dice per image, student without text", xscale="log")
    axes[0].set_xticks(ROUNDS, [str(n) for n in ROUNDS])
    axes[0].minorticks_off()
    axes[1].set(xlabel="edited pixels, thousands")
    axes[0].legend(frameon=False, fontsize=8)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.3)
    figure.savefig(into, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="also draw the curves into this file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.source, given.work)
    for seed in given.seeds:
        for arm in given.arms:
            simulate(given.work, arm, seed, given)
    table(given.work)
    if given.plot:
        plot(given.work, given.plot)


if __name__ == "__main__":
    main()
