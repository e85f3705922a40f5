"""QaTa-COV19 at 224 px and ACDC on a GPU, in parts of some minutes. Neither napari nor SimpleITK is needed.

    python benchmarks/qata.py prepare QATA WORK
    python benchmarks/gpu_protocol.py part WORK --minutes 9 --encoder-weights lite0.safetensors
    python benchmarks/gpu_protocol.py table WORK
    python benchmarks/gpu_acdc.py part ACDC WORK --minutes 9       # the same way, 3, 7 and all patients
    python benchmarks/gpu_acdc.py table WORK

QaTa: two students, three modes, three shares of the masks.

`part` is run again until it prints "all done". It goes on where the one before was cut off, at the newest checkpoint of
whatever was running, and leaves each model that it finished as fp16 pieces of at most 16 MiB in WORK/pieces/NAME.
Joined, they are a model folder again:

    cat model.safetensors.* > model.safetensors
    amvlm evaluate FOLDER_IN_LVIT_LAYOUT --model WORK/pieces/NAME

Students: ``paper``, a U-Net of 64 to 512 channels, and ``lite0``, efficientnet-lite0 with ImageNet weights (their file:
docs/training.md). Weights, α and calibration are chosen on 300 images of `Train_Folder`; `Val_Folder` only measures.

Predictions, written before the first run: (1) text-guided − image-only, text-free, is below 1 point at 25 and 10 % and
1 to 3 points at 1 %; (2) lite0 is above paper by 1 point or more at 10 and 1 %; (3) with the prompt read the merged
mask lies 3 points or more above the student at 10 and 1 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from amvlm.config import EncoderSettings, PretrainSettings, StudentSettings, TrainSettings
from amvlm.events import AnyEvent, Note, Progress, Validation
from amvlm.inference import evaluate
from amvlm.learning import pretrain, train
from amvlm.learning.checkpoint import checkpoints
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

PERCENTS = (25, 10, 1)
MODES = ("text_guided", "image_only", "labelled_only")
STUDENTS: dict[str, StudentSettings] = {
    "paper": StudentSettings(network="basic_unet", channels=(64, 64, 128, 256, 512)),
    "lite0": StudentSettings(network="efficientnet-lite0"),
}
PIECE = 16 * 2**20


class OutOfTimeError(Exception):
    """The part ends here; the next one goes on from the newest checkpoint."""


class Protocol:
    """The plan of one seed: align once, teach a generator per share of the masks, then train and measure."""

    def __init__(self, work: Path, seed: int, given: argparse.Namespace) -> None:
        self.work, self.seed, self.given = work, seed, given
        self.end = time.monotonic() + 60 * given.minutes

    def run(self) -> None:
        """Do what is missing, in order; raises OutOfTimeError."""
        for percent in self.given.percents:
            for student in self.given.students:
                for mode in MODES:
                    self.measure(percent, student, mode)

    def measure(self, percent: int, student: str, mode: str) -> None:
        name = f"gpu-{percent}-{student}-{mode}-{self.seed}"
        results = self.work / "gpu_protocol.jsonl"
        if results.exists() and any(json.loads(line)["name"] == name for line in results.open()):
            return
        store = LabelStore(self.work / f"qata-{percent}")
        model = self.student(store, name, student, mode)
        began = time.monotonic()
        found = evaluate(model, store, "test", limit=self.given.limit).summaries()
        line = {
            "name": name, "percent": percent, "student": student, "mode": mode, "seed": self.seed,
            "labelled": model.card.labelled_cases, "steps": self.given.steps, "batch": self.given.batch_size,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
            "validation": model.card.validation, "text weight": model.card.structures[0].text_weight,
            "found": {
                kind: {"mean": s.mean_dice, "pooled": s.pooled_dice, "iou": s.mean_iou}
                for (kind, _), s in found.items()
            },
        }  # fmt: skip
        pieces(store.folder / "models" / name, self.work / "pieces" / name)
        with results.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        dices = ", ".join(f"{kind} {figures['mean']:.4f}" for kind, figures in line["found"].items())
        print(f"{name}: measured in {time.monotonic() - began:.0f} s: {dices}", flush=True)

    def student(self, store: LabelStore, name: str, student: str, mode: str) -> AmvlmModel:
        weights = self.given.encoder_weights if student == "lite0" else ""
        settings = TrainSettings(
            steps=self.given.steps, batch_size=self.given.batch_size, seed=self.seed, mode=mode,  # type: ignore[arg-type]
            validate_every=max(1, self.given.steps // 8), checkpoint_every=self.given.checkpoint_every,
            student=STUDENTS[student].model_copy(update={"encoder_weights": weights}),
        )  # fmt: skip
        return self.finished(
            store, name, lambda run, resume: train(store, self.generator(store), settings, run, name, resume)
        )

    def generator(self, store: LabelStore) -> AmvlmModel:
        name = f"gpu-taught-{self.seed}"
        settings = self.pretraining(steps=0, generator_steps=self.given.generator_steps, batch_size=16)
        return self.finished(
            store, name, lambda run, resume: pretrain(store, settings, run, name, resume, self.text_side())
        )

    def text_side(self) -> AmvlmModel:
        store, name = LabelStore(self.work / "qata-0"), f"gpu-text-{self.seed}"
        settings = self.pretraining(steps=self.given.align_steps, generator_steps=0)
        return self.finished(store, name, lambda run, resume: pretrain(store, settings, run, name, resume))

    def pretraining(self, **more: Any) -> PretrainSettings:
        encoders = EncoderSettings(
            image_size=self.given.size, image_encoder=self.given.image_encoder, text_encoder=self.given.text_encoder
        )
        settings = {"seed": self.seed, "encoders": encoders, "checkpoint_every": self.given.checkpoint_every}
        return PretrainSettings(preset="tiny", **{**settings, **more})

    def finished(self, store: LabelStore, name: str, job: Any) -> AmvlmModel:
        """The model of a job, which is begun, gone on with, or long since done."""
        folder = store.folder / "models" / name
        if not folder.is_dir():
            run = RunFolder(store.folder / "runs" / name)
            resume = bool(checkpoints(run.path))
            with run:
                self.follow(name, job(run, resume))
            shutil.rmtree(run.path)
        return AmvlmModel.load(folder)

    def follow(self, name: str, events: Iterator[AnyEvent]) -> None:
        """Print what happens, a line every ten seconds or so."""
        spoken = 0.0
        for event in events:
            if isinstance(event, Note):
                print(f"{name}: {event.text}", flush=True)
            elif isinstance(event, Validation):
                dices = {"student": event.student, "text mask": event.text_mask, "merged": event.merged}
                known = ", ".join(f"{kind} {dice}" for kind, dice in dices.items() if dice)
                print(f"{name}: step {event.step}, validation {known or 'without masks'}", flush=True)
            elif isinstance(event, Progress) and time.monotonic() - spoken > 10:
                spoken = time.monotonic()
                losses = " ".join(f"{term} {value:.3f}" for term, value in event.losses.items())
                print(f"{name}: {event.stage} {event.step}/{event.steps} {losses}", flush=True)
            if time.monotonic() > self.end:
                raise OutOfTimeError


def pieces(model: Path, into: Path) -> None:
    """The model folder with weights in fp16, cut into pieces of at most 16 MiB."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for file in ("config.json", "card.json", "tokenizer.json"):
        shutil.copy(model / file, into)
    weights = load_file(model / "model.safetensors")
    half = save({name: t.half() if t.dtype == torch.float32 else t for name, t in weights.items()})
    for number, start in enumerate(range(0, len(half), PIECE)):
        (into / f"model.safetensors.{number:02d}").write_bytes(half[start : start + PIECE])


def table(work: Path) -> None:
    lines = [json.loads(text) for text in (work / "gpu_protocol.jsonl").read_text().splitlines()]
    print("| masks | student | mode | seeds | text-free: Dice | pooled | mIoU | text mask | merged |")
    print("|---" * 9 + "|")
    for key in dict.fromkeys((x["percent"], x["student"], x["mode"]) for x in lines):
        own = [x for x in lines if (x["percent"], x["student"], x["mode"]) == key]
        cells = [
            " ".join(f"{x['found'][kind][what]:.3f}" for x in own)
            for kind, what in (
                ("prediction", "mean"), ("prediction", "pooled"), ("prediction", "iou"), ("text mask", "mean"),
                ("merged", "mean"),
            )
        ]  # fmt: skip
        print(f"| {key[0]} % | {key[1]} | {key[2]} | {len(own)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("part")
    first.add_argument("work", type=Path)
    first.add_argument("--minutes", type=float, default=9, help="when this part leaves off")
    first.add_argument("--seeds", type=int, nargs="+", default=[0])
    first.add_argument("--percents", type=int, nargs="+", choices=PERCENTS, default=PERCENTS)
    first.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    first.add_argument("--encoder-weights", default="", help="of lite0: a .safetensors file")
    first.add_argument("--image-encoder", default="tiny", help="tiny, small, paper, a hub id or a folder")
    first.add_argument("--text-encoder", default="tiny", help="tiny, small, paper, a hub id or a folder")
    first.add_argument("--size", type=int, default=224, help="side of the network's input, px")
    first.add_argument("--align-steps", type=int, default=2000)
    first.add_argument("--generator-steps", type=int, default=2000)
    first.add_argument("--steps", type=int, default=8000)
    first.add_argument("--batch-size", type=int, default=16, help="labelled images of a batch, and unlabelled ones")
    first.add_argument("--checkpoint-every", type=int, default=200)
    first.add_argument("--limit", type=int, default=0, help="evenly chosen test images, 0 for all")
    second = commands.add_parser("table")
    second.add_argument("work", type=Path)
    given = parser.parse_args()
    if given.command == "table":
        table(given.work)
        return
    try:
        for seed in given.seeds:
            Protocol(given.work, seed, given).run()
        print("all done")
    except OutOfTimeError:
        print("time is up; the same command goes on from here")


if __name__ == "__main__":
    main()
