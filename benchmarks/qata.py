"""The vision-language model on QaTa-COV19, part by part and with its controls.

    python benchmarks/qata.py prepare QATA WORK       # QATA holds Train_Folder and Val_Folder (LViT layout)
    python benchmarks/qata.py run WORK ARM [ARM …] --seeds 0 1 2
    python benchmarks/qata.py table WORK

`Train_Folder` is the training set, but for 300 of its `sub-*` images, which choose weights; `Val_Folder` is the test
set and chooses nothing. Arms: ``ita``, ``css`` (ita and L_css, L_pdt, L_local), ``all`` (and L_icl) and what differs
from ``all`` in one setting: ``sigmoid``, ``exp_paper``, ``diagonal``, ``fulltext`` (the text encoder learns as fast as
the image encoder), ``shuffled``. ``ARM+tg`` teaches ``frozen_linear`` by L_tg without any mask; ``ARM+film@P`` and
``ARM+linear@P`` teach a generator with P % of the masks; ``empty+film@P`` does so with empty captions, and
``…-nosides`` without one-sided prompts. Every run is one line in WORK/results.jsonl.

Predictions, written before the first run: (1) at 1 and 10 % of the masks true captions beat shuffled ones by 10 points
of text-mask Dice or more, and empty ones by less, since a caption's zones say where but not how far; (2) each further
part moves retrieval and zero-shot Dice by less than the spread of three seeds; (3) `diagonal` retrieves worse than
`multi_positive`, because a third of the images share one caption; (4) without masks Dice stays below the zone atlas
(0.42), which needs masks.
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

from amvlm.config import GeneratorSettings, PretrainSettings
from amvlm.events import Progress
from amvlm.exchange import import_study
from amvlm.inference import evaluate_vlm
from amvlm.learning import pretrain
from amvlm.models import AmvlmModel
from amvlm.store import Case, LabelStore
from amvlm.store.records import Split
from amvlm.store.runs import RunFolder

OFF = {"css_weight": 0.0, "pdt_weight": 0.0, "local_weight": 0.0, "icl_weight": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "ita": OFF,
    "css": {"icl_weight": 0.0},
    "all": {},
    "sigmoid": {"uncertainty": "sigmoid"},
    "exp_paper": {"uncertainty": "exp_paper"},
    "diagonal": {"positives": "diagonal"},
    "fulltext": {"text_learning_rate_share": 1.0},
    "shuffled": {"captions": "shuffled"},
}
FRACTIONS = (0, 1, 10, 25)
STRUCTURE = "pulmonary infection"


def prepare(source: Path, work: Path) -> None:
    """One study per share of labelled training masks; all share one cache of slices."""
    names = sorted(path.name for path in (source / "Train_Folder" / "img").glob("sub-*"))
    chosen = np.random.default_rng(0).permutation(len(names))[:300]
    held_out = {names[int(index)]: "val" for index in chosen}
    for percent in FRACTIONS:
        study = work / f"qata-{percent}"
        if study.exists():
            continue
        report = import_study(
            source / "Train_Folder", study, structure=STRUCTURE, split="train", splits=held_out,
            accept_fraction=percent / 100,
        )  # fmt: skip
        print(percent, "%:", report.sentence(), flush=True)
        import_study(source / "Val_Folder", study, structure=STRUCTURE, split="test")


class Untouched(LabelStore):
    """The study without the test images that `run` measures on by default: what no choice was made by."""

    def cases(self, split: Split | None = None) -> list[Case]:
        found = super().cases(split)
        if split != "test":
            return found
        seen = set(np.linspace(0, len(found) - 1, 300).astype(int).tolist())
        return [case for index, case in enumerate(found) if index not in seen]


def run(
    work: Path, arm: str, seed: int, steps: int, generator_steps: int, limit: int, threads: int, measure: bool,
    untouched: bool,
) -> None:  # fmt: skip
    """One arm with one seed: train, measure on the test set, append a line; ``measure`` keeps a model that is there."""
    align, _, teach = arm.partition("+")
    plain, sides = teach.removesuffix("-nosides"), not teach.endswith("-nosides")
    kind, _, percent = plain.partition("@")
    store = LabelStore(work / f"qata-{percent or 0}")
    common = {"seed": seed, "precision": "bf16", "threads": threads}
    began = time.time()
    captions = "empty" if align == "empty" else ARMS[align].get("captions", "true")
    if not teach:
        settings = PretrainSettings(preset="tiny", steps=steps, generator_steps=0, **common, **ARMS[align])
        base = None
    else:
        form = GeneratorSettings(form="film_unet" if kind == "film" else "frozen_linear")
        settings = PretrainSettings(
            preset="tiny", steps=0, generator_steps=generator_steps, generator=form, captions=captions, batch_size=16,
            side_prompts=0.25 if sides and captions == "true" else 0.0, **common,
        )  # fmt: skip
        base = AmvlmModel.load(work / "qata-0" / "models" / f"{'all' if align == 'empty' else align}-{seed}")
    notes: dict[str, float] = {}
    there = (store.folder / "models" / f"{arm}-{seed}").is_dir()
    if not (measure and there):
        folder = RunFolder.new(store.folder)
        with folder:
            for event in pretrain(store, settings, folder, f"{arm}-{seed}", base=base):
                if isinstance(event, Progress):
                    notes |= event.losses
    trained = time.time() - began
    model = AmvlmModel.load(store.folder / "models" / f"{arm}-{seed}")
    if untouched:
        store = Untouched(store.folder)
    found = evaluate_vlm(model, store, "test", limit=limit, captions="empty" if align == "empty" else "true")
    line = {
        "arm": arm, "seed": seed, "steps": settings.steps or generator_steps, "limit": limit,
        "labelled": model.card.labelled_cases, "seconds": round(trained), "last": notes, "found": found.as_json(),
    }  # fmt: skip
    if captions == "true" and teach and align == "all":
        line["shuffled at test"] = evaluate_vlm(model, store, "test", limit=limit, captions="shuffled").as_json()
    with (work / ("untouched.jsonl" if untouched else "results.jsonl")).open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(arm, seed, round(trained), "s", list(found.rows()), flush=True)


def table(work: Path) -> Iterator[str]:
    """Mean ± s.d. over seeds, as Markdown."""
    found = [json.loads(text) for text in (work / "results.jsonl").read_text().splitlines()]
    lines = list({(line["arm"], line["seed"]): line for line in found}.values())  # the last of each
    columns = {
        "image → text R@1": lambda f: f["retrieval"]["image_to_text"]["1"],
        "R@5": lambda f: f["retrieval"]["image_to_text"]["5"],
        "text → image R@1": lambda f: f["retrieval"]["text_to_image"]["1"],
        "zero-shot Dice": lambda f: f["zero_shot"]["mean_dice"],
        "text-mask Dice": lambda f: f["text_mask"]["mean_dice"],
        "pooled": lambda f: f["text_mask"]["pooled_dice"],
        "named side": lambda f: f["sides"].get("text mask", f["sides"].get("zero-shot"))["share"],
        "one word": lambda f: f["sides"].get("text mask", f["sides"].get("zero-shot"))["one_word"],
        "Dice of half": lambda f: f["sides"].get("text mask", f["sides"].get("zero-shot"))["dice"],
        "level": lambda f: f["levels"].get("text mask", f["levels"].get("zero-shot"))["moved"],
    }
    yield "| arm | seeds | labelled | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 3) + "|"
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = [line for line in lines if line["arm"] == arm]
        cells = []
        for read in columns.values():
            values = [value for value in (_read(read, line["found"]) for line in own) if value is not None]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "–")
        yield f"| {arm} | {len(own)} | {own[0]['labelled']} | " + " | ".join(cells) + " |"


def _read(read: Any, found: dict[str, Any]) -> float | None:
    try:
        return float(read(found))
    except (KeyError, TypeError):
        return None


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
    second.add_argument("--steps", type=int, default=300)
    second.add_argument("--generator-steps", type=int, default=900)
    second.add_argument("--limit", type=int, default=300)
    second.add_argument("--threads", type=int, default=0)
    second.add_argument("--measure", action="store_true", help="measure models that are there, train the others")
    second.add_argument("--untouched", action="store_true", help="on 300 test images that no choice was made by")
    third = commands.add_parser("table")
    third.add_argument("work", type=Path)
    given = parser.parse_args()
    os.environ["AMVLM_CACHE"] = str(given.work / "cache")  # shared by all studies
    if given.command == "prepare":
        prepare(given.source, given.work)
    elif given.command == "run":
        for seed in given.seeds:
            for arm in given.arms:
                run(
                    given.work,
                    arm,
                    seed,
                    given.steps,
                    given.generator_steps,
                    given.limit,
                    given.threads,
                    given.measure,
                    given.untouched,
                )
    else:
        print("\n".join(table(given.work)))


if __name__ == "__main__":
    main()
