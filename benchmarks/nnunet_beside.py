"""nnU-Net v2 on the same labels, for the same CPU-seconds of one thread, measured on the same test split of ACDC.

    python benchmarks/nnunet_beside.py environment WORK
    python benchmarks/nnunet_beside.py run ACDC WORK --patients 7 --cpu-seconds 420 --configuration 2d

`environment` makes a virtual environment in WORK, since nnU-Net pins packages that this project does not. `run` writes
its dataset, lets it plan and preprocess, and trains its own trainer with its own plan, losses and augmentation; its
polynomial learning rate runs over the CPU-seconds instead of 1,000 epochs. Preparation is not counted. All labelled
frames train (fold "all"); prediction is without mirroring, as ours is. ``--batch-size`` replaces its own, which is made
for a GPU of 8 GiB. A line is added to WORK/nnunet.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAME = "Dataset013_ACDC"
LABELS = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
WITHOUT_DEPENDENCIES = (
    "nnunetv2==2.8.1", "dynamic-network-architectures==0.4.4", "batchgenerators", "batchgeneratorsv2", "acvl-utils",
    "timm",
)  # fmt: skip
"""timm asks for torchvision, which nothing here uses."""
DEPENDENCIES = (
    "numpy", "scipy", "scikit-learn", "scikit-image", "SimpleITK", "pandas", "nibabel", "matplotlib", "seaborn",
    "tifffile", "yacs", "einops", "blosc2", "tqdm", "requests", "imagecodecs", "dicom2nifti", "graphviz",
    "fft-conv-pytorch", "connected-components-3d", "huggingface_hub", "safetensors", "pyyaml",
)  # fmt: skip


def make_environment(work: Path, torch: str) -> None:
    python = work / "env" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", work / "env"], check=True)
    for packages in ((torch,), ("--no-deps", *WITHOUT_DEPENDENCIES), DEPENDENCIES):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)


def write_dataset(acdc: Path, raw: Path, names: list[str]) -> None:
    folder = raw / NAME
    for part, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(acdc / part / f"{name}.nii.gz", folder / part / f"{name}{suffix}.nii.gz")
    about = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": len(names), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))


def inside(options: argparse.Namespace) -> None:
    """Plan, train and measure; runs in the environment, with nnU-Net's three folders in its variables."""
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    torch.set_num_threads(options.threads)
    if options.splits["steps"] == "train":
        extract_fingerprints([13], num_processes=1)
        plan_experiments([13])
        preprocess([13], configurations=[options.configuration], num_processes=[1])
    os.environ["nnUNet_n_proc_DA"] = "0"  # augmentation in this process, so that its time counts  # noqa: SIM112
    trainer, notes = trained(options)
    line = {"configuration": options.configuration, "patients": options.patients, "seed": options.seed, **notes}
    for split in ("validation", "test"):
        line[split] = [dices_of(trainer, options.acdc, name) for name in options.splits[split]]
        means = column_means(line[split])
        print(split, [round(m, 4) for m in means], round(sum(means) / 3, 4), flush=True)
    with (options.work / "nnunet.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def trained(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """nnU-Net's own trainer, stepped until the CPU-seconds are spent."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    prepared = Path(os.environ["nnUNet_preprocessed"]) / NAME  # noqa: SIM112
    plans = json.loads((prepared / "nnUNetPlans.json").read_text())
    if options.batch_size:
        plans["configurations"][options.configuration]["batch_size"] = options.batch_size
    plans["continue_training"] = False
    about = json.loads((prepared / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, options.configuration, "all", about, torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_start()
    trainer.network.train()
    own = plans["configurations"][options.configuration]
    began, steps = time.process_time(), 0
    while (spent := time.process_time() - began) < options.cpu_seconds:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - spent / options.cpu_seconds) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        print(f"step {steps}, {spent:.0f} s, loss {float(loss):.3f}", flush=True)
    notes = {"steps": steps, "batch": own["batch_size"], "patch": own["patch_size"], "cpu_seconds": round(spent, 1)}
    return trainer, notes


def dices_of(trainer: Any, acdc: Path, name: str) -> list[float]:
    """Dice per structure on the scan's own grid; NaN where the truth is empty."""
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, type(trainer).__name__, None,
    )  # fmt: skip
    trainer.set_deep_supervision_enabled(False)
    image, facts = SimpleITKIO().read_images([str(acdc / "imagesTr" / f"{name}.nii.gz")])
    found = predictor.predict_single_npy_array(image, facts, None, None, False)
    truth = SimpleITKIO().read_seg(str(acdc / "labelsTr" / f"{name}.nii.gz"))[0][0]
    return [dice(found == label, truth == label) for label in (1, 2, 3)]


def dice(found: Any, truth: Any) -> float:
    """2|A ∩ B| / (|A| + |B|); NaN for an empty truth."""
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum())) if truth.any() else float("nan")


def column_means(rows: list[list[float]]) -> list[float]:
    """Mean of each column without its NaN."""
    columns = [[value for value in column if value == value] for column in zip(*rows, strict=True)]
    return [sum(column) / len(column) for column in columns]


def run(options: argparse.Namespace) -> None:
    from acdc_students import patients_of

    work, roles = options.work.resolve(), patients_of(options.acdc)
    folders = {f"nnUNet_{part}": work / f"{part}-{options.patients}" for part in ("raw", "preprocessed", "results")}
    fresh = not (folders["nnUNet_preprocessed"] / NAME / f"nnUNetPlans_{options.configuration}").exists()
    if fresh:
        write_dataset(options.acdc, folders["nnUNet_raw"], roles[str(options.patients)])
    splits = {"validation": roles["validation"][: options.limit], "test": roles["test"][: options.limit]}
    job = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    job |= {"splits": splits | {"steps": "train" if fresh else "ready"}, "work": str(work), "acdc": str(options.acdc)}
    environment = {
        **os.environ, **{k: str(v) for k, v in folders.items()}, "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f",
        "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads),
    }  # fmt: skip
    command = [work / "env" / "bin" / "python", __file__, "inside", json.dumps(job)]
    subprocess.run(command, check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("environment")
    first.add_argument("work", type=Path)
    first.add_argument("--torch", default="torch==2.13.0")
    second = commands.add_parser("run")
    second.add_argument("acdc", type=Path)
    second.add_argument("work", type=Path)
    second.add_argument("--patients", type=int, default=7, choices=(3, 7, 14))
    second.add_argument("--cpu-seconds", type=float, default=420)
    second.add_argument("--configuration", default="2d", choices=("2d", "3d_fullres"))
    second.add_argument("--batch-size", type=int, default=0, help="instead of its own")
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--threads", type=int, default=1)
    second.add_argument("--limit", type=int, default=None, help="cases per split, for a trial")
    third = commands.add_parser("inside")
    third.add_argument("job")
    options = parser.parse_args()
    if options.command == "environment":
        make_environment(options.work, options.torch)
    elif options.command == "run":
        run(options)
    else:
        job = json.loads(options.job)
        inside(argparse.Namespace(**job | {"work": Path(job["work"]), "acdc": Path(job["acdc"])}))


if __name__ == "__main__":
    main()
