"""``python -m napari_amvlm.demo``: the loop in the real window.

With a display, napari opens on an unlabelled scan with the first prompt run. With ``--unattended`` the window is
driven through the whole loop and leaves screenshots and a table.
"""

from __future__ import annotations

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # ``-m`` puts the working directory there: nothing is imported from it

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from qtpy.QtWidgets import QApplication

from amvlm.config import DEMO_MINUTES
from amvlm.imaging import canonical_mask, to_display
from napari_amvlm.controller import Controller
from napari_amvlm.layers import LABEL, PREDICTION

PROMPT = "anterior hippocampus"
TIMEOUT_S = 600.0


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Let the window work until a condition holds."""
    began = time.monotonic()
    while not condition():
        QApplication.processEvents()
        time.sleep(0.005)
        if time.monotonic() - began > timeout_s:
            raise SystemExit(f"demo: {what} took longer than {timeout_s:.0f} s")


def settle(seconds: float) -> None:
    """Let drawing finish."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, "drawing")


class Demo:
    """Drives one window, as a person would through its panels."""

    def __init__(self, study: Path, screenshots: Path) -> None:
        self.screenshots = screenshots
        screenshots.mkdir(parents=True, exist_ok=True)
        self.viewer = napari.Viewer(title="napari-amvlm", show=True)
        self.window = self.viewer.window._qt_window
        self.window.resize(1640, 1000)
        _, self.train = self.viewer.window.add_plugin_dock_widget("napari-amvlm", "Train")
        self.prompt_dock, self.prompt = self.viewer.window.add_plugin_dock_widget(
            "napari-amvlm", "Segment with text", tabify=True
        )
        self.train_dock = self.train.parent()
        self.controller: Controller = self.prompt.controller
        self.study = study
        self.paths: list[Path] = []

    def begin(self) -> None:
        """Open the study on its first unlabelled scan and run the first prompt."""
        from amvlm.sample import copy_sample_study

        if not (self.study / "store.sqlite").is_file():
            copy_sample_study(self.study)
        self.controller.studies.open_study(self.study)
        wait_until(lambda: self.controller.layers is not None and not self.controller.worker.busy, "opening the study")
        self.run_prompt(PROMPT)
        shown = self.controller.layers.labels[PREDICTION].data if self.controller.layers is not None else None
        if shown is not None and shown.any():
            self.viewer.dims.set_current_step(0, int(shown.sum((1, 2)).argmax()))

    def run_prompt(self, text: str) -> None:
        self.prompt.prompt.setPlainText(text)
        self.prompt.prompt.submit()
        wait_until(lambda: not self.controller.worker.busy, "the prompt")

    def shoot(self, name: str) -> None:
        """A picture of the whole window."""
        settle(0.8)  # the measures follow a change after a moment
        path = self.screenshots / f"{len(self.paths) + 1}-{name}.png"
        self.window.grab().save(str(path))
        self.paths.append(path)

    def correct_and_accept(self, case_id: str, structure: str, picture: bool) -> None:
        """Open a case, prompt, paint the correction from its reference mask, accept."""
        controller = self.controller
        store = controller.store
        if store is None:
            raise RuntimeError("no study is open")
        if controller.structure != structure:
            controller.structures.choose(structure)
            wait_until(lambda: not controller.worker.busy, "choosing the structure")
        if controller.layers is None or getattr(controller.layers.opened.case, "case_id", "") != case_id:
            controller.open_case(case_id)
            wait_until(lambda: not controller.worker.busy and controller.open_case_id == case_id, "opening a case")
        self.run_prompt(structure)
        layers = controller.layers
        if layers is None:
            raise RuntimeError("no case is open")
        reference = store.masks.read(store.references()[case_id, structure]).array
        truth = to_display(np.ascontiguousarray(canonical_mask(reference, layers.opened.volume)))
        label = layers.labels[LABEL]
        wrong = np.nonzero(label.data != truth)
        label.data_setitem(wrong, truth[wrong])
        if picture:
            self.shoot("corrected")
        controller.judging.accept()
        wait_until(lambda: not controller.worker.busy, "accepting")

    def train_and_use(self, seed: int, minutes: float, name: str) -> None:
        """Start the detached training, follow it, choose the new model."""
        training = self.controller.training
        training.start_with({"minutes": minutes, "seed": seed}, ["--name", name])
        self.train_dock.raise_()
        bar = self.train.progress
        wait_until(lambda: training.current is None or 0 < 0.6 * bar.maximum() < bar.value(), "training")
        self.shoot("training")
        wait_until(lambda: training.current is None and not self.controller.worker.busy, "training")
        if training.new_model != name:
            raise SystemExit("demo: training ended without a model; see output.txt in the study's runs folder")
        self.shoot("trained")
        training.use_new_model()
        self.prompt_dock.raise_()
        wait_until(lambda: not self.controller.worker.busy, "choosing the model")


def unattended(demo: Demo, seed: int, minutes: float, output: Path | None) -> None:
    """The whole loop, with screenshots and the table."""
    from amvlm.demo import MODEL_NAME, cases_to_correct, comparison, print_comparison
    from amvlm.inference import bundled_model_folder, evaluate
    from amvlm.models import AmvlmModel

    began = time.monotonic()
    demo.shoot("empty")
    demo.begin()
    demo.shoot("prompted")
    demo.controller.show_side_by_side(False)
    demo.shoot("stacked")
    demo.controller.show_side_by_side(True)
    store = demo.controller.store
    if store is None:
        raise RuntimeError("no study is open")
    cases = cases_to_correct(store)
    print(f"Correcting and accepting {len(cases)} cases …", flush=True)
    for number, structure in enumerate(structure.name for structure in store.structures()):
        for case_id in cases:
            demo.correct_and_accept(case_id, structure, picture=number == 0 and case_id == cases[0])
    print(f"Training {minutes:g} minutes as a detached process …", flush=True)
    demo.train_and_use(seed, minutes, MODEL_NAME)
    test_case = store.cases("test")[0].case_id
    demo.controller.open_case(test_case)
    wait_until(lambda: not demo.controller.worker.busy and demo.controller.open_case_id == test_case, "opening a case")
    demo.run_prompt(PROMPT)
    demo.shoot("new-model-on-a-test-case")
    print("Measuring both models on the test cases …", flush=True)
    before = evaluate(AmvlmModel.load(bundled_model_folder()), store, "test")
    rows = comparison(before, evaluate(AmvlmModel.load(store.folder / "models" / MODEL_NAME), store, "test"))
    print_comparison(rows)
    print("Screenshots:", *(f"  {path}" for path in demo.paths), sep="\n")
    print(f"The loop took {time.monotonic() - began:.0f} s.")
    if output is not None:
        output.write_text(json.dumps({"seed": seed, "minutes": minutes, "rows": rows}, indent=1), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="napari_amvlm.demo", description=__doc__)
    parser.add_argument("--unattended", action="store_true", help="drive the window through the whole loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=DEMO_MINUTES, help="of training")
    parser.add_argument("--screenshots", type=Path, default=Path("demo-output"))
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvlm-demo-") as temporary:
        os.environ["XDG_DATA_HOME"] = temporary  # the demo leaves nothing in the user's own folders
        demo = Demo(Path(temporary) / "study", arguments.screenshots)
        if arguments.unattended:
            unattended(demo, arguments.seed, arguments.minutes, arguments.json)
            demo.controller.close()
            demo.viewer.close()
        else:
            demo.begin()
            napari.run()
            demo.controller.close()
        shutil.rmtree(temporary, ignore_errors=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
