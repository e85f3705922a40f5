"""First and second prompt on one scan, in one run: python benchmarks/prompt_latency.py SCAN [--model FOLDER|tiny]

The first prompt embeds the volume; the second costs the text encoder, a product and the way back to the voxel grid.
Reported are medians over rounds, as a ratio, for the whole volume and for the visible slice alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from statistics import median

from amvlm.config import EncoderSettings, GeneratorSettings, StudentSettings
from amvlm.imaging import Volume, read_volume
from amvlm.inference import Session, bundled_model_folder
from amvlm.models import AmvlmModel, KnownStructure, ModelCard, VisionLanguageModel, build_generator, build_student

PROMPTS = ("posterior hippocampus", "anterior hippocampus")


def untrained(form: str) -> AmvlmModel:
    """The `tiny` preset at 112 px with random weights: the time does not depend on them."""
    vlm = VisionLanguageModel(EncoderSettings())
    generator, student = GeneratorSettings(form=form), StudentSettings()
    known = tuple(KnownStructure(name=name) for name in PROMPTS)
    card = ModelCard(name=f"tiny, {form}", kind="trained", structures=known)
    return AmvlmModel(
        vlm, build_generator(generator, vlm, 0.05), generator, build_student(student, 2), student, card
    ).eval()


def timed_round(model: AmvlmModel, volume: Volume) -> dict[str, float]:
    """Seconds for first and second prompt: to the visible slice, and over the whole volume."""
    session = Session(model, volume)
    times = {}
    for number, prompt in zip(("first", "second"), PROMPTS, strict=True):
        began = time.perf_counter()
        steps = session.segment(prompt)
        next(steps)
        times[f"{number}, visible slice"] = time.perf_counter() - began
        for _ in steps:
            pass
        times[f"{number}, whole volume"] = time.perf_counter() - began
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    volume = read_volume(arguments.scan)
    models = [AmvlmModel.load(bundled_model_folder()), untrained("film_unet"), untrained("frozen_linear")]
    rounds: dict[str, list[dict[str, float]]] = {model.card.name: [] for model in models}
    for model in models:
        timed_round(model, volume)  # warm up
    for _ in range(arguments.rounds):
        for model in models:
            rounds[model.card.name].append(timed_round(model, volume))
    for name, found in rounds.items():
        times = {key: median(times[key] for times in found) for key in found[0]}
        ratio = median(t["first, whole volume"] / t["second, whole volume"] for t in found)
        print(
            json.dumps(
                {
                    "model": name, "shape": volume.shape, "slices": Session(models[0], volume).slices,
                    "ratio over the whole volume": round(ratio, 1),
                    "ms": {key: round(1000 * value, 1) for key, value in times.items()},
                }
            )
        )  # fmt: skip
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
