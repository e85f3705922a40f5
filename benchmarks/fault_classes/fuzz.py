"""Mutants of sound files: hundreds of small damages, each read by a command."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.makers import bundled
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class


def mutant(content: bytes, chance: random.Random, head: int) -> bytes:
    """One to four changes, three quarters of them in the first ``head`` bytes."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(min(head, len(changed)) if chance.random() < 0.75 else len(changed)) if changed else 0
        kind = chance.randrange(7)
        if kind == 0:
            changed[at : at + 1] = bytes([changed[at] ^ 1 << chance.randrange(8)]) if changed else b""
        elif kind == 1:
            changed[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 9)]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 4:
            changed[at : at + 2] = chance.randbytes(2)
        elif kind == 5:
            del changed[at:]
        else:
            other = chance.randrange(len(changed)) if changed else 0
            changed[at : at + 8] = changed[other : other + 8]
    return bytes(changed)


def _series_bytes(folder: Path) -> bytes:
    return makers.dicom(folder / "sound.dcm", PatientName="A^B", StudyDate="20200101").read_bytes()


def sound_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Suffix → a sound file and the length of its head."""
    return {
        ".dcm": (_series_bytes(folder), 1200), ".nii": (makers.nifti(), 352),
        ".nii.gz": (makers.packed(makers.nifti()), 99),
        ".nrrd": (makers.nrrd(bytes(range(256))), 260), ".mha": (makers.mha(bytes(range(256))), 330),
        ".png": (makers.picture(), 60), ".tif": (makers.picture(kind="TIFF"), 600),
        ".jpg": (makers.picture(kind="JPEG"), 600),
        ".webp": (makers.picture(kind="WEBP", lossless=True), 60), ".bmp": (makers.picture(kind="BMP"), 60),
    }  # fmt: skip


def _batch(place: Place, suffix: str, seed: int, count: int) -> None:
    """Mutants in folders of their own, read one after the other in one child: the first that ends it is told."""
    from amvlm.errors import UserError
    from amvlm.imaging import read_volume

    chance = random.Random(f"{suffix} {seed}")
    (place.folder / "tmp" / "sound").mkdir()
    content, head = sound_files(place.folder / "tmp" / "sound")[suffix]
    shutil.rmtree(place.folder / "tmp" / "sound")
    folder = place.work / "mutants"
    folder.mkdir()
    paths = []
    for number in range(count):
        path = folder / f"m{number:04d}" / f"m{number:04d}{suffix}"
        path.parent.mkdir()
        path.write_bytes(mutant(content, chance, head))
        paths.append(path)

    def read() -> None:
        for path in paths:
            try:
                read_volume(path)
            except UserError as error:
                if len(str(error)) < 30:
                    raise RuntimeError(f"{path.name}: no sentence: {error}") from error
            except MemoryError as error:
                raise RuntimeError(f"{path.name}: out of memory") from error
            except Exception as error:
                raise RuntimeError(f"{path.name}: {type(error).__name__}: {error}") from error
            shutil.rmtree(path.parent)  # where a child dies, the first that is left was the one

    place.allow(folder)
    place.run("read", instead=read, seconds=60)
    if place.faults and (left := sorted(folder.iterdir())):
        place.fault("answer", f"the mutant was {left[0].name} of seed {seed}")


@fault_class(7, "mutants of scans", short=3)
def scans() -> Iterator[Trial]:
    for suffix, rounds in ((".dcm", 24), (".nii", 6), (".nii.gz", 3), (".nrrd", 6), (".mha", 6), (".png", 4),
        (".tif", 6),
                           (".jpg", 3), (".webp", 3), (".bmp", 3)):  # fmt: skip
        for seed in range(rounds):
            yield f"50 of {suffix}, seed {seed}", partial(_batch, suffix=suffix, seed=seed, count=50)


@fault_class(7, "mutants of tables and descriptions")
def tables() -> Iterator[Trial]:
    def trial(place: Place, name: str, seed: int) -> None:
        chance = random.Random(f"{name} {seed}")
        for number in range(8):
            folder = place.work / f"scans{number}"
            place.allow(folder)
            if name == "dataset.json":
                path = makers.msd(folder, 1) / name
            else:
                makers.pictures(folder, 1)
                (folder / "captions.csv").unlink()
                path = folder / name
                path.write_bytes({
                    "a.xlsx": makers.xlsx([["Image", "Description"], ["mask_p0.png", "liver"]]),
                    "a.csv": b"Image,Description\nmask_p0.png,\"left, right\"\n",
                    "a.json": json.dumps([{"Image": "mask_p0.png", "Description": "liver"}]).encode(),
                    "labels.json": b'{"0": "background", "255": "liver"}',
                }[name])  # fmt: skip
            path.write_bytes(mutant(path.read_bytes(), chance, 2000))
            place.allow(place.work / f"new{number}")
            place.run("import", folder, "--into", place.work / f"new{number}")

    for name in ("dataset.json", "a.xlsx", "a.csv", "a.json", "labels.json"):
        for seed in range(3):
            yield f"8 of {name}, seed {seed}", partial(trial, name=name, seed=seed)


@fault_class(7, "mutants of models and indexes")
def models() -> Iterator[Trial]:
    def model(place: Place, name: str, seed: int) -> None:
        chance = random.Random(f"{name} {seed}")
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        place.allow(place.work / "m.nii.gz")
        for number in range(4):
            folder = place.work / f"model{number}"
            place.allow(folder)
            shutil.copytree(bundled(), folder)
            path = folder / name
            path.write_bytes(mutant(path.read_bytes(), chance, 3000))
            place.run(
                "segment", scan, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz", "--model", folder
            )

    for name in ("card.json", "config.json", "tokenizer.json", "model.safetensors"):
        for seed in range(3):
            yield f"4 of {name}, seed {seed}", partial(model, name=name, seed=seed)

    def index(place: Place, seed: int) -> None:
        chance = random.Random(f"index {seed}")
        for number in range(8):
            study = place.study(name=f"s{number}")
            path = study / "store.sqlite"
            path.write_bytes(mutant(path.read_bytes(), chance, 4096))
            place.allow(study, place.work / f"out{number}")
            place.run("verify", study)
            place.run("export", study, place.work / f"out{number}")

    for seed in range(6):
        yield f"8 of store.sqlite, seed {seed}", partial(index, seed=seed)
