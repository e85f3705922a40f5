"""Does the vision-language model matter to the text mask, and the text to a student that reads none?

    python benchmarks/model_matters.py base WORK SEED               # after: python benchmarks/qata.py prepare QATA WORK
    python benchmarks/model_matters.py run WORK PERCENT SEED ARM …
    python benchmarks/model_matters.py table WORK

QaTa-COV19 at 112 px, PERCENT % of the training masks, all captions; 300 `sub-*` images choose, evenly chosen images of
`Val_Folder` test. `base` aligns images and captions on locked towers (EfficientNet-Lite0, MiniLM); `run` trains by
*steps*, in fp32 on one thread, whatever the minutes. Arms: ``labelled`` (expert masks alone), ``phases`` (the first
network's answer on all other images, hard), ``two_stage`` (soft masks of a text network), ``empty`` (the same network
under empty captions: a second network without text) and ``shuffled`` (captions exchanged between classes in training);
``blind`` is ``two_stage`` whose text network reads nothing of the vision-language model. All arms make as many student
steps. The text network of an arm is then measured as it is, with the vision-language model's image side destroyed
(noise of the same spread in every tensor of the image encoder and the patch head), with the similarity map zeroed, and
with the test captions exchanged between classes.

Predictions, written before the first run: (1) destroying the image side costs the text mask less than 2 points, since
the U-Net sees the image itself; (2) the zeroed similarity map costs less than that; (3) exchanged captions cost more
than 10 points; (4) at 1 % two_stage lies 3 points or more above labelled, and above empty by less than 2; (5) at 10 %
no arm lies 1 point above phases.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amvlm.config import PretrainSettings, TrainSettings
from amvlm.events import Note, Progress
from amvlm.imaging import canonical_mask
from amvlm.inference import Session
from amvlm.inference.evaluate import prompt_of
from amvlm.learning import planned_opening, pretrain, train
from amvlm.metrics import Overlap, summarise
from amvlm.models import AmvlmModel
from amvlm.planning import Fingerprint, Plan, make_plan
from amvlm.store import Case, LabelStore
from amvlm.store.records import Split
from amvlm.store.runs import RunFolder
from amvlm.text import class_derangement

BLIND = {"text_mask": {"patch_features": False, "similarity": False}}
ARMS: dict[str, dict[str, Any]] = {
    "labelled": {"mode": "labelled_only"},
    "phases": {},
    "two_stage": {"mode": "two_stage"},
    "empty": {"mode": "two_stage", "captions": "empty"},
    "shuffled": {"mode": "two_stage", "captions": "shuffled"},
    "blind": {"mode": "two_stage", **BLIND},
}
CHANGES = ("as it is", "image side destroyed", "similarity zeroed", "captions exchanged")
ABLATED = ("two_stage",)


class Some(LabelStore):
    """A study with fewer training and choosing images, for a quick look: every judged one, others evenly chosen."""

    most = 0

    def cases(self, split: Split | None = None) -> list[Case]:
        found = super().cases(split)
        if not self.most:
            return found
        judged = {revision.case_id for revision in self.snapshot().revisions}
        kept = {case.case_id for case in found if case.split == "test"}
        for name, count in (("train", self.most), ("val", self.most // 10)):
            own = [case.case_id for case in found if case.split == name]
            kept |= {own[place] for place in np.linspace(0, len(own) - 1, min(count, len(own))).astype(int)}
            kept |= {case_id for case_id in own if case_id in judged and name == "train"}
        return [case for case in found if case.case_id in kept]


def base(work: Path, seed: int, given: argparse.Namespace) -> None:
    """The vision-language model, without any mask."""
    store = Some(work / "qata-0")
    settings = PretrainSettings(
        preset="locked", steps=given.steps, generator_steps=0, seed=seed, precision="fp32", threads=1, device="cpu",
        patience=10**6, validate_every=given.steps // 6,
    )  # fmt: skip
    for event in pretrain(store, settings, RunFolder.new(store.folder), f"locked-{seed}"):
        if isinstance(event, Note) or (isinstance(event, Progress) and "validation" in event.losses):
            print(round(time.process_time()), "CPU s:", event, flush=True)


def plan_of(facts: Fingerprint, steps: int) -> Plan:
    """The study's plan on a grid of 112 px, of so many steps."""
    plan = make_plan(facts)
    factor = max(facts.shape[1:]) / 112
    spacing = (0.0, *(factor * side for side in plan.spacing_mm[1:]))
    changes = {
        "spacing_mm": spacing, "patch": (1, 112, 112), "widths": (16, 32, 64, 128), "batch_size": 16, "steps": steps,
        "recipe": "two_phase",
    }  # fmt: skip
    return plan.model_copy(update=changes)


def run(work: Path, percent: int, seed: int, arm: str, given: argparse.Namespace) -> None:
    """Train one arm, measure it, append a line."""
    store, name = Some(work / f"qata-{percent}"), f"matters-{arm}-{seed}"
    planned_opening.make_plan = lambda facts: plan_of(facts, given.steps)
    planned_opening.text_steps = lambda *_: given.text_steps
    settings = TrainSettings(
        minutes=1, seed=seed, batch_size=16, precision="fp32", threads=1, device="cpu", checkpoint_every=10**6,
        **ARMS[arm],
    )  # fmt: skip
    vlm = AmvlmModel.load(work / "qata-0" / "models" / f"locked-{seed}")
    began = time.process_time()
    for event in train(store, vlm, settings, RunFolder.new(store.folder), name):
        if isinstance(event, Note):
            print(event.text, flush=True)
    trained = time.process_time() - began
    model = AmvlmModel.load(store.folder / "models" / name)
    found = {kind: measure(model, store, given.limit, kind) for kind in (CHANGES if arm in ABLATED else CHANGES[:1])}
    line = {
        "arm": arm, "percent": percent, "seed": seed, "steps": given.steps, "text steps": given.text_steps,
        "labelled": model.card.labelled_cases, "cpu_seconds": round(trained), "found": found,
    }  # fmt: skip
    with (work / "matters.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    short = {change: {kind: round(s["mean"], 4) for kind, s in own.items()} for change, own in found.items()}
    print(arm, percent, seed, round(trained), "CPU s", short, flush=True)


def changed(model: AmvlmModel, change: str) -> AmvlmModel:
    """The model with a part taken away."""
    if change == "image side destroyed":
        chance = torch.Generator().manual_seed(0)
        for part in (model.vlm.image_encoder, model.vlm.patch_head):
            for tensor in part.state_dict().values():
                if tensor.is_floating_point() and tensor.numel() > 1:
                    noise = tensor.mean() + tensor.std() * torch.randn(tensor.shape, generator=chance)
                    tensor.copy_(noise.abs() if bool((tensor >= 0).all()) else noise)
    if change == "similarity zeroed":
        model.generator.scale = Nothing()
    return model


class Nothing(nn.Module):
    def forward(self, similarity: Tensor) -> Tensor:
        return torch.zeros_like(similarity)


def measure(model: AmvlmModel, store: LabelStore, limit: int, change: str) -> dict[str, Any]:
    """Dice per image of the text mask and of the prediction, which reads no text."""
    folder = store.folder / "models" / model.card.name
    model = changed(AmvlmModel.load(folder), change)
    cases, references, captions = store.cases("test"), store.references(), store.captions()
    cases = [cases[int(place)] for place in np.unique(np.linspace(0, len(cases) - 1, limit).round().astype(int))]
    structure, overlaps = store.structures()[0], {"text mask": [], "prediction": []}
    prompts = {case.case_id: prompt_of(case, structure, captions) for case in cases}
    if change == "captions exchanged":
        swap = class_derangement(list(prompts.values()), 0)
        prompts = {case_id: swap[prompt] for case_id, prompt in prompts.items()}
    for case in cases:
        session = Session(model, store.read_image(case))
        masks = session.segment_volume(prompts[case.case_id])
        mask = store.masks.read(references[case.case_id, structure.name]).array
        truth = torch.from_numpy(np.ascontiguousarray(canonical_mask(mask, session.volume))) > 0
        for kind, found in overlaps.items():
            found.append(Overlap.of(torch.from_numpy(masks[kind] > 127), truth))
    summaries = {kind: summarise(found) for kind, found in overlaps.items()}
    return {
        kind: {"mean": s.mean_dice, "pooled": s.pooled_dice, "dice": [round(o.dice, 4) for o in overlaps[kind]]}
        for kind, s in summaries.items()
    }


def table(work: Path) -> Iterator[str]:
    """Mean ± s.d. over seeds, as Markdown."""
    lines = [json.loads(text) for text in (work / "matters.jsonl").read_text().splitlines()]
    yield "| masks | arm | seeds | student, text-free | " + " | ".join(f"text mask, {name}" for name in CHANGES) + " |"
    yield "|---" * (4 + len(CHANGES)) + "|"
    for percent, arm in dict.fromkeys((line["percent"], line["arm"]) for line in lines):
        own = {ln["seed"]: ln["found"] for ln in lines if (ln["percent"], ln["arm"]) == (percent, arm)}
        cells = [_cell([found["as it is"]["prediction"]["mean"] for found in own.values()])]
        for change in CHANGES:
            cells.append(_cell([found[change]["text mask"]["mean"] for found in own.values() if change in found]))
        yield f"| {percent} % | {arm} | {len(own)} | " + " | ".join(cells) + " |"


def _cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("base")
    second = commands.add_parser("run")
    third = commands.add_parser("table")
    for command in (first, second, third):
        command.add_argument("work", type=Path)
    second.add_argument("percent", type=int)
    for command in (first, second):
        command.add_argument("seed", type=int)
    first.add_argument("--steps", type=int, default=1500)
    second.add_argument("arms", nargs="+", choices=list(ARMS))
    second.add_argument("--steps", type=int, default=1000)
    second.add_argument("--text-steps", type=int, default=600)
    second.add_argument("--limit", type=int, default=150)
    for command in (first, second):
        command.add_argument("--cases", type=int, default=0, help="fewer training images, for a quick look")
    given = parser.parse_args()
    Some.most = getattr(given, "cases", 0)
    os.environ.setdefault("AMVLM_CACHE", str(given.work / "cache"))
    if given.command == "base":
        base(given.work, given.seed, given)
    elif given.command == "run":
        for arm in given.arms:
            run(given.work, given.percent, given.seed, arm, given)
    else:
        print("\n".join(table(given.work)))


if __name__ == "__main__":
    main()
