"""``amvlm demo``: the whole loop on the bundled study, and the table that both demos print."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from amvlm import console
from amvlm.config import TrainSettings
from amvlm.events import Progress, Validation
from amvlm.imaging import write_bytes_atomically
from amvlm.inference.catalogue import bundled_model_folder
from amvlm.inference.evaluate import KINDS, Evaluation, evaluate
from amvlm.inference.session import Session
from amvlm.learning.train import train
from amvlm.models import AmvlmModel
from amvlm.sample.study import copy_sample_study
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

CORRECTED_CASES, MODEL_NAME = 14, "corrected"


def cases_to_correct(store: LabelStore) -> list[str]:
    """What the simulated clinician judges: the first unjudged cases, as the window offers them.

    Eight of them train and six validate. The start set is labelled already; test cases are neither judged nor
    trained on.
    """
    judged = {revision.case_id for revision in store.snapshot().revisions}
    return [c.case_id for c in store.cases() if c.split != "test" and c.case_id not in judged][:CORRECTED_CASES]


def comparison(before: Evaluation, after: Evaluation) -> list[dict[str, object]]:
    """Rows of mask, structure, mean Dice before and after, and in how many cases it rose."""
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        for (found, structure), overlaps in before.overlaps.items():
            if found != kind:
                continue
            old = np.array([overlap.dice for overlap in overlaps])
            new = np.array([overlap.dice for overlap in after.overlaps[kind, structure]])
            rows.append(
                {
                    "mask": kind, "structure": structure,
                    "before": float(np.nanmean(old)), "after": float(np.nanmean(new)),
                    "better": int((new > old).sum()), "cases": len(old),
                }
            )  # fmt: skip
    mean = {key: float(np.mean([float(str(row[key])) for row in rows])) for key in ("before", "after")}
    total = {key: sum(int(str(row[key])) for row in rows) for key in ("better", "cases")}
    return [*rows, {"mask": "mean", "structure": "", **mean, **total}]


def print_comparison(rows: list[dict[str, object]]) -> None:
    """The demo's table, on standard output."""
    shown = []
    for row in rows:
        before, after = float(str(row["before"])), float(str(row["after"]))
        shown.append(
            (row["mask"], row["structure"], f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}",
             f"{row['better']} of {row['cases']}")
        )  # fmt: skip
    console.table(
        "Dice on cases that no training saw, before and after the accepted corrections",
        ("mask", "structure", "before", "after", "change", "cases improved"), shown, left=("mask", "structure"),
        width=100, bold=lambda row: row[0] == "mean",
    )  # fmt: skip
    console.result("Research use only, not for diagnosis.")


def run_demo(seed: int, minutes: float, output: Path | None) -> None:
    """Prompt, correct, accept, train and measure, without a window."""
    with tempfile.TemporaryDirectory() as temporary, console.status("Copying the sample study …") as update:
        store = copy_sample_study(Path(temporary) / "study")
        base = AmvlmModel.load(bundled_model_folder())
        before = evaluate(base, store, "test")
        references = store.references()
        todo = cases_to_correct(store)
        for done, case_id in enumerate(todo):
            update(f"Correcting case {done + 1} of {len(todo)} …")
            session = Session(base, store.read_image(store.case(case_id)))
            for structure in store.structures():
                started_from = session.segment_volume(structure.prompt)["merged"] > 127
                truth = store.masks.read(references[case_id, structure.name])
                edited = int((started_from != _canonical(truth.array, session)).sum())
                store.accept(
                    case_id, structure.name, truth.array, prompt=structure.prompt, source="merged",
                    model_fingerprint=base.fingerprint, edited_voxels=edited,
                )  # fmt: skip
        run = RunFolder.new(store.folder)
        with run:
            for event in train(store, base, TrainSettings(minutes=minutes, seed=seed), run, MODEL_NAME):
                if isinstance(event, Progress):
                    update(f"{event.stage}: {event.step} of {event.steps}, {event.seconds_left or 0:.0f} s left")
                elif isinstance(event, Validation):
                    console.say(f"step {event.step}: validation Dice of the prediction {event.student}")
        update("Measuring …")
        rows = comparison(before, evaluate(AmvlmModel.load(store.folder / "models" / MODEL_NAME), store, "test"))
    print_comparison(rows)
    if output is not None:
        content = json.dumps({"seed": seed, "minutes": minutes, "rows": rows}, indent=1).encode()
        write_bytes_atomically(output, content, private=False)


def _canonical(mask: np.ndarray, session: Session) -> np.ndarray:
    from amvlm.imaging import canonical_mask

    return canonical_mask(mask, session.volume)
