"""Does the text help? python benchmarks/control_arms.py --seeds 0 1 2

Students trained on the sample study's start set (5 labelled volumes) and its pool without labels, by one recipe with
the same steps and images: labelled only, image-only teacher-student, text-guided. Dice on the test cases.

Prediction, written before the first run: hippocampus prompts are constant and carry no information about a case, so
text-guided equals image-only to within 0.01; what it may bring is what any second network brings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from amvlm.config import TrainSettings
from amvlm.inference import bundled_model_folder, evaluate
from amvlm.learning import train
from amvlm.models import AmvlmModel
from amvlm.sample import copy_sample_study
from amvlm.store.runs import RunFolder

ARMS = ("labelled_only", "image_only", "text_guided")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=900)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = copy_sample_study(Path(folder) / "study")
        for seed in arguments.seeds:
            for arm in ARMS:
                settings = TrainSettings(steps=arguments.steps, seed=seed, mode=arm, precision="bf16")
                run = RunFolder.new(store.folder)
                with run:
                    for _ in train(store, AmvlmModel.load(bundled_model_folder()), settings, run, f"{arm}-{seed}"):
                        pass
                model = AmvlmModel.load(store.folder / "models" / f"{arm}-{seed}")
                for (kind, structure), summary in evaluate(model, store, "test").summaries().items():
                    if kind == "prediction":
                        found.setdefault((arm, structure), []).append(summary.mean_dice)
                print(
                    arm,
                    seed,
                    {key[1]: round(value[-1], 4) for key, value in found.items() if key[0] == arm},
                    flush=True,
                )
    print("| student, text-free at test | structure | Dice by seed | mean ± s.d. |\n|---|---|---|---|")
    for (arm, structure), dices in found.items():
        spread = f" ± {stdev(dices):.3f}" if len(dices) > 1 else ""
        print(f"| {arm} | {structure} | {' '.join(f'{d:.3f}' for d in dices)} | {mean(dices):.3f}{spread} |")


if __name__ == "__main__":
    main()
