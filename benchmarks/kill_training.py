"""kill -9 at random moments, then --resume: python benchmarks/kill_training.py --kills 10

A training run on the sample study is killed again and again until it ends by itself; the model must be bitwise the one
of a run that nobody disturbed: student, text mask generator, and what the card says of them.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experts import accept_expert_masks
from safetensors.torch import load_file

from amvlm.models.bundle import read_card
from amvlm.sample import copy_sample_study
from amvlm.store import LabelStore


def command(store: LabelStore, name: str, steps: int, dimensions: int, resume: bool) -> list[str]:
    own = [] if dimensions == 2 else ["--dimensions", "3", "--planes", "8", "--channels", "8", "--channels", "16"]
    return [
        sys.executable, "-m", "amvlm", "train", str(store.folder), "--model", "bundled", "--name", name, "--run-name",
        name, "--steps", str(steps), "--precision", "bf16" if dimensions == 2 else "fp32", "--threads", "1",
        "--checkpoint-every", "7",
        "--validate-every", "20", "--mode", "text_guided", *own, *(["--resume"] if resume else []),
    ]  # fmt: skip


def _steps_reported(folder: Path) -> int:
    """How often the run has said how far training is."""
    path = folder / "events.jsonl"
    return path.read_text("utf-8").count('"stage":"training"') if path.is_file() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dimensions", type=int, choices=[2, 3], default=2)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        store = copy_sample_study(Path(temporary) / "study")
        accept_expert_masks(store, [case.case_id for case in store.cases("val")[:6]])
        subprocess.run(command(store, "whole", given.steps, given.dimensions, False), check=True, capture_output=True)
        kills, without, last, resume = 0, 0, -1, False
        while True:
            process = subprocess.Popen(
                command(store, "broken", given.steps, given.dimensions, resume), stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            folder = store.folder / "runs" / "broken"
            if kills < given.kills:
                seen = _steps_reported(folder)
                while _steps_reported(folder) == seen and process.poll() is None:
                    time.sleep(0.05)  # loading
                while not list(folder.glob("checkpoint-*/state.json")) and process.poll() is None:
                    time.sleep(0.05)  # before the first checkpoint there is nothing to resume
                time.sleep(chance.uniform(0, 2))
            else:
                process.wait()
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, resume = kills + 1, True
            step = max(int(path.parent.name[-7:]) for path in folder.glob("checkpoint-*/state.json"))
            without, last = without + (step == last), step
            print(f"killed {kills}, newest checkpoint of step {step}", flush=True)
        whole, broken = (load_file(store.folder / "models" / n / "model.safetensors") for n in ("whole", "broken"))
        different = [name for name, tensor in whole.items() if not tensor.equal(broken[name])]
        cards = [read_card(store.folder / "models" / n) for n in ("whole", "broken")]
        after = [{k: v for k, v in card.validation.items() if k.startswith("after")} for card in cards]
        same = after[0] == after[1] and cards[0].structures == cards[1].structures  # "before" is another model's
        print(
            f"{kills} kills ({without} before another checkpoint was written), {given.dimensions}-D: "
            f"{len(different)} of {len(whole)} tensors differ; cards {'agree' if same else 'DIFFER'}"
        )


if __name__ == "__main__":
    main()
