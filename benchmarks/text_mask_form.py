"""Which text mask generator: python benchmarks/text_mask_form.py --seeds 0 1 2

Both forms of METHOD §3 are pre-trained on the sample study's start set with the same number of steps; Dice of the
text mask on the validation cases (references, never trained on) chooses, and the test cases report. PAMR is applied
to the same trained networks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from amvlm.config import EncoderSettings, GeneratorSettings, PretrainSettings
from amvlm.inference import evaluate
from amvlm.learning import pretrain
from amvlm.models import AmvlmModel
from amvlm.sample import copy_sample_study
from amvlm.store.runs import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    found: dict[tuple[str, int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = copy_sample_study(Path(folder) / "study")
        for seed in arguments.seeds:
            for form in ("film_unet", "frozen_linear"):
                settings = PretrainSettings(
                    preset="tiny", steps=400, generator_steps=arguments.steps, seed=seed, batch_size=16,
                    precision="bf16", encoders=EncoderSettings(image_size=64), generator=GeneratorSettings(form=form),
                )  # fmt: skip
                name = f"{form}-{seed}"
                run = RunFolder.new(store.folder)
                with run:
                    for _ in pretrain(store, settings, run, name):
                        pass
                model = AmvlmModel.load(store.folder / "models" / name)
                for iterations in (0, 10):
                    model.generator_settings = model.generator_settings.model_copy(
                        update={"pamr_iterations": iterations}
                    )
                    for split in ("val", "test"):
                        summaries = evaluate(model, store, split).summaries()
                        dice = mean(
                            summary.mean_dice for (kind, _), summary in summaries.items() if kind == "text mask"
                        )
                        found.setdefault((form, iterations, split), []).append(dice)
    print("| form | PAMR iterations | split | Dice by seed | mean ± s.d. |\n|---|---|---|---|---|")
    for (form, iterations, split), dices in found.items():
        spread = f" ± {stdev(dices):.3f}" if len(dices) > 1 else ""
        print(
            f"| {form} | {iterations} | {split} | {' '.join(f'{d:.3f}' for d in dices)} | {mean(dices):.3f}{spread} |"
        )


if __name__ == "__main__":
    main()
