"""Data that wants to be run or rendered: planted modules, pickles, markup."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.makers import TINY, bundled
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import cases, first_case

MODULES = ["typer.py", "torch.py", "sitecustomize.py", "usercustomize.py", "numpy.py", "json.py", "tempfile.py",
           "amvlm/__init__.py", "amvlm.py", "rich/__init__.py", "pydantic.py", "nibabel.py"]  # fmt: skip

WINDOW = """
import sys
from qtpy.QtCore import QCoreApplication, QTimer
application = QCoreApplication([])
from amvlm.store import LabelStore
from napari_amvlm.training_run import TrainingRun
run = TrainingRun.start(LabelStore(sys.argv[1]), sys.argv[2:])
run.ended.connect(application.quit)
QTimer.singleShot(60000, application.quit)
application.exec()
"""


def plant(folder: Path, canary: Path, without: str = "-") -> None:
    """Modules that leave a trace when anything imports them."""
    for name in (name for name in MODULES if not name.startswith(without)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(canary)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit('planted code ran')\n")


def _expect_nothing_ran(place: Place, canary: Path) -> None:
    if canary.exists():
        place.fault("outside", f"planted code ran: {', '.join(sorted(set(canary.read_text().split())))}")
        canary.unlink()


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"echo pickle >> '{self.canary}'",))


@fault_class(2, "modules planted where a person works", short=0)
def planted() -> Iterator[Trial]:
    def trial(place: Place, where: str, command: list[str]) -> None:
        study, canary = place.study(), place.folder / "canary"
        folder = {"study": study, "scans": makers.scans(place.work / "scans"), "model": place.work / "model"}[where]
        shutil.copytree(bundled(), place.work / "model")
        plant(folder, canary)
        place.allow(study / "models", study / "runs", study / "store.sqlite", place.work / "m.nii.gz")
        values = {"STUDY": study, "NEW": place.new_study(), "SCANS": place.work / "scans",
                  "SCAN": place.work / "scans" / "good_0.nii.gz", "MODEL": place.work / "model",
                  "MASK": place.work / "m.nii.gz", "MODULE": "-P -m amvlm"}  # fmt: skip
        arguments = [str(values.get(word, word)) for word in command]
        place.fresh([sys.executable, "-P", "-c", "from amvlm.cli import main; main()", *arguments], cwd=folder)
        _expect_nothing_ran(place, canary)

    train = ["train", "STUDY", *TINY]
    segment = ["segment", "SCAN", "--prompt", "anterior hippocampus", "-o", "MASK", "--model", "MODEL"]
    for where, command in (("study", train), ("model", segment), ("scans", ["import", "SCANS", "--into", "NEW"])):
        yield f"in the {where}, {command[0]}", partial(trial, where=where, command=command)

    def module(place: Place) -> None:
        study, canary = place.study(), place.folder / "canary"
        plant(study, canary, without="amvlm")  # "-m amvlm" asks for that one, whoever wrote it
        place.amvlm("verify", study, cwd=study)
        _expect_nothing_ran(place, canary)

    yield "python -m amvlm typed in the study", module

    def window(place: Place, where: str) -> None:
        study, canary = place.study(), place.folder / "canary"
        folder = study if where == "study" else makers.scans(place.work / "scans")
        plant(folder, canary)
        place.allow(study / "models", study / "runs", study / "store.sqlite")
        command = [sys.executable, "-P", "-c", WINDOW, str(study), "--model", "bundled", *TINY]
        environment = {"QT_QPA_PLATFORM": "offscreen", "QT_API": "pyqt6"}
        if where == "environment":
            environment["AMVLM_TEST"] = "1"
            command[3] = f"import os; os.environ['PYTHONPATH'] = {str(folder)!r}\n" + WINDOW
        place.fresh(command, cwd=folder, environment=environment)
        _expect_nothing_ran(place, canary)
        place.expect(list((study / "models").glob("*/card.json")), "the window's run made no model")

    for where in ("study", "scans", "environment"):
        yield f"a run started as the window does, in the {where}", partial(window, where=where)


@fault_class(2, "pickles")
def pickles() -> Iterator[Trial]:
    def npy(canary: Path) -> bytes:
        import numpy as np

        stream = io.BytesIO()
        np.save(stream, np.array([Trap(canary)], dtype=object), allow_pickle=True)
        return stream.getvalue()

    def torch_file(canary: Path) -> bytes:
        import torch

        stream = io.BytesIO()
        torch.save({"a": Trap(canary)}, stream)
        return stream.getvalue()

    def weights(place: Place, content: str) -> None:
        canary, model = place.folder / "canary", place.work / "model"
        shutil.copytree(bundled(), model)
        made = {"pickle": pickle.dumps(Trap(canary)), "torch": torch_file(canary), "npy": npy(canary)}[content]
        (model / "model.safetensors").write_bytes(made)
        for name in ("pytorch_model.bin", "model.pt", "model.pkl"):
            (model / name).write_bytes(made)
        place.allow(place.work / "m.nii.gz")
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        place.refused(
            "segment", scan, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz", "--model", model
        )
        _expect_nothing_ran(place, canary)

    for content in ("pickle", "torch", "npy"):
        yield f"a {content} as model.safetensors", partial(weights, content=content)

    def encoder(place: Place, name: str, flag: str) -> None:
        canary, folder, study = place.folder / "canary", place.work / "encoder", place.study()
        folder.mkdir()
        content = npy(canary) if name.endswith("npy") else torch_file(canary)
        (folder / name).write_bytes(content)
        described = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 32, "architectures": ["ViTModel"],
                     "auto_map": {"AutoModel": "evil.Model"}}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(described))
        plant(folder, canary)
        place.allow(study / "runs")
        more = ["--network", "resnet18"] if flag == "--encoder-weights" else []
        value = folder / name if flag == "--encoder-weights" else folder
        command = "train" if flag == "--encoder-weights" else "pretrain"
        steps = ["--steps", "1"] if command == "train" else ["--steps", "1", "--generator-steps", "1"]
        place.refused(command, study, flag, value, *more, *steps)
        _expect_nothing_ran(place, canary)

    for name in ("w.pt", "w.pth", "w.npy", "w.safetensors"):
        yield f"encoder weights {name}", partial(encoder, name=name, flag="--encoder-weights")
    for name in ("pytorch_model.bin", "model.safetensors"):
        for flag in ("--image-encoder", "--text-encoder"):
            yield f"an encoder folder with {name}, {flag}", partial(encoder, name=name, flag=flag)

    def cache(place: Place, content: str) -> None:
        """The cache of a study that was trained here already is not what it was."""
        canary, study = place.folder / "canary", place.study()
        place.allow(study / "runs", study / "models", study / "store.sqlite")
        place.fine("train", study, *TINY)
        for path in (study / "cache").rglob("*.npy"):
            path.write_bytes({"pickle": npy(canary), "cut": path.read_bytes()[:-7], "empty": b""}[content])
        place.fine("train", study, *TINY)
        _expect_nothing_ran(place, canary)

    for content in ("pickle", "cut", "empty"):
        yield f"a cache of images, {content}", partial(cache, content=content)

    def checkpoint(place: Place) -> None:
        canary, study = place.folder / "canary", place.study("trained")
        for path in (study / "runs").rglob("tensors.safetensors"):
            path.write_bytes(torch_file(canary))
        place.allow(study / "runs")
        place.refused("train", study, "--run-name", "first", "--resume")
        _expect_nothing_ran(place, canary)

    yield "a checkpoint", checkpoint

    def source(place: Place, name: str) -> None:
        canary, folder = place.folder / "canary", makers.scans(place.work / "scans")
        (folder / name).write_bytes(npy(canary) if name.endswith("npy") else torch_file(canary))
        study = place.new_study()
        place.fine("import", folder, "--into", study)
        place.expect(cases(study) == 2, "the sound scans are not there")
        place.allow(place.work / "m.nii.gz")
        place.refused("segment", folder / name, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz")
        _expect_nothing_ran(place, canary)

    for name in ("scan.npy", "scan.pkl", "scan.pt", "scan.npz"):
        yield f"{name} among scans", partial(source, name=name)


MARKUP = ["[/red]", "[bold]x[/bold]", "[link=file:///etc/passwd]x[/link]", "[[[", "[@click=app.quit]x", "\\[/]",
          "\x1b[31mred", "\x1b]0;title\x07", "<img src=file:///etc/passwd>", "{0}", "%s%n", ":smile:"]  # fmt: skip


@fault_class(2, "markup and escapes on the command line", short=2)
def markup() -> Iterator[Trial]:
    def clean(place: Place) -> None:
        for answer in place.answers:
            place.expect("\x1b" not in answer.text and "\x07" not in answer.text, "escapes reach the terminal")

    def prompt(place: Place, text: str) -> None:
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        place.allow(place.work / "m.nii.gz")
        answer = place.run("segment", scan, "--prompt", f"liver {text}", "-o", place.work / "m.nii.gz")
        place.expect("\x1b" in text or text in answer.text or ":smile:" not in text, "the prompt is shown changed")
        clean(place)

    for text in MARKUP:
        yield f"prompt {text!r}", partial(prompt, text=text)

    def judged(place: Place, text: str) -> None:
        study = place.study()
        place.allow(study)
        case = first_case(study)
        place.fine("judge", study, case, "liver", "absent", "--prompt", text)
        answer = place.fine("history", study, case, "liver")
        if "\x1b" not in text:
            place.expect(text in answer.out, f"the history does not show it: {answer.out[-300:]!r}")
        place.run("judge", study, text, "liver", "skip")
        place.run("judge", study, case, text, "skip")
        place.run("history", study, text, text)
        clean(place)

    for text in MARKUP:
        yield f"judge and history {text!r}", partial(judged, text=text)

    def structure(place: Place, text: str) -> None:
        source = makers.msd(place.work / "scans", labels={"0": "background", "1": text}, count=3)
        study = place.new_study()
        place.allow(place.work / "out", place.work / "m.json")
        place.run("import", source, "--into", study, "--split", "train", "--accept-fraction", "0.67")
        place.run("train", study, "--name", "own", *TINY)
        place.run("quality", study)
        place.run("evaluate", study, "--split", "train", "--model", "own", "--json", place.work / "m.json")
        place.run("export", study, place.work / "out")
        clean(place)

    for text in MARKUP[1:6]:
        yield f"a structure {text!r}", partial(structure, text=text)

    def card(place: Place, text: str) -> None:
        model = place.work / "model"
        shutil.copytree(bundled(), model)
        described = json.loads((model / "card.json").read_text())
        described["name"], described["modality"], described["licence"] = text, text, text
        described["structures"][0]["name"] = text
        (model / "card.json").write_text(json.dumps(described))
        place.allow(place.work / "m.nii.gz")
        scan, study = makers.scans(place.work / "scans") / "good_0.nii.gz", place.study()
        place.run("segment", scan, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz", "--model", model)
        place.allow(study / "store.sqlite")
        place.run("quality", study, "--model", model)
        clean(place)

    for text in MARKUP[:8]:
        yield f"a model's card {text!r}", partial(card, text=text)

    def file(place: Place, text: str) -> None:
        folder = makers.scans(place.work / "scans")
        (folder / f"{text.replace('/', '')}.nii.gz").write_bytes(b"broken")
        place.fine("import", folder, "--into", place.new_study())
        place.run("import", place.work / text, "--into", place.work / "new")
        clean(place)

    for text in MARKUP:
        yield f"a file {text!r}", partial(file, text=text)
