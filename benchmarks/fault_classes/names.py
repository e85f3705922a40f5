"""Names of models, runs, structures and files: every one is a word from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial

from fault_classes import makers
from fault_classes.makers import TINY
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class

HOSTILE = [
    "../labels", "../../outside/keep", "OUTSIDE/keep", "..", ".", "a/b", "a\\b", "x\ny", "CON", "a" * 300, " ",
    "models/../../labels", "x\u200b/..", "\udcff", "-rf", "a:b", "x\x1b[31m",
]  # fmt: skip


@fault_class(1, "a model's name")
def model_names() -> Iterator[Trial]:
    def trial(place: Place, name: str, command: str) -> None:
        study = place.study()
        place.allow(study / "runs")
        flags = TINY if command == "train" else ["--steps", "1", "--generator-steps", "1", "--batch-size", "2"]
        place.refused(command, study, f"--name={place.resolved(name)}", *flags)

    for name in HOSTILE:
        yield f"train --name {name[:24]!r}", partial(trial, name=name, command="train")
    for name in HOSTILE[:4]:
        yield f"pretrain --name {name[:24]!r}", partial(trial, name=name, command="pretrain")

    def not_a_model(place: Place, make: str) -> None:
        """What lies under the name is no model of ours: it stays."""
        study = place.study()
        target = study / "models" / "mine"
        if make == "folder":
            target.mkdir()
            (target / "diary.txt").write_text("years of work")
        elif make == "file":
            target.write_text("years of work")
        else:
            target.symlink_to(place.outside / "keep" if make == "link" else study / "labels")
        place.allow(study / "runs", study / "store.sqlite")
        before = sorted(os.listdir(target)) if target.is_dir() else [target.read_text()]
        place.run("train", study, "--name", "mine", *TINY)
        place.expect(target.exists(), "what was no model is gone", "changed")
        after = sorted(os.listdir(target)) if target.is_dir() else [target.read_text()]
        place.expect(after == before, f"what was no model changed: {after}", "changed")

    for make in ("folder", "file", "link", "link to the labels"):
        yield f"the name is taken by a {make}", partial(not_a_model, make=make)


@fault_class(1, "a run's name")
def run_names() -> Iterator[Trial]:
    def trial(place: Place, name: str, more: list[str]) -> None:
        place.refused("train", place.study(), f"--run-name={place.resolved(name)}", *TINY, *more)

    for name in HOSTILE:
        yield f"--run-name {name[:24]!r}", partial(trial, name=name, more=[])
    for name in HOSTILE[:5]:
        yield f"--resume {name[:24]!r}", partial(trial, name=name, more=["--resume"])

    def link(place: Place) -> None:
        study = place.study()
        (study / "runs" / "elsewhere").symlink_to(place.outside / "keep")
        place.refused("train", study, "--run-name", "elsewhere", *TINY)

    yield "a link out of the study", link


@fault_class(1, "names in a run's config.json", short=0)
def run_configs() -> Iterator[Trial]:
    def trial(place: Place, key: str, value: object) -> None:
        study = place.study("trained")
        path = study / "runs" / "first" / "config.json"
        config = json.loads(path.read_text())
        config[key] = place.resolved(value) if isinstance(value, str) else value
        path.write_text(json.dumps(config))
        place.allow(study / "runs", *([] if key == "model" else [study / "models", study / "store.sqlite"]))
        (place.refused if key in ("model", "settings") else place.run)(
            "train", study, "--run-name", "first", "--resume"
        )

    for name in ("../../../outside/keep", "OUTSIDE/keep", "../labels", "", "a/b"):
        yield f"model {name!r}", partial(trial, key="model", value=name)
    for value in (5, None, ["a"], {"a": 1}):
        yield f"model {value!r}", partial(trial, key="model", value=value)
        yield f"settings {value!r}", partial(trial, key="settings", value=value)
    for name in ("../../../outside/keep", "OUTSIDE/keep", "/dev/zero", "[/red]"):
        yield f"base {name!r}", partial(trial, key="base", value=name)
    for key, value in (("threads", 10**9), ("precision", "[/red]"), ("revisions", ["a"]), ("revisions", 5),
                       ("revisions", [10**30]), ("threads", -4), ("base_fingerprint", 7)):  # fmt: skip
        yield f"{key} {value!r}"[:40], partial(trial, key=key, value=value)


@fault_class(1, "paths in dataset.json")
def dataset_json() -> Iterator[Trial]:
    def trial(place: Place, image: object, label: object) -> None:
        source = makers.msd(place.work / "scans")
        (source / "imagesTr" / "link.nii.gz").symlink_to(place.outside / "secret.nii.gz")
        described = json.loads((source / "dataset.json").read_text())
        entry = {"image": described["training"][0]["image"], "label": described["training"][0]["label"]}
        if image is not None:
            entry["image"] = place.resolved(image) if isinstance(image, str) else image  # type: ignore[assignment]
        if label is not None:
            entry["label"] = place.resolved(label) if isinstance(label, str) else label  # type: ignore[assignment]
        described["training"].append(entry)
        (source / "dataset.json").write_text(json.dumps(described))
        place.run("import", source, "--into", place.new_study())

    outside = ["../outside/secret.nii.gz", "OUTSIDE/secret.nii.gz", "imagesTr/../../../outside/secret.nii.gz",
               "imagesTr/link.nii.gz", "..\\outside\\secret.nii.gz", "file:///dev/zero", "/dev/zero", "", ".",
               "x" * 5000, "imagesTr"]  # fmt: skip
    for name in outside:
        yield f"image {name[:30]!r}", partial(trial, image=name, label=None)
        yield f"label {name[:30]!r}", partial(trial, image=None, label=name)
    for value in (5, ["a"], {"a": 1}, True):
        yield f"image {value!r}", partial(trial, image=value, label=None)

    def described(place: Place, content: str) -> None:
        source = makers.msd(place.work / "scans")
        (source / "dataset.json").write_text(content)
        place.run("import", source, "--into", place.new_study())

    for text in ("", "[]", "5", "{", '{"labels": 5, "training": 5}', "[" * 100_000, '{"training": null}',
                 '{"labels": {"1": ""}, "training": []}', '{"labels": {"1": 5}, "training": [5]}',
                 '{"labels": {"99999999999999999999": "x"}, "training": []}'):  # fmt: skip
        yield f"the whole of it is {text[:30]!r}", partial(described, content=text)


@fault_class(1, "detached NRRD and MetaImage headers")
def detached() -> Iterator[Trial]:
    def trial(place: Place, name: str, content: bytes, command: str) -> None:
        folder = place.work / "scans"
        folder.mkdir()
        (folder / name).write_bytes(place.resolved(content.decode("latin-1")).encode("latin-1"))
        (folder / "link.raw").symlink_to(place.outside / "secret.raw")
        if command == "import":
            place.run("import", folder, "--into", place.new_study())
        else:
            place.allow(place.work / "m.nii.gz")
            place.refused("segment", folder / name, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz")

    for target in ("../../outside/secret.raw", "OUTSIDE/secret.raw", "/dev/zero", "/dev/stdin", "link.raw",
                   "LIST\n../../outside/secret.raw", "../../outside/secret%03d.raw 1 4 1", "",
                   "LIST 2\n../../outside/secret.raw\n../../outside/secret.raw"):  # fmt: skip
        for command in ("import", "segment"):
            short = repr(target[:30])
            yield f"NRRD data file {short}, {command}", partial(
                trial, name="x.nrrd", content=makers.nrrd(b"", data_file=target or " "), command=command)  # fmt: skip
            yield f"NHDR datafile {short}, {command}", partial(
                trial, name="x.nhdr", content=makers.nrrd(b"", datafile=target or " "), command=command)  # fmt: skip
            for ending in ("mha", "mhd"):
                yield f"{ending} {short}, {command}", partial(
                    trial, name=f"x.{ending}", content=makers.mha(b"", ElementDataFile=target),
                    command=command)  # fmt: skip
    yield "MHA of several files", partial(trial, name="x.mha", command="import", content=makers.mha(
        b"", ElementDataFile="../../outside/secret%d.raw 1 4 1"))  # fmt: skip
    yield "MHA, the header twice", partial(trial, name="x.mha", command="import", content=makers.mha(
        b"ElementDataFile = LOCAL\n", ElementDataFile="../../outside/secret.raw"))  # fmt: skip


@fault_class(1, "structures whose names are no file names")
def structure_names() -> Iterator[Trial]:
    def trial(place: Place, names: list[str], suffix: str) -> None:
        labels = {"0": "background", **{str(number + 1): name for number, name in enumerate(names)}}
        source = makers.msd(place.work / "scans", labels=labels, count=2)
        study, out = place.new_study(), place.work / "out"
        place.allow(out)
        if any(len(name) > 200 or not name.isprintable() for name in names):  # these may be refused
            place.run("import", source, "--into", study, "--split", "train")
            place.run("export", study, out, "--suffix", suffix)
            return
        place.fine("import", source, "--into", study, "--split", "train")
        place.fine("export", study, out, "--suffix", suffix)
        if not (out / "labels.json").is_file():
            place.fault("answer", "no manifest")
            return
        rows = json.loads((out / "labels.json").read_text("utf-8"))["labels"]
        files = [row["file"] for row in rows if "file" in row]
        place.expect(len({name.lower() for name in files}) == len(files) == 2 * len(names), f"files {files}")
        place.expect(all((out / name).is_file() and "/" not in name for name in files), f"files {files}")
        shown = {row["structure"].lower() for row in rows}
        place.expect({" ".join(n.lower().split()) for n in names} <= shown, f"the manifest says {sorted(shown)}")

    for names, suffix in (
        (["L5/S disc"], ".nii.gz"), (["L5/S disc"], ".nrrd"), (["L5/S disc", "L5 S disc"], ".nii"),
        (["a:b?", "a_b_"], ".mha"),
        (["../../../outside/keep/victim"], ".nii.gz"), (["CON", "con."], ".nii.gz"),
        (["Leber Ü", "leber u\u0308"], ".nii.gz"),
        (["肝臓", "脾臓"], ".mha"), (["x" * 300], ".nii.gz"), (["[/red]", "[bold]"], ".nii.gz"),
        (["-rf", ".hidden"], ".nii.gz"),
        (["Liver", "liver tumour", "liver-tumour", "liver_tumour"][1:], ".nii.gz"),
        (["\u202egnp.exe", "a\tb"], ".nii.gz"),
    ):  # fmt: skip
        yield f"{', '.join(names)[:40]} as {suffix}", partial(trial, names=names, suffix=suffix)

    def spine(place: Place) -> None:
        folder = place.work / "scans"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        mask = makers.block()
        mask[mask == 1], mask[mask == 2] = 11, 1
        (folder / "images" / "a.nii.gz").write_bytes(makers.packed(makers.nifti()))
        (folder / "masks" / "a.nii.gz").write_bytes(makers.packed(makers.nifti(mask)))
        study, out = place.new_study(), place.work / "out"
        place.allow(out)
        place.fine("import", folder, "--into", study, "--labels", "mrspineseg", "--split", "train")
        place.fine("export", study, out)
        place.expect("L5/S disc" in (out / "labels.json").read_text("utf-8") if (out / "labels.json").exists() else 0,
                     "the manifest does not name the disc")  # fmt: skip

    yield "mrspineseg", spine
