"""Rounds of accepted labels on the sample study: python benchmarks/demo_rounds.py --seeds 0 1

The start set (5 labelled volumes) and 6 labelled validation cases; then round after round more of the pool is accepted
(the expert masks stand for perfect corrections), each time a model is trained from the same pre-trained text side, and
old and new are measured on the same validation cases, and on 12 test cases that nothing has seen.

Prediction, written before the first run: the mean over structures rises with every round on the validation cases, by
less each time; single seeds may lose up to 0.005 between two rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean

from experts import accept_expert_masks

from amvlm.config import TrainSettings
from amvlm.events import Validation
from amvlm.inference import bundled_model_folder, evaluate
from amvlm.learning import train
from amvlm.models import AmvlmModel
from amvlm.sample import copy_sample_study
from amvlm.store.runs import RunFolder

ROUNDS = (5, 8, 13, 22)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    print("| seed | labelled | prediction, validation: before | after | merged, validation: after | prediction, test |")
    print("|---|---|---|---|---|---|")
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            store = copy_sample_study(Path(folder) / "study")
            accept_expert_masks(store, [case.case_id for case in store.cases("val")[:6]])
            pool = [c.case_id for c in store.cases("train") if not store.history(c.case_id, store.structures()[0].name)]
            previous: AmvlmModel | None = None
            for labelled in ROUNDS:
                have = len({r.case_id for r in store.snapshot().revisions if store.case(r.case_id).split == "train"})
                accept_expert_masks(store, pool[: labelled - have])
                pool = pool[labelled - have :]
                settings = TrainSettings(
                    steps=given.steps, seed=seed, precision="bf16", threads=given.threads, checkpoint_every=10**6
                )
                base = AmvlmModel.load(bundled_model_folder())
                base.student = None  # its text side alone
                found = [
                    event
                    for event in train(
                        store, base, settings, RunFolder.new(store.folder), f"round-{labelled}", previous=previous
                    )
                    if isinstance(event, Validation)
                ]
                before = mean(found[0].student.values()) if previous is not None else None
                previous = AmvlmModel.load(store.folder / "models" / f"round-{labelled}")
                validation = previous.card.validation
                test = [
                    s.mean_dice for (k, _), s in evaluate(previous, store, "test").summaries().items()
                    if k == "prediction"
                ]  # fmt: skip
                print(
                    f"| {seed} | {labelled} | {'–' if before is None else f'{before:.3f}'} | "
                    f"{mean(validation['after student'].values()):.3f} | "
                    f"{mean(validation['after merged'].values()):.3f} | {mean(test):.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
