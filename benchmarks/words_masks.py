"""Masks by wording: python benchmarks/words.py masks TASK04 WORK --arms tiny words

Medical Segmentation Decathlon Task04: 20 labelled volumes with anterior, posterior and whole hippocampus (their union),
8 test volumes. Student (labelled only) and text network train for a fixed number of steps on the plan's grid; one
seed's student is the same in all arms. The vision-language model is untrained, so its image side says little; what
differs is the text side:

* ``tiny``: a BERT from scratch, each structure under its prompt alone (as the bundled model has it);
* ``tiny-words``: the same encoder, with wordings and foreign words;
* ``minilm``: MiniLM, frozen, each structure under its prompt alone;
* ``words``: MiniLM, frozen, with wordings and foreign words: what a run does by default.

Wordings are those of the study ``parts`` in words.csv; its held-out half is never taught (text/held_out.txt). Each
prompt goes to the network as it was typed ("network alone"), and through the reader first ("as delivered").

Prediction, written before the first run. Network alone: ``tiny`` reads exact names (mean Dice of the three about 0.8)
and no other wording (below 0.45 held out), and draws something for 95 % of what should be empty; ``words`` keeps the
exact names within 0.02, reaches 0.9 times that on held-out wordings, and leaves 80 % of the absent and foreign prompts
empty, but hardly any denial ("no hippocampus"), which no wording in training holds. As delivered both arms are alike:
held-out wordings reach 0.95 times the exact names' Dice unless the reader refuses one, and 95 % of absent, foreign
and negated prompts give nothing and a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import numpy as np
import torch
from experts import untrained_model

from amvlm.config import TrainSettings
from amvlm.exchange import import_study
from amvlm.imaging import canonical_mask
from amvlm.inference import Session
from amvlm.learning import planned_opening, planned_text, texts, train
from amvlm.models import AmvlmModel
from amvlm.planning import Fingerprint, Machine, Plan, make_plan
from amvlm.store import Case, LabelStore
from amvlm.store.runs import RunFolder
from amvlm.text import normalise_caption
from amvlm.text.wordings import held_out, taught

ARMS = {"tiny": ("tiny", False), "tiny-words": ("tiny", True), "minilm": ("minilm", False), "words": ("minilm", True)}
NAMES = ("anterior hippocampus", "posterior hippocampus", "whole hippocampus")
EMPTY = ("absent", "foreign", "negation")
LABELLED, TESTED, TAUGHT_EACH = 20, 8, 6


class Row(Protocol):
    """A row of words.csv."""

    @property
    def kind(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def reads_as(self) -> str: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--arms", nargs="*", default=["tiny", "words"], choices=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--student-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=300, help="of the text network")


def run(given: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Train and measure the arms, then print the table of all that were ever measured in ``work``."""
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    os.environ["AMVLM_CACHE"] = str(given.work / "cache")
    store = _study(given.source, given.work)
    for arm in given.arms:
        began = time.process_time()
        model = _trained(store, arm, given)
        trained = time.process_time() - began
        line = {
            "arm": arm, "seed": given.seed, "steps": given.steps, "training": round(trained),
            "found": list(_measured(store, model, rows)), "measuring": round(time.process_time() - began - trained),
        }  # fmt: skip
        with (given.work / "words.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    print("\n".join(table(given.work)))


def _study(source: Path, work: Path) -> LabelStore:
    """The labelled volumes and the test volumes alone, with the union of both parts as a third structure."""
    folder = work / "study"
    if folder.exists():
        return LabelStore(folder)
    names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))
    chosen = [names[int(n)] for n in np.random.default_rng(0).permutation(len(names))[: LABELLED + TESTED]]
    part = work / "part"
    for kind in ("imagesTr", "labelsTr"):
        (part / kind).mkdir(parents=True)
        for name in chosen:
            shutil.copy(source / kind / name, part / kind / name)
    description = json.loads((source / "dataset.json").read_text())
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in chosen]
    description |= {"training": pairs, "numTraining": len(pairs), "test": [], "numTest": 0}
    (part / "dataset.json").write_text(json.dumps(description))
    splits: Any = {name: "test" if n < TESTED else "train" for n, name in enumerate(chosen)}
    print(import_study(part, folder, masks="reference", split="train", splits=splits).sentence(), flush=True)
    store = LabelStore(folder)
    store.add_structure(NAMES[2])
    for case in store.cases("train"):
        for name in NAMES:
            store.accept(case.case_id, name, _truth(store, case, name))
    return store


def _truth(store: LabelStore, case: Case, name: str) -> Any:
    references = [store.read_reference(case, part) for part in (NAMES[:2] if name == NAMES[2] else (name,))]
    return np.maximum.reduce([mask for mask in references if mask is not None])


def _trained(store: LabelStore, arm: str, given: argparse.Namespace) -> AmvlmModel:
    encoder, wordings = ARMS[arm]

    def short(facts: Fingerprint) -> Plan:
        return make_plan(facts).model_copy(update={"recipe": "labelled", "steps": given.student_steps})

    planned_opening.measured_machine = lambda *_: Machine(seconds_per_megapixel=3.75)
    planned_opening.make_plan, planned_opening.text_steps = short, lambda *_: given.steps
    planned_text.TextTable = partial(texts.TextTable, wordings=wordings)  # type: ignore[misc,assignment]
    torch.manual_seed(given.seed)
    base = untrained_model(encoder)
    settings = TrainSettings(
        minutes=7, mode="labelled_only", seed=given.seed, precision="fp32", threads=1, checkpoint_every=10**6
    )
    name = f"{arm}-{given.seed}-{given.steps}"
    if not (store.folder / "models" / name).is_dir():
        with RunFolder.new(store.folder) as folder:
            for _ in train(store, base, settings, folder, name):
                pass
    return AmvlmModel.load(store.folder / "models" / name)


def _prompts(store: LabelStore, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """(group, prompt, the structure's name or "")."""
    yield from (("exact", name, name) for name in NAMES)
    structures = store.structures()
    for structure in structures:
        words = [text for text in taught(structure, structures, 64) if text != structure.name]
        order = np.random.default_rng(1).permutation(len(words))[:TAUGHT_EACH]
        yield from (("taught", words[int(n)], structure.name) for n in order)
    for row in rows:
        if row.kind in EMPTY:
            yield f"{row.kind}, {row.split}", row.prompt, ""
        elif row.kind != "exact" and row.split == "held out":
            yield f"{row.kind}, {row.split}", row.prompt, row.reads_as


def _measured(store: LabelStore, model: AmvlmModel, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """For every prompt: Dice of the network alone and as delivered, or whether their masks are empty."""
    prompts = list(_prompts(store, rows))
    secret = {normalise_caption(prompt) for group, prompt, _ in prompts if group.endswith("held out")}
    structures = store.structures()
    assert not secret & {text for s in structures for text in taught(s, structures, 64)}
    assert {text for text in secret if text.isascii()} <= held_out()
    found: dict[str, tuple[list[float], list[float]]] = {prompt: ([], []) for _, prompt, _ in prompts}
    for case in store.cases("test"):
        volume = store.read_image(case)
        session = Session(model, volume)
        truths = {name: canonical_mask(_truth(store, case, name), volume) > 0 for name in NAMES}
        masks: dict[str, Any] = {}
        for _, prompt, name in prompts:
            reading = model.card.read(prompt)
            for text in filter(None, (prompt, reading.caption)):
                if text not in masks:
                    masks[text] = session.segment_volume(text)["text mask"] > 127
            delivered = np.zeros_like(masks[prompt]) if reading.refusal else masks[reading.caption]
            for scores, mask in zip(found[prompt], (masks[prompt], delivered), strict=True):
                scores.append(_dice(mask, truths[name]) if name else float(not mask.any()))
    for group, prompt, name in prompts:
        alone, delivered = (round(mean(scores), 4) for scores in found[prompt])
        said = bool(model.card.read(prompt).refusal)
        yield {
            "group": group, "prompt": prompt, "name": name, "alone": alone, "delivered": delivered, "refused": said
        }  # fmt: skip


def _dice(one: Any, other: Any) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def table(work: Path) -> Iterator[str]:
    """Mean Dice by structure where a structure is named, else the share of empty masks; groups by arm."""
    lines = [json.loads(text) for text in (work / "words.jsonl").read_text().splitlines()]
    lines = list({(line["arm"], line["seed"], line["steps"]): line for line in lines}.values())
    yield "| arm | prompts | number | network alone | as delivered | refused |"
    yield "|---" * 6 + "|"
    for line in lines:
        rows = line["found"]
        for row in rows:
            row["all"] = "named, held out" if row["name"] and "held out" in row["group"] else ""
            row["all"] = row["all"] or ("to be empty, held out" if "held out" in row["group"] else "")
        groups = dict.fromkeys([*(r["group"] for r in rows), *(r["all"] for r in rows if r["all"])])
        for group in groups:
            own = [row for row in rows if group in (row["group"], row["all"])]
            cells = [_cell(own, kind) for kind in ("alone", "delivered")]
            refused = sum(row["refused"] for row in own)
            yield f"| {line['arm']} | {group} | {len(own)} | {' | '.join(cells)} | {refused} |"
        yield f"{line['arm']}, seed {line['seed']}: {line['training']} + {line['measuring']} CPU-seconds"


def _cell(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """ "0.81/0.76/0.86" by structure, or "94 %"."""
    if not rows[0]["name"]:
        return f"{mean(row[kind] for row in rows):.0%} empty"
    by_name = [[row[kind] for row in rows if row["name"] == name] for name in NAMES]
    return "/".join(f"{mean(dices):.2f}" for dices in by_name if dices)
